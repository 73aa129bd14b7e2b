// Loss, sample, argmax and d_hidden of a row, from what its tiles measured.
#include <cmath>

#include "generator_head_chunk.h"
#include "sampling.h"

namespace electra_fast {
namespace {

template <class T>
ELECTRA_FAST_INLINE float dot(const T* weight, const float* hidden, std::int64_t width) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t e = 0; e < width; ++e) sum += load(weight + e) * hidden[e];
  return sum;
}

// Each tile's masses in terms of the largest logit of all; returns that.
ELECTRA_FAST_INLINE float make_scales(const float* largest, std::int64_t tiles, float inverse_temperature,
                                      float* scales) {
  const float top = largest_of(largest, tiles, -FLT_MAX);
#pragma omp simd
  for (std::int64_t t = 0; t < tiles; ++t) scales[t] = exp_nonpositive((largest[t] - top) * inverse_temperature);
  return top;
}

// The tile in which the running sum of masses passes `uniform` of their total; the last with a mass, should rounding
// leave none.
Place choose_tile(const float* mass, const float* scales, std::int64_t tiles, double uniform) {
  double total = 0.0, before = 0.0;
  for (std::int64_t t = 0; t < tiles; ++t) total += static_cast<double>(mass[t]) * scales[t];
  const double aim = uniform * total;
  Place found{0, 0.0};
  for (std::int64_t t = 0; t < tiles; ++t) {
    const double each = static_cast<double>(mass[t]) * scales[t];
    if (!(each > 0.0)) continue;
    found = {t, (aim - before) / each};
    before += each;
    if (before > aim) break;
  }
  return found;
}

double uniform_of(const GeneratorHead& call, std::int64_t row) {
  const std::int64_t row_id = call.row_ids ? call.row_ids[row] : row;
  return uniform53(philox(static_cast<std::uint64_t>(call.seed), 0, static_cast<std::uint64_t>(row_id), call.stream));
}

// By the masses that are there; the label's is put among them for as long as it takes.
std::int64_t draw(const Chunk& chunk, std::int64_t i, std::int64_t label, const float* scales, double uniform,
                  std::int64_t vocab_size) {
  chunk.mass[i * chunk.tiles + label / chunk.tile] += chunk.label_mass[i];
  float& label_mass = chunk.tile_masses(label / chunk.tile)[i * chunk.stride + label % chunk.tile];
  label_mass = chunk.label_mass[i];
  const Place place = choose_tile(chunk.mass + i * chunk.tiles, scales, chunk.tiles, uniform);
  const std::int64_t begin = place.tile * chunk.tile;
  const float* row = chunk.tile_masses(place.tile) + i * chunk.stride;
  const std::int64_t token = begin + find_mass(row, std::min(chunk.tile, vocab_size - begin), place.share);
  label_mass = 0.0F;
  return token;
}

// By a law of its own: the logits of the tile are made again.
template <class T>
ELECTRA_FAST_INLINE std::int64_t draw_by_own_law(const GeneratorHead& call, const Chunk& chunk, std::int64_t i,
                                                 std::int64_t label, float* scales, double uniform, float* masses) {
  make_scales(chunk.law_largest + i * chunk.tiles, chunk.tiles, call.inverse_temperature, scales);
  const Place place = choose_tile(chunk.law_mass + i * chunk.tiles, scales, chunk.tiles, uniform);
  const std::int64_t begin = place.tile * chunk.tile, tokens = std::min(chunk.tile, call.vocab_size - begin);
  const T* weight = static_cast<const T*>(call.weight) + begin * call.width;
  for (std::int64_t j = 0; j < tokens; ++j) {
    masses[j] = dot(weight + j * call.width, chunk.hidden + i * chunk.padded, call.width) + call.bias[begin + j];
  }
  if (call.disallow_correct && begin <= label && label < begin + tokens) masses[label - begin] = -INFINITY;
  const float largest = largest_of(masses, tokens, -FLT_MAX);
#pragma omp simd
  for (std::int64_t j = 0; j < tokens; ++j) {
    masses[j] = exp_nonpositive((masses[j] - largest) * call.inverse_temperature);
  }
  return begin + find_mass(masses, tokens, place.share);
}

