// Masking and corruption for CPU; electra_fast/ops/masking_sampling.py says what they compute.
#pragma once

#include <cstdint>

namespace electra_fast {

struct MaskTokens {
  // Inputs. cu_seqlens [num_sequences + 1] must be checked: it begins with 0, never decreases, ends at most at
  // num_tokens, and no sequence is longer than kMaxSequenceLength.
  const std::int64_t* input_ids;    // [num_tokens]
  const std::int64_t* cu_seqlens;   // [num_sequences + 1]
  const std::int64_t* row_ids;      // [num_tokens], or null for 0..num_tokens-1
  const std::uint8_t* unit_starts;  // [num_tokens], 0 or 1, or null where each token is a unit
  const std::int64_t* never_mask_ids;
  std::int64_t num_tokens, num_sequences, num_never, num_masked;
  std::int64_t seed, mask_token_id, max_per_sequence;
  float mask_prob;
  std::uint64_t replace_below;  // in [0, 2^32]
  // Outputs, every element of which is written.
  std::int64_t* masked_ids;  // [num_tokens]
  std::int64_t* positions;   // [num_masked], as are the two below
  std::int64_t* labels;
  float* weights;
};

struct CorruptTokens {
  // Inputs. positions must be checked: in [0, num_tokens) where weights are positive.
  const std::int64_t* input_ids;  // [num_tokens]
  const std::int64_t* positions;  // [num_slots], as are the two below
  const std::int64_t* sampled_ids;
  const float* weights;
  std::int64_t num_tokens, num_slots;
  // Outputs, every element of which is written.
  std::int64_t* corrupted_ids;  // [num_tokens]
  std::uint8_t* is_replaced;    // [num_tokens], 0 or 1
};

constexpr std::int64_t kMaxSequenceLength = 8192;

void mask_tokens(const MaskTokens& call, int threads);
void corrupt_tokens(const CorruptTokens& call, int threads);

}  // namespace electra_fast
