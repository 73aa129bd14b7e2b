// Attention over packed sequences for CPU; electra_fast/ops/attention.py says what it computes.
#pragma once

#include <cstdint>

#include "numeric.h"

namespace electra_fast {

// A tensor [num_tokens, heads, head_dim]: the last dimension is contiguous, the others have strides in elements.
template <class T>
struct Heads {
  T* data;
  std::int64_t token_stride, head_stride;

  T* at(std::int64_t token, std::int64_t head) const { return data + token * token_stride + head * head_stride; }
};

template <class T>
struct Attention {
  // Inputs. cu_seqlens [num_sequences + 1] must be checked: it begins with 0, never decreases, ends at most at
  // num_tokens.
  Heads<const T> q, k, v;
  const std::int64_t* cu_seqlens;
  const std::int64_t* row_ids;  // [num_tokens], or null for 0..num_tokens-1
  std::int64_t num_tokens, num_sequences, heads, head_dim;
  float scale;
  // Dropout: words below this, in [0, 2^32], are dropped; 0 is no dropout. Kept probabilities are multiplied.
  std::uint64_t drop_below;
  float keep_scale;
  std::int64_t seed;
  std::uint32_t stream;
  const float* bias;  // [3, heads, head_dim], added to q, k and v, or null
};

// Writes out and the logarithm of each softmax's denominator, lse [heads, num_tokens]; zeros for the tail.
template <class T>
void attention(const Attention<T>& call, Heads<T> out, float* lse, int threads);

// Gradients with respect to q, k and v from that of the output; zeros for the tail. dbias is [3, heads, head_dim], the
// sums of these over the tokens, or null.
template <class T>
void attention_backward(const Attention<T>& call, const float* lse, Heads<const T> d_out, Heads<T> dq, Heads<T> dk,
                        Heads<T> dv, float* dbias, int threads);

}  // namespace electra_fast
