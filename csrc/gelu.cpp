#include "gelu.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"

namespace electra_fast {
namespace {

constexpr std::int64_t kTile = 512;  // columns widened to float at a time, in the first-level cache
constexpr std::int64_t kRowsPerBlock = 64;  // rows whose bias gradients are added first; fixed, for the same bits
constexpr std::int64_t kElementsPerThread = 32768;  // about 30 us of work

// The normal distribution's density and its integral from minus infinity, at u.
struct Normal {
  float density, integral;
};

// The integral is e^(-u^2/2) times Mills' ratio below 0, and 1 minus that above: the lower tail keeps its digits. The
// ratio is a polynomial in t = 1 / (1 + 0.3 |u|), fitted to 6e-8 of its value for |u| <= 13.5, beyond which e^ is 0.
ELECTRA_FAST_INLINE Normal normal(float u) {
  const float a = std::fabs(u);
  const float t = 1.0F / (1.0F + 0.3F * a);
  float p = 0.0383344066F;
  p = p * t - 0.168952606F;
  p = p * t + 0.228218578F;
  p = p * t - 0.0760009654F;
  p = p * t + 0.142185944F;
  p = p * t + 0.0948326277F;
  p = p * t + 0.121882137F;
  p = p * t + 0.119493053F;
  p = p * t + 6.85347810e-6F;
  const float e = exp_nonpositive(-0.5F * u * u);
  const float tail = e * p;
  return {0.398942280F * e, u > 0.0F ? 1.0F - tail : tail};
}

// One row; y may be x.
ELECTRA_FAST_INLINE void forward_row(const float* x, const float* bias, std::int64_t width, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < width; ++i) {
    const float u = x[i] + bias[i];
    y[i] = u * normal(u).integral;
  }
}

// One row, whose dx is added to `dbias`; dx may be dy or x, and y, where it is wanted, x.
template <bool kNeedsY>
ELECTRA_FAST_INLINE void backward_row(const float* dy, const float* x, const float* bias, std::int64_t width, float* dx,
                                      float* dbias, [[maybe_unused]] float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < width; ++i) {
    const float u = x[i] + bias[i];
    const Normal at = normal(u);
    const float gradient = dy[i] * (at.integral + u * at.density);
    dbias[i] += gradient;
    dx[i] = gradient;
    if constexpr (kNeedsY) y[i] = u * at.integral;
  }
}

// The same through tiles of float: a loop over both types would fill vectors of half the size.
ELECTRA_FAST_INLINE void forward_row(const bfloat16* x, const float* bias, std::int64_t width, bfloat16* y) {
  float tile[kTile];
  for (std::int64_t begin = 0; begin < width; begin += kTile) {
    const std::int64_t n = std::min(kTile, width - begin);
    for (std::int64_t i = 0; i < n; ++i) tile[i] = load(x + begin + i);
    forward_row(tile, bias + begin, n, tile);
    for (std::int64_t i = 0; i < n; ++i) store(y + begin + i, tile[i]);
  }
}

template <bool kNeedsY>
ELECTRA_FAST_INLINE void backward_row(const bfloat16* dy, const bfloat16* x, const float* bias, std::int64_t width,
                                      bfloat16* dx, float* dbias, [[maybe_unused]] bfloat16* y) {
  float tile[kTile], upstream[kTile];
  for (std::int64_t begin = 0; begin < width; begin += kTile) {
    const std::int64_t n = std::min(kTile, width - begin);
    for (std::int64_t i = 0; i < n; ++i) tile[i] = load(x + begin + i);
    for (std::int64_t i = 0; i < n; ++i) upstream[i] = load(dy + begin + i);
    backward_row<kNeedsY>(upstream, tile, bias + begin, n, upstream, dbias + begin, tile);
    for (std::int64_t i = 0; i < n; ++i) store(dx + begin + i, upstream[i]);
    if constexpr (kNeedsY) {
      for (std::int64_t i = 0; i < n; ++i) store(y + begin + i, tile[i]);
    }
  }
}

#define ELECTRA_FAST_GELU_ROWS(T)                                                                                   \
  ELECTRA_FAST_CLONES                                                                                               \
  void forward_rows(const BiasGELU<T>& call, std::int64_t first, std::int64_t last) {                               \
    for (std::int64_t r = first; r < last; ++r) {                                                                   \
      forward_row(call.x + r * call.width, call.bias, call.width, call.y + r * call.width);                         \
    }                                                                                                               \
  }                                                                                                                 \
  ELECTRA_FAST_CLONES                                                                                               \
  void backward_rows(const BiasGELUBackward<T>& call, std::int64_t first, std::int64_t last, float* dbias) {        \
    for (std::int64_t r = first; r < last; ++r) {                                                                   \
      const std::int64_t at = r * call.width;                                                                       \
      if (call.y) {                                                                                                 \
        backward_row<true>(call.dy + at, call.x + at, call.bias, call.width, call.dx + at, dbias, call.y + at);     \
      } else {                                                                                                      \
        backward_row<false>(call.dy + at, call.x + at, call.bias, call.width, call.dx + at, dbias, nullptr);        \
      }                                                                                                             \
    }                                                                                                               \
  }
ELECTRA_FAST_GELU_ROWS(float)
ELECTRA_FAST_GELU_ROWS(bfloat16)
#undef ELECTRA_FAST_GELU_ROWS

template <class T>
void run(const BiasGELU<T>& call, int threads) {
  const std::int64_t grain = kElementsPerThread / std::max<std::int64_t>(call.width, 1) + 1;
  parallel_for(call.rows, threads, grain,
               [&](std::int64_t first, std::int64_t last) noexcept { forward_rows(call, first, last); });
}

template <class T>
void run(const BiasGELUBackward<T>& call, int threads) {
  const std::int64_t width = call.width, blocks = (call.rows + kRowsPerBlock - 1) / kRowsPerBlock;
  std::vector<float> partial(static_cast<std::size_t>(blocks * width));
  const std::int64_t grain = kElementsPerThread / std::max<std::int64_t>(kRowsPerBlock * width, 1) + 1;
  parallel_for(blocks, threads, grain, [&](std::int64_t first, std::int64_t last) noexcept {
    for (std::int64_t b = first; b < last; ++b) {
      backward_rows(call, b * kRowsPerBlock, std::min((b + 1) * kRowsPerBlock, call.rows), partial.data() + b * width);
    }
  });
  parallel_for(width, threads, kElementsPerThread / std::max<std::int64_t>(blocks, 1) + 1,
               [&](std::int64_t first, std::int64_t last) noexcept {
                 std::vector<double> sums(static_cast<std::size_t>(last - first));
                 for (std::int64_t b = 0; b < blocks; ++b) {
                   const float* row = partial.data() + b * width + first;
                   for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += row[i];
                 }
                 float* dbias = call.dbias + first;
                 for (std::size_t i = 0; i < sums.size(); ++i) dbias[i] = static_cast<float>(sums[i]);
               });
}

}  // namespace

void bias_gelu(const BiasGELU<float>& call, int threads) { run(call, threads); }
void bias_gelu(const BiasGELU<bfloat16>& call, int threads) { run(call, threads); }
void bias_gelu_backward(const BiasGELUBackward<float>& call, int threads) { run(call, threads); }
void bias_gelu_backward(const BiasGELUBackward<bfloat16>& call, int threads) { run(call, threads); }

}  // namespace electra_fast
