// Drawing tokens from softmaxes for CPU; electra_fast/ops/sampling.py says what it computes.
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

struct Place {
  std::int64_t tile;
  double share;  // of the tile's mass, in [0, 1]
};

// Where the running sum of the tiles' masses passes `aim`; in the last tile with a mass, should rounding leave it above
// them all.
inline Place find_place(const TileMasses& tiles, double aim) {
  double before = 0.0;
  Place found{0, 0.0};
  for (std::int64_t t = 0; t < tiles.count; ++t) {
    if (!(tiles.mass[t] > 0.0)) continue;
    found = {t, (aim - before) / tiles.mass[t]};
    before += tiles.mass[t];
    if (before > aim) break;
  }
  return found;
}

// The index at which the running sum of masses passes `share` of their total; the last one with a mass, should rounding
// leave none.
inline std::int64_t find_mass(const float* masses, std::int64_t size, double share) {
  double total = 0.0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t i = 0; i < size; ++i) total += masses[i];
  const double aim = share * total;
  double sum = 0.0;
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < size; ++i) {
    if (!(masses[i] > 0.0F)) continue;
    found = i;
    sum += masses[i];
    if (sum > aim) break;
  }
  return found;
}

// One token by the inverse CDF at `uniform`, in vocabulary order. A row with a NaN gives some token of the vocabulary.
template <class T>
ELECTRA_FAST_INLINE std::int64_t draw_token(const T* row, std::int64_t size, std::int64_t skipped,
                                            float inverse_temperature, double uniform) {
  std::int64_t begin = 0, end = size;
  // Once to a tile of one step; vocabularies above kTileStep * kMaxTiles have wider tiles, and go through this twice.
  while (end - begin > kTileStep) {
    TileMasses tiles;
    measure_tiles(row + begin, end - begin, skipped - begin, inverse_temperature, tiles);
    const Place place = find_place(tiles, uniform * common_scale(tiles, inverse_temperature));
    begin += place.tile * tiles.width;
    end = std::min(begin + tiles.width, end);
    uniform = place.share;
  }
  float masses[kTileStep];
  float largest = largest_of(row + begin, end - begin, -FLT_MAX);
  if (begin <= skipped && skipped < end) {
    largest = largest_of(row + begin, skipped - begin, -FLT_MAX);
    largest = largest_of(row + skipped + 1, end - skipped - 1, largest);
  }
  for (std::int64_t i = begin; i < end; ++i) {
    masses[i - begin] = exp_nonpositive((load(row + i) - largest) * inverse_temperature);
  }
  if (begin <= skipped && skipped < end) masses[skipped - begin] = 0.0F;
  return begin + find_mass(masses, end - begin, uniform);
}

}  // namespace electra_fast
