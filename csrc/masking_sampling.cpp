#include "masking_sampling.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <vector>

#include "parallel.h"
#include "philox.h"

namespace electra_fast {
namespace {

constexpr std::uint32_t kMaskingStream = 0;
constexpr std::uint32_t kNever = 0xFFFFFFFF;  // below no bound; a candidate may have this key too
// About 0.1 ms of work. Less isn't worth a team: where another process holds a core, waiting for it took 16 ms.
constexpr std::int64_t kTokensPerThread = 16384;
constexpr std::int64_t kCopiesPerThread = 65536;

// What a thread needs for a sequence. On the heap, made once a call: the stacks of threads may be small.
struct Scratch {
  explicit Scratch(std::size_t longest, bool has_units)
      : keys(longest), decisions(longest), barred(longest), sizes(has_units ? longest : 0),
        queue(has_units ? longest : 0) {}

  std::vector<std::uint32_t> keys, decisions;  // words 0 and 1; the key is kNever where the token is no candidate
  std::vector<std::uint32_t> barred;           // 1 where the token is no candidate
  std::vector<std::uint32_t> sizes;            // of a unit, at its first candidate
  std::vector<std::uint64_t> queue;            // units: the key above the index of the first candidate
};

ELECTRA_FAST_INLINE void draw_one(std::uint64_t seed, std::int64_t row_id, std::uint32_t* key,
                                  std::uint32_t* decision) {
  const Words words = philox(seed, 0, static_cast<std::uint64_t>(row_id), kMaskingStream);
  *key = words.w0;
  *decision = words.w1;
}

// Fills keys, decisions and barred for the tokens [begin, begin + n); returns the number of candidates.
ELECTRA_FAST_CLONES
std::int64_t draw(const MaskTokens& call, std::int64_t begin, std::int64_t n, std::uint32_t* keys,
                  std::uint32_t* decisions, std::uint32_t* barred) {
  // Copies on the stack: what is written through the pointers might otherwise be the call itself.
  const std::int64_t *ids = call.input_ids + begin, *row_ids = call.row_ids;
  const auto seed = static_cast<std::uint64_t>(call.seed);
  if (row_ids) {  // two loops: GCC makes vector code of one, but not of a loop with this choice in it
    for (std::int64_t i = 0; i < n; ++i) draw_one(seed, row_ids[begin + i], keys + i, decisions + i);
  } else {
    for (std::int64_t i = 0; i < n; ++i) draw_one(seed, begin + i, keys + i, decisions + i);
  }
  std::fill(barred, barred + n, 0);
  for (std::int64_t j = 0; j < call.num_never; ++j) {
    const std::int64_t never = call.never_mask_ids[j];
    for (std::int64_t i = 0; i < n; ++i) barred[i] |= ids[i] == never ? 1 : 0;
  }
  std::uint32_t num_barred = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    keys[i] |= 0 - barred[i];
    num_barred += barred[i];
  }
  return n - num_barred;
}

struct Bound {
  std::uint32_t key;
  std::int64_t ties;  // how many of the tokens with just this key are picked beside all with smaller ones
};

// Where the `picks` smallest keys end: a search bit by bit, whose counting is vector code.
ELECTRA_FAST_CLONES
Bound find_bound(const std::uint32_t* keys, std::int64_t n, std::int64_t picks) {
  std::uint32_t last = 0;
  std::int64_t below = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const std::uint32_t trial = last | std::uint32_t{1} << bit;
    std::uint32_t count = 0;
    for (std::int64_t i = 0; i < n; ++i) count += keys[i] < trial;
    if (count == picks) return {trial, 0};
    if (count < picks) {
      last = trial;
      below = count;
    }
  }
  return {last, picks - below};
}

// Each of these leaves keys under which the picked tokens, and no others, lie below the bound that it returns.
std::uint32_t pick_tokens(std::int64_t n, std::int64_t picks, Scratch& scratch) {
  std::uint32_t* keys = scratch.keys.data();
  auto [bound, ties] = find_bound(keys, n, picks);
  if (ties == 0) return bound;
  for (std::int64_t i = 0; i < n; ++i) {
    if (keys[i] == bound) keys[i] = ties > 0 && !scratch.barred[i] ? (--ties, 0) : kNever;
  }
  return std::max<std::uint32_t>(bound, 1);
}

std::uint32_t pick_units(const std::uint8_t* unit_starts, std::int64_t n, std::int64_t picks, Scratch& scratch) {
  std::int64_t units = 0, first = -1;
  for (std::int64_t i = 0; i < n; ++i) {
    if (unit_starts[i]) first = -1;
    if (scratch.barred[i]) continue;
    if (first < 0) {
      first = i;
      scratch.sizes[first] = 0;
      scratch.queue[units++] = std::uint64_t{scratch.keys[i]} << 32 | static_cast<std::uint64_t>(i);
    }
    ++scratch.sizes[first];
  }
  std::fill_n(scratch.keys.begin(), n, kNever);
  auto begin = scratch.queue.begin(), end = begin + units;
  std::make_heap(begin, end, std::greater<>{});
  while (picks > 0 && begin != end) {
    std::pop_heap(begin, end--, std::greater<>{});
    auto i = static_cast<std::size_t>(*end & 0xFFFFFFFF);
    std::int64_t size = scratch.sizes[i];
    if (size > picks) continue;
    picks -= size;
    for (; size > 0; ++i) {
      if (scratch.barred[i]) continue;
      scratch.keys[i] = 0;
      --size;
    }
  }
  return 1;
}

