// Rows of numbers: dropout, layer normalisation and its gradient, as pieces that inline into the loops of a kernel.
//
// A kernel holds a row as floats in a buffer of kMaxWidth, which stays in the first-level cache between the pieces.
#pragma once

#include <cmath>
#include <cstdint>

#include "numeric.h"

// For lambdas given to the pieces: one that is not inlined is compiled for plain x86-64, and takes its loop with it.
#if defined(_MSC_VER)
#define ELECTRA_FAST_INLINE_LAMBDA
#else
#define ELECTRA_FAST_INLINE_LAMBDA __attribute__((always_inline))
#endif

namespace electra_fast {

constexpr std::int64_t kMaxWidth = 8192;  // columns; a multiple of kDrawn

// Asks the memory for the row that comes kAhead numbers later, where the hardware's own guesses end with the page.
constexpr std::int64_t kAhead = 1024;
template <class T>
ELECTRA_FAST_INLINE void prefetch(const T* rows, std::int64_t t, std::int64_t num_rows, std::int64_t n) {
#if defined(__GNUC__)
  const std::int64_t next = t + kAhead / n + 1;
  if (next >= num_rows) return;
  constexpr std::int64_t kLine = 64 / sizeof(T);
  for (std::int64_t i = 0; i < n; i += kLine) __builtin_prefetch(rows + next * n + i);
#endif
}

// An element is dropped where its random word is at most `last_dropped`: the threshold less 1, which fits 32 bits even
// where p rounds to 1. The others are multiplied by `scale`.
struct Dropout {
  std::uint64_t seed;
  std::uint32_t stream, last_dropped;
  float scale;
};

// Fills factors[0..n) with what to multiply n columns of a row by, and up to the next multiple of kDrawn with more. The
// first of them is column 4 * first_block.
constexpr std::int64_t kDrawn = 64;
void draw_factors(const Dropout& dropout, std::int64_t row_id, std::int64_t n, float* factors,
                  std::uint32_t first_block = 0);

struct Moments {
  float mean, rstd;  // rstd = 1 / sqrt(variance + eps)
};

// Fills `row` with value(column); the moments need a second pass. The rounded mean is off by a little, which that pass
// measures: without it a constant row of large values would seem to vary.
template <class Value>
ELECTRA_FAST_INLINE Moments fill_row(std::int64_t n, float eps, float* row, const Value& value) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) {
    const float x = value(i);
    row[i] = x;
    sum += x;
  }
  const float share = 1.0F / static_cast<float>(n);
  const float mean = share * sum;
  float rest = 0.0F, squares = 0.0F;
#pragma omp simd reduction(+ : rest, squares)
  for (std::int64_t i = 0; i < n; ++i) {
    const float centred = row[i] - mean;
    rest += centred;
    squares += centred * centred;
  }
  const float correction = share * rest;
  const float variance = share * squares - correction * correction;
  // Rounding may leave a variance just below 0, but a NaN must stay one.
  return {mean + correction, 1.0F / std::sqrt((variance < 0.0F ? 0.0F : variance) + eps)};
}

ELECTRA_FAST_INLINE float standardised(float x, const Moments& moments) { return (x - moments.mean) * moments.rstd; }

// Means over a row of g = dy * weight and of g * x_hat, which the gradient needs before its first element.
struct GradientMeans {
  float g, g_x_hat;
};

// x_hat is the standardised row. Adds the row's part to dweight [n] and dbias [n], unless dweight is null.
template <class Gradient>
ELECTRA_FAST_INLINE GradientMeans gradient_means(std::int64_t n, const Gradient* dy, const float* x_hat,
                                                 const float* weight, float* dweight, float* dbias) {
  float g_sum = 0.0F, g_x_hat_sum = 0.0F;
  if (dweight != nullptr) {
#pragma omp simd reduction(+ : g_sum, g_x_hat_sum)
    for (std::int64_t i = 0; i < n; ++i) {
      const float upstream = load(dy + i), g = upstream * weight[i];
      g_sum += g;
      g_x_hat_sum += g * x_hat[i];
      dweight[i] += upstream * x_hat[i];
      dbias[i] += upstream;
    }
  } else {
#pragma omp simd reduction(+ : g_sum, g_x_hat_sum)
    for (std::int64_t i = 0; i < n; ++i) {
      const float g = load(dy + i) * weight[i];
      g_sum += g;
      g_x_hat_sum += g * x_hat[i];
    }
  }
  const float share = 1.0F / static_cast<float>(n);
  return {share * g_sum, share * g_x_hat_sum};
}

// The gradient with respect to one element of what was normalised.
ELECTRA_FAST_INLINE float gradient(float dy, float x_hat, float weight, const GradientMeans& means, float rstd) {
  return rstd * (dy * weight - means.g - x_hat * means.g_x_hat);
}

}  // namespace electra_fast
