// The generator's head for CPU; electra_fast/ops/generator_head.py says what it computes.
#pragma once

#include <cstdint>

#include "matmul.h"

namespace electra_fast {

struct GeneratorHead {
  const void* hidden;  // [num_rows, width], float or bfloat16
  const void* weight;  // [vocab_size, width], likewise
  bool bfloat16;
  std::int64_t num_rows, vocab_size, width;
  std::int64_t chunk;          // rows whose masses are in memory at a time: 4 * chunk * vocab_size bytes, and a little
  const float* bias;           // [vocab_size]
  const std::int64_t* labels;  // [num_rows], in [0, vocab_size)
  float* nll;                  // [num_rows], or null
  float* largest;              // [num_rows], the largest logit, or null
  float* log_total;            // [num_rows], log(sum(exp(logits - largest))), or null
  // The sample, if `sampled_ids` are asked for: the inverse CDF at the number that `sample_tokens` takes.
  std::int64_t* sampled_ids;    // [num_rows], or null
  const std::int64_t* row_ids;  // [num_rows], or null for 0, 1, ...
  std::int64_t seed;
  std::uint32_t stream;
  float inverse_temperature;  // finite
  bool disallow_correct;
  std::int64_t* argmax_ids;  // [num_rows], or null; the first of equals
  // Gradients of sum(coefficients * nll), if `coefficients` are given: float32, in rows of head_stride(width) floats.
  const float* coefficients;  // [num_rows], or null; a row of coefficient 0 has gradient 0 whatever it holds
  float* d_hidden;            // [num_rows, head_stride(width)]
  float* d_weight;            // [vocab_size, head_stride(width)]
  float* d_bias;              // [vocab_size]
};

inline std::int64_t head_stride(std::int64_t width) { return round_up(width, kLanes); }

void generator_head(const GeneratorHead& call, int threads);

}  // namespace electra_fast
