// The discriminator's loss for CPU; electra_fast/ops/rtd_bce.py says what it computes.
#pragma once

#include <cstdint>

#include "numeric.h"

namespace electra_fast {

constexpr std::int64_t kHistogramBins = 1024;

// T is float or bfloat16.
template <class T>
struct RTDBCE {
  const T* logits;                  // [num_tokens], as are the two below
  const std::uint8_t* is_replaced;  // 0 or 1
  const std::uint8_t* mask;         // 0 or 1
  std::int64_t num_tokens;
  // Outputs, every element of which is written.
  float* loss_sum;
  std::int64_t* counts;     // [5]: count, true positives, false positives, true negatives, false negatives
  std::int64_t* histogram;  // [2, kHistogramBins]
  T* gradient;              // [num_tokens], of loss_sum with respect to the logits; null where not wanted
};

void rtd_bce(const RTDBCE<float>& call, int threads);
void rtd_bce(const RTDBCE<bfloat16>& call, int threads);

}  // namespace electra_fast