// d_hidden, and what the masses are to be multiplied by for d_weight.
template <class T>
ELECTRA_FAST_INLINE void finish_gradient(const GeneratorHead& call, const Chunk& chunk, std::int64_t i,
                                         std::int64_t label, const float* scales, double others, double total) {
  const float coefficient = call.coefficients[chunk.first + i];
  float* d_hidden = call.d_hidden + (chunk.first + i) * chunk.padded;
  std::fill(d_hidden, d_hidden + chunk.padded, 0.0F);
  if (coefficient == 0.0F) return;
  const float scale = static_cast<float>(coefficient / total);
  chunk.label_gradient[i] = static_cast<float>(-coefficient * others / total);
  for (std::int64_t part = 0; part < chunk.parts; ++part) {
    const float factor = scale * scales[chunk.first_tile(part + 1) - 1];
    add_weight(chunk.sums + (part * chunk.rows + i) * chunk.padded, factor, chunk.padded, d_hidden);
  }
  add_weight(static_cast<const T*>(call.weight) + label * call.width, chunk.label_gradient[i], call.width, d_hidden);
  for (std::int64_t t = 0; t < chunk.tiles; ++t) chunk.largest[i * chunk.tiles + t] = scale * scales[t];
}

template <class T>
ELECTRA_FAST_INLINE void finish_all(const GeneratorHead& call, const Chunk& chunk, std::int64_t first,
                                     std::int64_t last, float* workspace) {
  float *scales = workspace, *masses = workspace + chunk.tiles;
  for (std::int64_t i = first; i < last; ++i) {
    const std::int64_t row = chunk.first + i, label = call.labels[row];
    const float top = make_scales(chunk.largest + i * chunk.tiles, chunk.tiles, 1.0F, scales);
    double others = 0.0;
    for (std::int64_t t = 0; t < chunk.tiles; ++t) {
      others += static_cast<double>(chunk.mass[i * chunk.tiles + t]) * scales[t];
    }
    const double total = others + static_cast<double>(chunk.label_mass[i]) * scales[label / chunk.tile];
    const double log_total = std::log(total);
    if (call.nll) call.nll[row] = static_cast<float>(log_total - (static_cast<double>(chunk.label_logit[i]) - top));
    if (call.largest) call.largest[row] = top;
    if (call.log_total) call.log_total[row] = static_cast<float>(log_total);
    if (call.argmax_ids) {
      std::int64_t part = 0;
      while (part + 1 < chunk.parts && chunk.largest[i * chunk.tiles + chunk.first_tile(part + 1) - 1] != top) ++part;
      call.argmax_ids[row] = chunk.argmax[part * chunk.rows + i];
    }
    if (call.sampled_ids && !has_own_law(call)) {
      call.sampled_ids[row] = draw(chunk, i, label, scales, uniform_of(call, row), call.vocab_size);
    }
    if (call.coefficients) finish_gradient<T>(call, chunk, i, label, scales, others, total);
    if (has_own_law(call)) {
      call.sampled_ids[row] = draw_by_own_law<T>(call, chunk, i, label, scales, uniform_of(call, row), masses);
    }
  }
}

ELECTRA_FAST_CLONES
void finish_float(const GeneratorHead& call, const Chunk& chunk, std::int64_t first, std::int64_t last,
                  float* workspace) {
  finish_all<float>(call, chunk, first, last, workspace);
}

ELECTRA_FAST_CLONES
void finish_bfloat16(const GeneratorHead& call, const Chunk& chunk, std::int64_t first, std::int64_t last,
                     float* workspace) {
  finish_all<bfloat16>(call, chunk, first, last, workspace);
}

}  // namespace

void finish_rows(const GeneratorHead& call, const Chunk& chunk, std::int64_t first, std::int64_t last,
                 float* workspace) {
  (call.bfloat16 ? finish_bfloat16 : finish_float)(call, chunk, first, last, workspace);
}

}  // namespace electra_fast
