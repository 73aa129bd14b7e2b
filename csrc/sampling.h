// Drawing tokens from softmaxes for CPU; electra_fast/ops/masking_sampling.py says what it computes.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cstdint>

#include "numeric.h"
#include "philox.h"

namespace electra_fast {

struct SampleTokens {
  const void* logits;  // [num_rows, vocab_size], float or bfloat16, rows `row_stride` elements apart
  bool bfloat16;
  std::int64_t num_rows, vocab_size, row_stride;
  const std::int64_t* row_ids;   // [num_rows], or null for 0..num_rows-1
  const std::int64_t* disallow;  // [num_rows], in [0, vocab_size), or null
  std::int64_t seed;
  std::uint32_t stream;
  float inverse_temperature;      // finite
  std::int64_t* sampled_ids;      // [num_rows], every element of which is written
};

void sample_tokens(const SampleTokens& call, int threads);

// --- one row, for this kernel and the generator head's ---

constexpr std::int64_t kTileStep = 512;  // small enough that its second reading finds it in the first cache
constexpr std::int64_t kMaxTiles = 1024;  // 12 KiB of the stack; larger vocabularies have wider tiles

// The masses exp((score - largest) / temperature) of a row, summed by tiles. A tile is measured against the largest
// score so far, so that one pass over memory is enough; `common_scale` makes them comparable.
struct TileMasses {
  std::int64_t width, count;
  float largest[kMaxTiles];
  double mass[kMaxTiles];
};

ELECTRA_FAST_INLINE double uniform53(const Words& words) {
  const std::uint64_t bits = (std::uint64_t{words.w0} >> 5 << 26) + (words.w1 >> 6);
  return static_cast<double>(bits) * 0x1p-53;
}

template <class T>
ELECTRA_FAST_INLINE float largest_of(const T* scores, std::int64_t size, float largest) {
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < size; ++i) {
    const float score = load(scores + i);
    largest = score > largest ? score : largest;
  }
  return largest;
}

template <class T>
ELECTRA_FAST_INLINE float mass_of(const T* scores, std::int64_t size, float largest, float inverse_temperature) {
  float mass = 0.0F;
#pragma omp simd reduction(+ : mass)
  for (std::int64_t i = 0; i < size; ++i) mass += exp_nonpositive((load(scores + i) - largest) * inverse_temperature);
  return mass;
}

ELECTRA_FAST_INLINE void set_tiles(std::int64_t size, TileMasses& tiles) {
  tiles.width = kTileStep * ((size + kTileStep * kMaxTiles - 1) / (kTileStep * kMaxTiles));
  tiles.count = (size + tiles.width - 1) / tiles.width;
}

template <class T>
ELECTRA_FAST_INLINE void measure_tiles(const T* row, std::int64_t size, std::int64_t skipped,
                                       float inverse_temperature, TileMasses& tiles) {
  set_tiles(size, tiles);
  float largest = -FLT_MAX;  // finite, so that -inf has mass 0 beside it and not NaN
  for (std::int64_t t = 0; t < tiles.count; ++t) {
    // Without the token to skip, a tile is one or two pieces.
    const std::int64_t begin = t * tiles.width, end = std::min(begin + tiles.width, size);
    const bool split = begin <= skipped && skipped < end;
    const std::int64_t first = split ? skipped + 1 : begin;
    largest = largest_of(row + first, end - first, largest);
    if (split) largest = largest_of(row + begin, skipped - begin, largest);
    tiles.largest[t] = largest;
    tiles.mass[t] = mass_of(row + first, end - first, largest, inverse_temperature);
    if (split) tiles.mass[t] += mass_of(row + begin, skipped - begin, largest, inverse_temperature);
  }
}

// Measures every tile against the largest score of the row; returns the sum.
ELECTRA_FAST_INLINE double common_scale(TileMasses& tiles, float inverse_temperature) {
  const float largest = tiles.largest[tiles.count - 1];
  double total = 0.0;
  for (std::int64_t t = 0; t < tiles.count; ++t) {
    tiles.mass[t] *= exp_nonpositive((tiles.largest[t] - largest) * inverse_temperature);
    total += tiles.mass[t];
  }
  return total;
}

// The tile in which the running sum passes `aim`, which becomes the share of the tile's mass that is left to go.
inline std::int64_t find_tile(const TileMasses& tiles, double& aim) {
  double before = 0.0;
  std::int64_t found = 0;
  double rest = 0.0;
  for (std::int64_t t = 0; t < tiles.count; ++t) {
    if (!(tiles.mass[t] > 0.0)) continue;
    found = t;  // should rounding leave `aim` above them all, it is the last one with a mass
    rest = aim - before;
    before += tiles.mass[t];
    if (before > aim) break;
  }
  aim = rest / tiles.mass[found];
  return found;
}

// The token of one tile at which the running sum of masses passes `share` of their total.
template <class T>
ELECTRA_FAST_INLINE std::int64_t find_token(const T* row, std::int64_t begin, std::int64_t end, std::int64_t skipped,
                                            float largest, float inverse_temperature, double share) {
  // Tiles of a vocabulary above kTileStep * kMaxTiles are wider than one step.
  float masses[kTileStep];
  const auto fill = [&](std::int64_t first) {
    const std::int64_t size = std::min(kTileStep, end - first);
    for (std::int64_t i = 0; i < size; ++i) masses[i] = exp_nonpositive((load(row + first + i) - largest) * inverse_temperature);
    if (skipped >= first && skipped < first + size) masses[skipped - first] = 0.0F;
    return size;
  };
  double total = 0.0;
  for (std::int64_t first = begin; first < end; first += kTileStep) {
    const std::int64_t size = fill(first);
#pragma omp simd reduction(+ : total)
    for (std::int64_t i = 0; i < size; ++i) total += masses[i];
  }
  const double aim = share * total;
  double sum = 0.0;
  std::int64_t found = begin;  // the last one with a mass, should rounding leave `aim` above them all
  for (std::int64_t first = begin; first < end; first += kTileStep) {
    const std::int64_t size = fill(first);
    for (std::int64_t i = 0; i < size; ++i) {
      if (!(masses[i] > 0.0F)) continue;
      found = first + i;
      sum += masses[i];
      if (sum > aim) return found;
    }
  }
  return found;
}

// One token by the inverse CDF at `uniform`, in vocabulary order. A row with a NaN gives some token of the vocabulary.
template <class T>
ELECTRA_FAST_INLINE std::int64_t draw_token(const T* row, std::int64_t size, std::int64_t skipped,
                                            float inverse_temperature, double uniform) {
  TileMasses tiles;
  measure_tiles(row, size, skipped, inverse_temperature, tiles);
  double aim = uniform * common_scale(tiles, inverse_temperature);
  const std::int64_t tile = find_tile(tiles, aim), begin = tile * tiles.width;
  return find_token(row, begin, std::min(begin + tiles.width, size), skipped, tiles.largest[tile],
                    inverse_temperature, aim);
}

}  // namespace electra_fast
