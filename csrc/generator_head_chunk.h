// What the passes of the generator's head over a chunk of rows share.
//
// Every logit, sum and product is taken in an order of its own, that no number of threads, rows or chunks changes: rows
// keep their bits whatever they come with. The weights' gradients, being sums over chunks, depend on these alone.
#pragma once

#include <cstdint>

#include "generator_head.h"
#include "numeric.h"

namespace electra_fast {

// A chunk of rows. Masses are exp(logit - the row's largest so far in the part of the vocabulary); that of the label is
// kept apart from those of the others, as 1 - p of a p near 1 would be rounded away in their sum.
struct Chunk {
  std::int64_t first, rows;          // in the call
  std::int64_t tile, tiles;          // tokens of a tile; how many tiles
  std::int64_t parts;                // of the vocabulary
  std::int64_t stride, padded;       // floats from row to row of a tile's masses, and of hidden
  float* hidden;                     // [rows, padded]
  float* masses;                     // [tiles, rows, stride]; the label's is 0
  float* largest;                    // [rows, tiles], so far; at last the factor that makes a tile's masses gradients
  float* mass;                       // [rows, tiles], of the others
  float *law_largest, *law_mass;     // [rows, tiles], of the sample's own law, if it has one
  float *label_logit, *label_mass;   // [rows], the mass measured as its tile
  float* label_gradient;             // [rows]: coefficient * (p - 1)
  float* sums;                       // [parts, rows, padded], of the others' masses times the weight
  std::int64_t* argmax;              // [parts, rows]

  std::int64_t first_tile(std::int64_t part) const { return tiles * part / parts; }
  float* tile_masses(std::int64_t t) const { return masses + t * rows * stride; }
};

inline bool has_own_law(const GeneratorHead& call) {
  return call.sampled_ids && (call.inverse_temperature != 1.0F || call.disallow_correct);
}

// sums += factor * weight
template <class T>
ELECTRA_FAST_INLINE void add_weight(const T* weight, float factor, std::int64_t width, float* sums) {
#pragma omp simd
  for (std::int64_t e = 0; e < width; ++e) sums[e] += factor * load(weight + e);
}

// What is said of rows [first, last) of the chunk, d_hidden included, once all masses are known.
void finish_rows(const GeneratorHead& call, const Chunk& chunk, std::int64_t first, std::int64_t last,
                 float* workspace);

}  // namespace electra_fast
