// The generator's head between its matrix products, for CPU; electra_fast/ops/generator_head.py says what it computes.
#pragma once

#include <cstdint>

namespace electra_fast {

struct HeadRows {
  // Logits without their bias. Where `coefficients` are given they become the gradient: coefficient * (softmax - onehot).
  float* logits;  // [num_rows, vocab_size]
  std::int64_t num_rows, vocab_size;
  const float* bias;            // [vocab_size]
  const std::int64_t* labels;   // [num_rows], in [0, vocab_size)
  const float* coefficients;    // [num_rows], or null; a row of coefficient 0 has gradient 0 whatever it holds
  float* nll;                   // [num_rows], or null
  float* largest;               // [num_rows], the largest logit, or null
  float* log_total;             // [num_rows], log(sum(exp(logits - largest))), or null
  // The sample, if `sampled_ids` are asked for; it is the one of `sample_tokens`.
  std::int64_t* sampled_ids;    // [num_rows], or null
  const std::int64_t* row_ids;  // [num_rows], or null for first_row, first_row + 1, ...
  std::int64_t first_row, seed;
  std::uint32_t stream;
  float inverse_temperature;  // finite
  bool disallow_correct;
  std::int64_t* argmax_ids;  // [num_rows], or null; the first of equals
  // With coefficients: the gradient's column sums are added to d_bias, by way of `partial_sums`.
  float* partial_sums;  // [kHeadBlocks, vocab_size], uninitialised
  float* d_bias;        // [vocab_size]
};

// Rows are taken in this many blocks, whatever the number of threads, so that the column sums have the same bits.
constexpr std::int64_t kHeadBlocks = 32;

void head_rows(const HeadRows& call, int threads);

}  // namespace electra_fast
