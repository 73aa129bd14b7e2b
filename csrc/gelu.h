// Bias and exact GELU for CPU; electra_fast/ops/gelu.py says what it computes.
#pragma once

#include <cstdint>

#include "numeric.h"

namespace electra_fast {

// T is float or bfloat16.
template <class T>
struct BiasGELU {
  const T* x;         // [rows, width]
  const float* bias;  // [width]
  std::int64_t rows, width;
  T* y;  // [rows, width], every element of which is written
};

template <class T>
struct BiasGELUBackward {
  const T* dy;        // [rows, width]
  const T* x;         // [rows, width]
  const float* bias;  // [width]
  std::int64_t rows, width;
  // Outputs, every element of which is written.
  T* dx;         // [rows, width]; may be dy
  float* dbias;  // [width]
  T* y;          // [rows, width]: the forward's result once more; null where nobody needs it
};

void bias_gelu(const BiasGELU<float>& call, int threads);
void bias_gelu(const BiasGELU<bfloat16>& call, int threads);
void bias_gelu_backward(const BiasGELUBackward<float>& call, int threads);
void bias_gelu_backward(const BiasGELUBackward<bfloat16>& call, int threads);

}  // namespace electra_fast
