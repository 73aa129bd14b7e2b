#include "sampling.h"

#include "parallel.h"

namespace electra_fast {
namespace {

constexpr std::int64_t kElementsPerThread = 65536;  // about 25 us of work

template <class T>
ELECTRA_FAST_INLINE void sample_rows(const SampleTokens& call, std::int64_t first, std::int64_t last) {
  for (std::int64_t row = first; row < last; ++row) {
    const std::int64_t row_id = call.row_ids ? call.row_ids[row] : row;
    const Words words = philox(static_cast<std::uint64_t>(call.seed), 0, static_cast<std::uint64_t>(row_id),
                               call.stream);
    call.sampled_ids[row] = draw_token(static_cast<const T*>(call.logits) + row * call.row_stride, call.vocab_size,
                                       call.disallow ? call.disallow[row] : -1, call.inverse_temperature,
                                       uniform53(words));
  }
}

ELECTRA_FAST_CLONES
void sample_rows_float(const SampleTokens& call, std::int64_t first, std::int64_t last) {
  sample_rows<float>(call, first, last);
}

ELECTRA_FAST_CLONES
void sample_rows_bfloat16(const SampleTokens& call, std::int64_t first, std::int64_t last) {
  sample_rows<bfloat16>(call, first, last);
}

}  // namespace

void sample_tokens(const SampleTokens& call, int threads) {
  const std::int64_t grain = kElementsPerThread / std::max<std::int64_t>(call.vocab_size, 1) + 1;
  parallel_for(call.num_rows, threads, grain, [&](std::int64_t first, std::int64_t last) noexcept {
    (call.bfloat16 ? sample_rows_bfloat16 : sample_rows_float)(call, first, last);
  });
}

}  // namespace electra_fast
