#include "layer_norm.h"

#include <algorithm>
#include <memory>

#include "parallel.h"

namespace electra_fast {
namespace {

// About 20 us of work: waking another thread takes up to 10.
constexpr std::int64_t kElementsPerThread = 32768;
constexpr std::int64_t kDrawsPerThread = 8192;  // where elements have random numbers
// Rows whose weight gradients are added up one after the other: at most 128 blocks, whatever the number of threads, so
// that the bits don't depend on it.
constexpr std::int64_t kMinBlock = 32, kMaxBlocks = 128;

std::int64_t rows_per_thread(const LayerNormRows& rows) {
  return std::max<std::int64_t>(1, (rows.drops ? kDrawsPerThread : kElementsPerThread) / rows.width);
}

// Calls use(value), where value(column) is an element of row t of dropout(x + x_bias) + residual. Fills `factors` if it
// drops.
template <class X, class Y, class Use>
ELECTRA_FAST_INLINE void with_row(const LayerNormRows& rows, const float* x_bias, std::int64_t t, float* factors,
                                  const Use& use) {
  const X* x = static_cast<const X*>(rows.x) + t * rows.width;
  prefetch(static_cast<const X*>(rows.x), t, rows.num_rows, rows.width);
  if (rows.drops) draw_factors(rows.dropout, rows.row_ids ? rows.row_ids[t] : t, rows.width, factors);
  if (rows.residual == nullptr) {
    use([x](std::int64_t i) ELECTRA_FAST_INLINE_LAMBDA { return load(x + i); });
    return;
  }
  const Y* residual = static_cast<const Y*>(rows.residual) + t * rows.width;
  prefetch(static_cast<const Y*>(rows.residual), t, rows.num_rows, rows.width);
  if (x_bias != nullptr && rows.drops) {
    use([=](std::int64_t i) ELECTRA_FAST_INLINE_LAMBDA { return (load(x + i) + x_bias[i]) * factors[i] + load(residual + i); });
  } else if (x_bias != nullptr) {
    use([=](std::int64_t i) ELECTRA_FAST_INLINE_LAMBDA { return load(x + i) + x_bias[i] + load(residual + i); });
  } else if (rows.drops) {
    use([=](std::int64_t i) ELECTRA_FAST_INLINE_LAMBDA { return load(x + i) * factors[i] + load(residual + i); });
  } else {
    use([=](std::int64_t i) ELECTRA_FAST_INLINE_LAMBDA { return load(x + i) + load(residual + i); });
  }
}

template <class X, class Y>
ELECTRA_FAST_INLINE void forward_rows(const LayerNorm& call, std::int64_t begin, std::int64_t end) {
  float row[kMaxWidth], factors[kMaxWidth];
  const std::int64_t width = call.rows.width;
  const float *weight = call.weight, *bias = call.bias;
  for (std::int64_t t = begin; t < end; ++t) {
    Moments moments;
    with_row<X, Y>(call.rows, call.x_bias, t, factors,
                   [&](const auto& value) ELECTRA_FAST_INLINE_LAMBDA { moments = fill_row(width, call.eps, row, value); });
    call.mean[t] = moments.mean;
    call.rstd[t] = moments.rstd;
    if (call.sum) std::copy_n(row, width, call.sum + t * width);
    Y* y = static_cast<Y*>(call.y) + t * width;
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) store(y + i, standardised(row[i], moments) * weight[i] + bias[i]);
  }
}

// Adds the rows' part to dweight, dbias and dx_bias, unless they are null.
template <class X, class Y>
ELECTRA_FAST_INLINE void backward_rows(const LayerNormBackward& call, std::int64_t begin, std::int64_t end,
                                       float* dweight, float* dbias, float* dx_bias) {
  float row[kMaxWidth], factors[kMaxWidth];
  const std::int64_t width = call.rows.width;
  const float* weight = call.weight;
  for (std::int64_t t = begin; t < end; ++t) {
    const Moments moments{call.mean[t], call.rstd[t]};
    prefetch(static_cast<const Y*>(call.dy), t, call.rows.num_rows, width);
    const Y* dy = static_cast<const Y*>(call.dy) + t * width;
    with_row<X, Y>(call.rows, nullptr, t, factors, [&](const auto& value) ELECTRA_FAST_INLINE_LAMBDA {
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) row[i] = standardised(value(i), moments);
    });
    const GradientMeans means = gradient_means(width, dy, row, weight, dweight, dbias);
    // A single column is constant: no gradient, where 1 / sqrt(eps) would multiply what rounding leaves.
    const float rstd = width > 1 ? moments.rstd : 0.0F;
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) row[i] = gradient(load(dy + i), row[i], weight[i], means, rstd);
    if (call.dresidual) {
      Y* dresidual = static_cast<Y*>(call.dresidual) + t * width;
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) store(dresidual + i, row[i]);
    }
    if (call.dx) {
      X* dx = static_cast<X*>(call.dx) + t * width;
      if (call.rows.drops) {
#pragma omp simd
        for (std::int64_t i = 0; i < width; ++i) row[i] *= factors[i];
      }
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) store(dx + i, row[i]);
      if (dx_bias) {
#pragma omp simd
        for (std::int64_t i = 0; i < width; ++i) dx_bias[i] += row[i];
      }
    }
  }
}

