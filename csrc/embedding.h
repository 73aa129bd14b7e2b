// Embeddings, summed, normalised and dropped out, for CPU; electra_fast/ops/embedding.py says what they compute.
#pragma once

#include <cstdint>

#include "rows.h"

namespace electra_fast {

struct EmbeddingRows {
  // Tables, float or bfloat16; ids must lie inside.
  const void *word, *token_type, *position;  // [words, width], [types, width], [positions, width]
  bool is_bfloat16;
  const float* weight;  // [width] of LayerNorm
  const std::int64_t* input_ids;
  const std::int64_t* token_type_ids;  // or null: all of type 0
  const std::int64_t* position_ids;
  const std::int64_t* row_ids;  // or null: 0..num_tokens-1
  std::int64_t num_tokens, width;
  bool has_dropout;
  Dropout dropout;
};

struct EmbeddingLayerNorm {
  EmbeddingRows rows;
  const float* bias;
  float eps;
  // Outputs, every element of which is written.
  void* y;       // [num_tokens, width]
  float* stats;  // [2, num_tokens]: mean and 1 / standard deviation
};

struct EmbeddingLayerNormBackward {
  EmbeddingRows rows;
  const void* dy;      // [num_tokens, width]
  const float* stats;  // as the forward gave it
  std::int64_t num_words, num_types, num_positions;
  std::int64_t padding_idx;  // row of dword left 0; -1 for none
  // Outputs, every element of which is written; null where nobody needs it.
  void *dword, *dtoken_type, *dposition;
  float *dweight, *dbias;  // [width]
};

// The index of the first id outside [0, size), or -1.
std::int64_t find_outside(const std::int64_t* ids, std::int64_t n, std::int64_t size);

void embedding_layer_norm(const EmbeddingLayerNorm& call, int threads);
void embedding_layer_norm_backward(const EmbeddingLayerNormBackward& call, int threads);

}  // namespace electra_fast