// The most positions a sequence of n tokens gets, the rule in float32, rounding half to even.
std::int64_t budget(const MaskTokens& call, std::int64_t n) {
  const float share = static_cast<float>(n) * call.mask_prob;
  return std::max<std::int64_t>(1, std::min(static_cast<std::int64_t>(std::nearbyint(share)), call.max_per_sequence));
}

// Lists the picked tokens of one sequence in `picked`, ascending, as 2 * index + whether [MASK] replaces it, and
// returns how many there are. Writes one element more than that.
std::int64_t pick(const MaskTokens& call, std::int64_t begin, std::int64_t n, Scratch& scratch,
                  std::uint32_t* picked) {
  const std::uint32_t *keys = scratch.keys.data(), *decisions = scratch.decisions.data();
  const std::int64_t candidates =
      draw(call, begin, n, scratch.keys.data(), scratch.decisions.data(), scratch.barred.data());
  const std::int64_t picks = std::min(candidates, budget(call, n));
  if (picks == 0) return 0;
  const std::uint32_t bound =
      call.unit_starts ? pick_units(call.unit_starts + begin, n, picks, scratch) : pick_tokens(n, picks, scratch);
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < n; ++i) {  // without a branch, which would be mispredicted at each pick
    picked[count] = static_cast<std::uint32_t>(i << 1 | (decisions[i] < call.replace_below));
    count += keys[i] < bound;
  }
  return count;
}

// Writes the slots of one sequence from `slot` on, as far as there are slots.
void write(const MaskTokens& call, std::int64_t begin, const std::uint32_t* picked, std::int64_t count,
           std::int64_t slot) {
  count = std::min(count, call.num_masked - slot);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t position = begin + (picked[i] >> 1);
    call.positions[slot + i] = position;
    call.labels[slot + i] = call.input_ids[position];
    call.weights[slot + i] = 1.0F;
    if (picked[i] & 1) call.masked_ids[position] = call.mask_token_id;
  }
}

}  // namespace

void mask_tokens(const MaskTokens& call, int threads) {
  const std::int64_t sequences = call.num_sequences;
  const std::int64_t* starts = call.cu_seqlens;
  std::int64_t longest = 0;
  std::vector<std::int64_t> rooms(static_cast<std::size_t>(sequences) + 1, 0);  // where each list of picks begins
  for (std::int64_t s = 0; s < sequences; ++s) {
    const std::int64_t n = starts[s + 1] - starts[s];
    longest = std::max(longest, n);
    rooms[s + 1] = rooms[s] + std::min(budget(call, n), n) + 1;
  }
  std::vector<std::uint32_t> picked(static_cast<std::size_t>(rooms.back()));
  std::vector<std::int64_t> slots(static_cast<std::size_t>(sequences) + 1, 0);

  const std::int64_t parts =
      std::max<std::int64_t>(1, std::min<std::int64_t>({threads, sequences, call.num_tokens / kTokensPerThread}));
  std::vector<Scratch> scratches(static_cast<std::size_t>(parts),
                                 Scratch(static_cast<std::size_t>(longest), call.unit_starts != nullptr));
  parallel_for(parts, threads, 1, [&](std::int64_t first, std::int64_t last) noexcept {
    for (std::int64_t part = first; part < last; ++part) {
      for (std::int64_t s = sequences * part / parts; s < sequences * (part + 1) / parts; ++s) {
        std::copy(call.input_ids + starts[s], call.input_ids + starts[s + 1], call.masked_ids + starts[s]);
        slots[s + 1] = pick(call, starts[s], starts[s + 1] - starts[s], scratches[part], picked.data() + rooms[s]);
      }
    }
  });
  std::copy(call.input_ids + starts[sequences], call.input_ids + call.num_tokens, call.masked_ids + starts[sequences]);
  for (std::size_t s = 1; s < slots.size(); ++s) slots[s] += slots[s - 1];

  for (std::int64_t s = 0; s < sequences && slots[s] < call.num_masked; ++s) {
    write(call, starts[s], picked.data() + rooms[s], slots[s + 1] - slots[s], slots[s]);
  }
  for (std::int64_t slot = slots.back(); slot < call.num_masked; ++slot) {
    call.positions[slot] = 0;
    call.labels[slot] = call.num_tokens > 0 ? call.input_ids[0] : 0;
    call.weights[slot] = 0.0F;
  }
}

void corrupt_tokens(const CorruptTokens& call, int threads) {
  parallel_for(call.num_tokens, threads, kCopiesPerThread, [&](std::int64_t first, std::int64_t last) noexcept {
    std::copy(call.input_ids + first, call.input_ids + last, call.corrupted_ids + first);
    std::fill(call.is_replaced + first, call.is_replaced + last, std::uint8_t{0});
  });
  for (std::int64_t slot = 0; slot < call.num_slots; ++slot) {
    if (!(call.weights[slot] > 0.0F)) continue;
    const std::int64_t position = call.positions[slot];
    call.corrupted_ids[position] = call.sampled_ids[slot];
    call.is_replaced[position] = call.sampled_ids[slot] != call.input_ids[position];
  }
}

}  // namespace electra_fast
