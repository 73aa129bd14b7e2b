#include "masking_sampling.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "philox.h"

namespace electra_fast {
namespace {

constexpr std::uint32_t kMaskingStream = 0;
constexpr std::int64_t kTile = 256;  // tokens whose random numbers are made at a time
// About 0.4 ms of work. Less isn't worth a team: where another process holds a core, waiting for it took 16 ms.
constexpr std::int64_t kTokensPerThread = 16384;

// Words 0 and 1 of the tokens [begin, begin + n).
ELECTRA_FAST_CLONES
void draw(std::uint64_t seed, const std::int64_t* row_ids, std::int64_t begin, std::int64_t n, std::uint32_t* keys,
          std::uint32_t* decisions) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t row_id = row_ids ? row_ids[begin + i] : begin + i;
    const Words words = philox(seed, 0, static_cast<std::uint64_t>(row_id), kMaskingStream);
    keys[i] = words.w0;
    decisions[i] = words.w1;
  }
}

bool is_candidate(const MaskTokens& call, std::int64_t token) {
  for (std::int64_t i = 0; i < call.num_never; ++i) {
    if (call.input_ids[token] == call.never_mask_ids[i]) return false;
  }
  return true;
}

// How many positions a sequence gets: the rule in float32, rounding half to even, and no more than its candidates.
std::int64_t count_picks(const MaskTokens& call, std::int64_t begin, std::int64_t end) {
  const float share = static_cast<float>(end - begin) * call.mask_prob;
  const auto budget = static_cast<std::int64_t>(std::nearbyint(share));
  std::int64_t candidates = 0;
  for (std::int64_t token = begin; token < end; ++token) candidates += is_candidate(call, token);
  return std::min(candidates, std::max<std::int64_t>(1, std::min(budget, call.max_per_sequence)));
}

// Masks one sequence; its first position takes `slot`.
void mask_sequence(const MaskTokens& call, std::int64_t begin, std::int64_t end, std::int64_t picks,
                   std::int64_t slot) {
  if (picks == 0) return;
  // A candidate's key above its index: distinct, and ties of keys go to the first position.
  std::uint64_t candidates[kMaxSequenceLength], ranked[kMaxSequenceLength];
  std::uint32_t keys[kTile], decisions[kMaxSequenceLength];
  std::int64_t count = 0;
  for (std::int64_t tile = begin; tile < end; tile += kTile) {
    const std::int64_t size = std::min(kTile, end - tile);
    draw(static_cast<std::uint64_t>(call.seed), call.row_ids, tile, size, keys, decisions + (tile - begin));
    for (std::int64_t i = 0; i < size; ++i) {
      candidates[count] = std::uint64_t{keys[i]} << 32 | static_cast<std::uint64_t>(tile + i - begin);
      count += is_candidate(call, tile + i);
    }
  }
  std::copy(candidates, candidates + count, ranked);
  std::nth_element(ranked, ranked + (picks - 1), ranked + count);
  const std::uint64_t last = ranked[picks - 1];

  for (std::int64_t i = 0; i < count && slot < call.num_masked; ++i) {
    if (candidates[i] > last) continue;
    const auto index = static_cast<std::int64_t>(candidates[i] & 0xFFFFFFFF);
    call.positions[slot] = begin + index;
    call.labels[slot] = call.input_ids[begin + index];
    call.weights[slot] = 1.0F;
    if (decisions[index] < call.replace_below) call.masked_ids[begin + index] = call.mask_token_id;
    ++slot;
  }
}

}  // namespace

void mask_tokens(const MaskTokens& call, int threads) {
  std::copy(call.input_ids, call.input_ids + call.num_tokens, call.masked_ids);
  const std::int64_t sequences = call.num_sequences;
  const std::int64_t grain = kTokensPerThread * sequences / std::max<std::int64_t>(call.num_tokens, 1) + 1;

  std::vector<std::int64_t> slots(static_cast<std::size_t>(sequences) + 1, 0);
  parallel_for(sequences, threads, grain, [&](std::int64_t first, std::int64_t last) noexcept {
    for (std::int64_t s = first; s < last; ++s) {
      slots[static_cast<std::size_t>(s) + 1] = count_picks(call, call.cu_seqlens[s], call.cu_seqlens[s + 1]);
    }
  });
  for (std::size_t s = 1; s < slots.size(); ++s) slots[s] += slots[s - 1];

  parallel_for(sequences, threads, grain, [&](std::int64_t first, std::int64_t last) noexcept {
    for (std::int64_t s = first; s < last; ++s) {
      const std::int64_t slot = slots[static_cast<std::size_t>(s)];
      mask_sequence(call, call.cu_seqlens[s], call.cu_seqlens[s + 1], slots[static_cast<std::size_t>(s) + 1] - slot, slot);
    }
  });

  for (std::int64_t slot = slots.back(); slot < call.num_masked; ++slot) {
    call.positions[slot] = 0;
    call.labels[slot] = call.num_tokens > 0 ? call.input_ids[0] : 0;
    call.weights[slot] = 0.0F;
  }
}

}  // namespace electra_fast