ELECTRA_FAST_CLONES
void forward(const LayerNorm& call, std::int64_t begin, std::int64_t end) {
  if (call.rows.x_is_bfloat16) {
    if (call.rows.y_is_bfloat16) return forward_rows<bfloat16, bfloat16>(call, begin, end);
    return forward_rows<bfloat16, float>(call, begin, end);
  }
  if (call.rows.y_is_bfloat16) return forward_rows<float, bfloat16>(call, begin, end);
  forward_rows<float, float>(call, begin, end);
}

ELECTRA_FAST_CLONES
void backward(const LayerNormBackward& call, std::int64_t begin, std::int64_t end, float* dweight, float* dbias,
              float* dx_bias) {
  if (call.rows.x_is_bfloat16) {
    if (call.rows.y_is_bfloat16) return backward_rows<bfloat16, bfloat16>(call, begin, end, dweight, dbias, dx_bias);
    return backward_rows<bfloat16, float>(call, begin, end, dweight, dbias, dx_bias);
  }
  if (call.rows.y_is_bfloat16) return backward_rows<float, bfloat16>(call, begin, end, dweight, dbias, dx_bias);
  backward_rows<float, float>(call, begin, end, dweight, dbias, dx_bias);
}

// The sum over the blocks of partial[block, begin..end), where a block holds `stride` numbers.
ELECTRA_FAST_CLONES
void add_blocks(const float* partial, std::int64_t blocks, std::int64_t stride, std::int64_t begin, std::int64_t end,
                float* sum) {
  std::fill(sum + begin, sum + end, 0.0F);
  for (std::int64_t block = 0; block < blocks; ++block) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) sum[i] += partial[block * stride + i];
  }
}

}  // namespace

void layer_norm(const LayerNorm& call, int threads) {
  parallel_for(call.rows.num_rows, threads, rows_per_thread(call.rows),
               [&](std::int64_t begin, std::int64_t end) noexcept { forward(call, begin, end); });
}

void layer_norm_backward(const LayerNormBackward& call, int threads) {
  const std::int64_t num_rows = call.rows.num_rows, width = call.rows.width;
  if (call.dweight == nullptr) {
    parallel_for(num_rows, threads, rows_per_thread(call.rows),
                 [&](std::int64_t begin, std::int64_t end) noexcept { backward(call, begin, end, nullptr, nullptr, nullptr); });
    return;
  }
  const std::int64_t block_rows = std::max(kMinBlock, (num_rows + kMaxBlocks - 1) / kMaxBlocks);
  const std::int64_t blocks = (num_rows + block_rows - 1) / block_rows;
  const std::int64_t stride = (call.dx_bias ? 3 : 2) * width;
  const std::unique_ptr<float[]> partial(new float[static_cast<std::size_t>(blocks * stride)]);
  parallel_for(blocks, threads, std::max<std::int64_t>(1, rows_per_thread(call.rows) / block_rows),
               [&](std::int64_t first, std::int64_t last) noexcept {
                 for (std::int64_t block = first; block < last; ++block) {
                   float* sums = partial.get() + block * stride;
                   std::fill(sums, sums + stride, 0.0F);
                   const std::int64_t end = std::min(num_rows, (block + 1) * block_rows);
                   backward(call, block * block_rows, end, sums, sums + width, call.dx_bias ? sums + 2 * width : nullptr);
                 }
               });
  const std::int64_t grain = kElementsPerThread / (blocks + 1) + 1;
  parallel_for(width, threads, grain, [&](std::int64_t begin, std::int64_t end) noexcept {
    add_blocks(partial.get(), blocks, stride, begin, end, call.dweight);
    add_blocks(partial.get() + width, blocks, stride, begin, end, call.dbias);
    if (call.dx_bias) add_blocks(partial.get() + 2 * width, blocks, stride, begin, end, call.dx_bias);
  });
}

}  // namespace electra_fast
