// The gradient of a linear layer's weight for CPU; electra_fast/models/weight_gradient.py says when it is used.
#pragma once

#include <cstdint>

namespace electra_fast {

struct WeightGradient {
  // Inputs, float32: rows are contiguous and `stride` elements apart.
  const float* dy;  // [tokens, outputs], the gradient of y = x weight^T
  const float* x;   // [tokens, inputs]
  std::int64_t dy_stride, x_stride;
  std::int64_t tokens;
  std::int64_t outputs;  // a multiple of 16
  std::int64_t inputs;   // a multiple of 64
  bool accumulate;
  // Output, contiguous: dy^T x, or that added to what is there.
  float* dweight;  // [outputs, inputs]
};

// Every sum is of blocks of 128 tokens, in order: the same bits for any number of threads.
void weight_gradient(const WeightGradient& call, int threads);

}  // namespace electra_fast
