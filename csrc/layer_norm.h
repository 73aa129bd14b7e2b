// Layer normalisation of dropout(x) + residual for CPU; electra_fast/ops/layer_norm.py says what it computes.
#pragma once

#include <cstdint>

#include "rows.h"

namespace electra_fast {

// The rows that are normalised: those of x, dropped, and residual; or for the backward pass x itself, which is then the
// forward's `sum`, without residual, and what is dropped is dx alone. residual, y and their gradients share one type, x and dx another or the same.
struct LayerNormRows {
  const void* x;                // [num_rows, width]
  const void* residual;         // the same, or null: y has the type of x then
  const std::int64_t* row_ids;  // [num_rows], or null for 0..num_rows-1
  std::int64_t num_rows, width;  // width is at most kMaxWidth
  bool x_is_bfloat16, y_is_bfloat16;
  bool drops;
  Dropout dropout;
};

struct LayerNorm {
  LayerNormRows rows;
  const float* x_bias;  // [width], added to x before anything is dropped, or null
  const float* weight;  // [width], as is bias
  const float* bias;
  float eps;
  // Outputs, every element of which is written.
  void* y;      // [num_rows, width]
  float* mean;  // [num_rows], as is rstd
  float* rstd;
  float* sum;  // [num_rows, width], what was normalised; may be x. Null where nobody needs it; only for float
};

struct LayerNormBackward {
  LayerNormRows rows;
  const void* dy;
  const float* weight;
  const float* mean;
  const float* rstd;
  // Outputs, every element of which is written; null where nobody needs them. dweight and dbias go together.
  void* dx;
  void* dresidual;
  float* dweight;  // [width], as is dbias
  float* dbias;
  float* dx_bias;  // [width], the sum of dx over the rows; null where nobody needs it or dweight and dx are
};

void layer_norm(const LayerNorm& call, int threads);
void layer_norm_backward(const LayerNormBackward& call, int threads);

}  // namespace electra_fast
