#include "rtd_bce.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <numeric>
#include <vector>

#include "parallel.h"

namespace electra_fast {
namespace {

constexpr std::int64_t kBlock = 1024;  // tokens, as many as fit in the first-level cache with what is made of them
constexpr std::int64_t kBlocksPerThread = 32;  // about 50 us of work
constexpr float kBinsPerLogit = 32.0F;
constexpr std::int32_t kBins = kHistogramBins;
constexpr std::int32_t kMaskedOut = 2 * kBins;  // the bin of tokens that don't count

struct BlockSums {
  double loss;
  std::int32_t count, replaced, predicted, true_positives;
};

// `a` where `mask` is all ones, `b` where it is 0. By bits, since compilers make branches of several `?:` on the same
// condition, and then no vector code.
ELECTRA_FAST_INLINE float select(std::uint32_t mask, float a, float b) {
  return float_of((bits_of(a) & mask) | (bits_of(b) & ~mask));
}

// log(1 + e) for e in [0, 1], to 1e-7 of its value: 2 atanh(s) with s = e / (2 + e), a polynomial in s^2 <= 1/9.
ELECTRA_FAST_INLINE float log1p(float e) {
  const float s = e / (2.0F + e);
  const float t = s * s;
  float p = 0.140891671F;
  p = p * t + 0.139803007F;
  p = p * t + 0.200124547F;
  p = p * t + 0.333331585F;
  return 2.0F * (s + s * t * p);
}

// clamp(floor(32 * logit) + 512, 0, 1023), exactly; NaN counts as 0.
ELECTRA_FAST_INLINE std::int32_t bin_of(float logit) {
  constexpr float lowest = -kBins / 2 / kBinsPerLogit, highest = (kBins / 2 - 1) / kBinsPerLogit;
  float inside = logit == logit ? logit : 0.0F;
  inside = inside < lowest ? lowest : inside;
  inside = inside > highest ? highest : inside;
  const float scaled = inside * kBinsPerLogit;
  const auto whole = static_cast<std::int32_t>(scaled);  // towards zero
  return whole - (static_cast<float>(whole) > scaled) + kBins / 2;
}

template <class T>
ELECTRA_FAST_INLINE BlockSums run_block(const T* logits, const std::uint8_t* is_replaced, const std::uint8_t* mask,
                                        std::int64_t n, T* gradient, std::int32_t* bins) {
  // Widened first: the loop that computes has four-byte types only, which fill whole vectors.
  float scores[kBlock], losses[kBlock];
  std::int32_t labels[kBlock], weights[kBlock];
  for (std::int64_t i = 0; i < n; ++i) scores[i] = load(logits + i);
  for (std::int64_t i = 0; i < n; ++i) labels[i] = is_replaced[i] != 0;
  for (std::int64_t i = 0; i < n; ++i) weights[i] = mask[i] != 0;

  std::int32_t count = 0, replaced = 0, predicted = 0, true_positives = 0;
#pragma omp simd reduction(+ : count, replaced, predicted, true_positives)
  for (std::int64_t i = 0; i < n; ++i) {
    const float x = scores[i];
    const std::int32_t y = labels[i], m = weights[i], positive = x > 0.0F;
    const std::uint32_t sign = static_cast<std::uint32_t>(y) << 31, kept = static_cast<std::uint32_t>(-m);
    const float wrong = float_of(bits_of(x) ^ sign);  // how far the logit lies on the wrong side
    const std::uint32_t is_right = static_cast<std::uint32_t>(static_cast<std::int32_t>(bits_of(wrong)) >> 31);
    const float e = exp(-std::fabs(wrong));
    const float probability = select(is_right, e, 1.0F) / (1.0F + e);
    losses[i] = select(kept, select(is_right, 0.0F, wrong) + log1p(e), 0.0F);
    scores[i] = select(kept, float_of(bits_of(probability) ^ sign), 0.0F);
    count += m;
    replaced += m & y;
    predicted += m & positive;
    true_positives += m & y & positive;
    bins[i] = kMaskedOut + m * (bin_of(x) + y * kBins - kMaskedOut);
  }
  for (std::int64_t i = 0; i < n; ++i) store(gradient + i, scores[i]);
  double loss = 0.0;
#pragma omp simd reduction(+ : loss)
  for (std::int64_t i = 0; i < n; ++i) loss += losses[i];
  return {loss, count, replaced, predicted, true_positives};
}

ELECTRA_FAST_CLONES
BlockSums block(const float* logits, const std::uint8_t* is_replaced, const std::uint8_t* mask, std::int64_t n,
                float* gradient, std::int32_t* bins) {
  return run_block(logits, is_replaced, mask, n, gradient, bins);
}

ELECTRA_FAST_CLONES
BlockSums block(const bfloat16* logits, const std::uint8_t* is_replaced, const std::uint8_t* mask, std::int64_t n,
                bfloat16* gradient, std::int32_t* bins) {
  return run_block(logits, is_replaced, mask, n, gradient, bins);
}

template <class T>
void run(const RTDBCE<T>& call, int threads) {
  std::fill(call.counts, call.counts + 5, 0);
  std::fill(call.histogram, call.histogram + 2 * kHistogramBins, 0);
  const std::int64_t blocks = (call.num_tokens + kBlock - 1) / kBlock;
  std::vector<double> losses(static_cast<std::size_t>(blocks));
  std::mutex adding;

  parallel_for(blocks, threads, kBlocksPerThread, [&](std::int64_t first, std::int64_t last) noexcept {
    std::int64_t counts[4] = {}, histogram[kMaskedOut + 1] = {};
    std::int32_t bins[kBlock];
    T unwanted[kBlock];
    for (std::int64_t b = first; b < last; ++b) {
      const std::int64_t begin = b * kBlock, n = std::min(kBlock, call.num_tokens - begin);
      const BlockSums sums = block(call.logits + begin, call.is_replaced + begin, call.mask + begin, n,
                                   call.gradient ? call.gradient + begin : unwanted, bins);
      losses[static_cast<std::size_t>(b)] = sums.loss;
      counts[0] += sums.count;
      counts[1] += sums.replaced;
      counts[2] += sums.predicted;
      counts[3] += sums.true_positives;
      for (std::int64_t i = 0; i < n; ++i) ++histogram[bins[i]];
    }
    // Whole numbers: the order in which threads add them does not show.
    const std::lock_guard<std::mutex> lock(adding);
    const auto [count, replaced, predicted, true_positives] = counts;
    call.counts[0] += count;
    call.counts[1] += true_positives;
    call.counts[2] += predicted - true_positives;
    call.counts[3] += count - replaced - predicted + true_positives;
    call.counts[4] += replaced - true_positives;
    for (std::int64_t bin = 0; bin < 2 * kHistogramBins; ++bin) call.histogram[bin] += histogram[bin];
  });
  *call.loss_sum = static_cast<float>(std::accumulate(losses.begin(), losses.end(), 0.0));
}

}  // namespace

void rtd_bce(const RTDBCE<float>& call, int threads) { run(call, threads); }
void rtd_bce(const RTDBCE<bfloat16>& call, int threads) { run(call, threads); }

}  // namespace electra_fast
