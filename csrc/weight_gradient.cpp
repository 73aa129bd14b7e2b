#include "weight_gradient.h"

#include <algorithm>
#include <memory>

#include "lanes.h"
#include "parallel.h"
#include "philox.h"

namespace electra_fast {
namespace {

// A product of two matrices that both lie the wrong way: its sums run down their columns. So both are packed, a block of
// tokens at a time, in panels of 16 columns, and while one block is multiplied the next one comes into the cache.
constexpr std::int64_t kTokens = 128;                   // of a block
constexpr std::int64_t kPanel = (kTokens + 1) * kLanes;  // floats; a power of two would put panels into few sets
constexpr std::int64_t kColumns = 64;                   // of x for one thread at least

// [tokens, columns] -> [columns / 16][tokens][16], panels kPanel apart.
template <int kBytes>
ELECTRA_FAST_INLINE void pack(const float* from, std::int64_t stride, std::int64_t tokens, std::int64_t columns,
                              float* to) {
  for (std::int64_t t = 0; t < tokens; ++t, from += stride, to += kLanes) {
    for (std::int64_t panel = 0; panel < columns / kLanes; ++panel) {
      Lanes<kBytes> lanes;
      lanes.load(from + panel * kLanes);
      lanes.store(to + panel * kPanel);
    }
  }
}

// Asks the second cache for the rows of both matrices, a few lines at each call.
class Ahead {
 public:
  Ahead(const WeightGradient& call, std::int64_t token, std::int64_t tokens)
      : call_(call), token_(token), end_(token + tokens), width_(call.outputs + call.inputs) {}

  ELECTRA_FAST_INLINE void ask(std::int64_t lines) {
#if defined(__GNUC__)
    for (; lines > 0 && token_ < end_; --lines) {
      const float* line = column_ < call_.outputs ? call_.dy + token_ * call_.dy_stride + column_
                                                  : call_.x + token_ * call_.x_stride + (column_ - call_.outputs);
      __builtin_prefetch(line, 0, 2);
      column_ += kLanes;
      if (column_ == width_) column_ = 0, ++token_;
    }
#endif
  }

 private:
  const WeightGradient& call_;
  std::int64_t token_, end_, width_, column_ = 0;
};

// kRows x (16 * kPanels) gradients in registers.
template <int kBytes, int kRows, int kPanels>
ELECTRA_FAST_INLINE void multiply_block(const float* dy, const float* x, std::int64_t tokens, float* dweight,
                                        std::int64_t stride, bool accumulate) {
#if defined(__GNUC__)
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kPanels; ++j) __builtin_prefetch(dweight + i * stride + j * kLanes, 1);
  }
#endif
  Lanes<kBytes> sum[kRows][kPanels] = {};
  for (std::int64_t t = 0; t < tokens; ++t) {
    Lanes<kBytes> right[kPanels];
    for (int j = 0; j < kPanels; ++j) right[j].load(x + j * kPanel + t * kLanes);
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kPanels; ++j) sum[i][j].add_product(dy[t * kLanes + i], right[j]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kPanels; ++j) {
      float* address = dweight + i * stride + j * kLanes;
      if (accumulate) {
        Lanes<kBytes> before;
        before.load(address);
        sum[i][j].add(before);
      }
      sum[i][j].store(address);
    }
  }
}

// One thread's part; `stride` is between rows of the whole dweight.
template <int kBytes, int kRows, int kPanels>
ELECTRA_FAST_INLINE void multiply_part(const WeightGradient& call, std::int64_t stride, float* memory) {
  float *x = memory, *dy = memory + call.inputs / kLanes * kPanel;
  const std::int64_t blocks = call.outputs / kRows * (call.inputs / (kPanels * kLanes));
  // Without tokens too there is one round, of empty sums.
  for (std::int64_t begin = 0; begin == 0 || begin < call.tokens; begin += kTokens) {
    const std::int64_t tokens = std::min(kTokens, call.tokens - begin);
    pack<kBytes>(call.x + begin * call.x_stride, call.x_stride, tokens, call.inputs, x);
    pack<kBytes>(call.dy + begin * call.dy_stride, call.dy_stride, tokens, call.outputs, dy);
    const std::int64_t next = std::min(kTokens, call.tokens - begin - tokens);
    const std::int64_t lines = next * (call.outputs + call.inputs) / kLanes;
    Ahead ahead(call, begin + tokens, next);
    for (std::int64_t column = 0; column < call.inputs; column += kPanels * kLanes) {
      for (std::int64_t row = 0; row < call.outputs; row += kRows) {
        ahead.ask((lines + blocks - 1) / blocks);
        multiply_block<kBytes, kRows, kPanels>(dy + row / kLanes * kPanel + row % kLanes, x + column / kLanes * kPanel,
                                               tokens, call.dweight + row * stride + column, stride,
                                               call.accumulate || begin > 0);
      }
    }
  }
}

// 32 registers of AVX-512 hold 4 x 64 sums, the 16 of AVX2 or 32 of NEON 4 x 16, and what they are made of.
ELECTRA_FAST_CLONES void multiply_wide(const WeightGradient& call, std::int64_t stride, float* memory) {
  multiply_part<kWide, 4, 4>(call, stride, memory);
}
ELECTRA_FAST_CLONES void multiply_narrow(const WeightGradient& call, std::int64_t stride, float* memory) {
  multiply_part<kNarrow, 4, 1>(call, stride, memory);
}

}  // namespace

void weight_gradient(const WeightGradient& call, int threads) {
  // The longer side is shared out; each thread packs all of the other one.
  const bool by_rows = call.outputs >= call.inputs;
  const std::int64_t unit = by_rows ? kLanes : kColumns, units = (by_rows ? call.outputs : call.inputs) / unit;
  const std::int64_t parts = std::max<std::int64_t>(1, std::min<std::int64_t>(threads, units));
  const std::int64_t memory = (call.outputs + call.inputs) / kLanes * kPanel;
  const std::unique_ptr<float[]> memories(new float[static_cast<std::size_t>(parts * memory + kLanes)]);
  float* first = memories.get();
  first += (64 - reinterpret_cast<std::uintptr_t>(first) % 64) / sizeof(float) % kLanes;
  parallel_for(parts, static_cast<int>(parts), 1, [&](std::int64_t begin, std::int64_t end) noexcept {
    for (std::int64_t part = begin; part < end; ++part) {
      const std::int64_t from = units * part / parts * unit, to = units * (part + 1) / parts * unit;
      WeightGradient mine = call;
      (by_rows ? mine.outputs : mine.inputs) = to - from;
      mine.dy += by_rows ? from : 0;
      mine.x += by_rows ? 0 : from;
      mine.dweight += by_rows ? from * call.inputs : from;
      (is_wide() ? multiply_wide : multiply_narrow)(mine, call.inputs, first + part * memory);
    }
  });
}

}  // namespace electra_fast
