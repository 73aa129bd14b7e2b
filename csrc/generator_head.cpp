#include "generator_head.h"

#include <cmath>

#include "parallel.h"
#include "sampling.h"

namespace electra_fast {
namespace {

constexpr std::int64_t kColumnsPerThread = 8192;  // of all blocks' sums: about 20 us

ELECTRA_FAST_INLINE float add_bias(float* logits, const float* bias, std::int64_t size, float largest) {
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < size; ++i) {
    const float logit = logits[i] + bias[i];
    logits[i] = logit;
    largest = logit > largest ? logit : largest;
  }
  return largest;
}

// The tile's masses take the place of its logits; returns their sum.
ELECTRA_FAST_INLINE float make_masses(float* logits, std::int64_t size, float largest) {
  float mass = 0.0F;
#pragma omp simd reduction(+ : mass)
  for (std::int64_t i = 0; i < size; ++i) {
    logits[i] = exp_nonpositive(logits[i] - largest);
    mass += logits[i];
  }
  return mass;
}

// The tile's gradient takes the place of its masses, and is added to `sums`.
ELECTRA_FAST_INLINE void make_gradient(float* masses, std::int64_t size, float scale, float* sums) {
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    const float gradient = masses[i] * scale;
    masses[i] = gradient;
    sums[i] += gradient;
  }
}

double uniform_of(const HeadRows& call, std::int64_t i) {
  const std::int64_t row_id = call.row_ids ? call.row_ids[i] : call.first_row + i;
  return uniform53(philox(static_cast<std::uint64_t>(call.seed), 0, static_cast<std::uint64_t>(row_id), call.stream));
}

// One row, its logits in place of which come masses, then the gradient: each tile is read from the outer caches twice.
ELECTRA_FAST_INLINE void head_row(const HeadRows& call, std::int64_t i, float* sums) {
  const std::int64_t size = call.vocab_size, label = call.labels[i];
  float* row = call.logits + i * size;
  const float* bias = call.bias;  // null once it has been added
  const float label_logit = row[label] + bias[label];
  const bool has_own_law = call.inverse_temperature != 1.0F || call.disallow_correct;
  if (call.sampled_ids && has_own_law) {
    add_bias(row, bias, size, 0.0F);
    bias = nullptr;
    call.sampled_ids[i] = draw_token(row, size, call.disallow_correct ? label : -1, call.inverse_temperature,
                                     uniform_of(call, i));
  }

  TileMasses tiles;
  set_tiles(size, tiles);
  float largest = -FLT_MAX;
  std::int64_t argmax = 0;
  for (std::int64_t t = 0; t < tiles.count; ++t) {
    const std::int64_t begin = t * tiles.width, length = std::min(tiles.width, size - begin);
    const float before = largest;
    largest = bias ? add_bias(row + begin, bias + begin, length, largest) : largest_of(row + begin, length, largest);
    if (call.argmax_ids && largest > before) argmax = std::find(row + begin, row + begin + length, largest) - row;
    tiles.largest[t] = largest;
    tiles.mass[t] = make_masses(row + begin, length, largest);
  }
  const double total = common_scale(tiles, 1.0F);
  if (call.argmax_ids) call.argmax_ids[i] = argmax;
  if (call.nll) call.nll[i] = static_cast<float>(std::log(total) - (static_cast<double>(label_logit) - largest));
  if (call.largest) call.largest[i] = largest;
  if (call.log_total) call.log_total[i] = static_cast<float>(std::log(total));
  if (call.sampled_ids && !has_own_law) {
    const Place place = find_place(tiles, uniform_of(call, i) * total);
    const std::int64_t begin = place.tile * tiles.width;
    call.sampled_ids[i] = begin + find_mass(row + begin, std::min(tiles.width, size - begin), place.share);
  }
  if (!call.coefficients) return;

  const float coefficient = call.coefficients[i];
  if (coefficient == 0.0F) {
    std::fill(row, row + size, 0.0F);
    return;
  }
  for (std::int64_t t = 0; t < tiles.count; ++t) {
    const std::int64_t begin = t * tiles.width, length = std::min(tiles.width, size - begin);
    const double scale = coefficient / total * exp_nonpositive(tiles.largest[t] - largest);
    make_gradient(row + begin, length, static_cast<float>(scale), sums + begin);
  }
  row[label] -= coefficient;
  sums[label] -= coefficient;
}

ELECTRA_FAST_CLONES
void head_block(const HeadRows& call, std::int64_t block, std::int64_t first, std::int64_t last) {
  float* sums = call.coefficients ? call.partial_sums + block * call.vocab_size : nullptr;
  if (sums) std::fill(sums, sums + call.vocab_size, 0.0F);
  for (std::int64_t i = first; i < last; ++i) head_row(call, i, sums);
}

ELECTRA_FAST_CLONES
void add_sums(const HeadRows& call, std::int64_t blocks, std::int64_t first, std::int64_t last) {
  for (std::int64_t block = 0; block < blocks; ++block) {
    const float* sums = call.partial_sums + block * call.vocab_size;
#pragma omp simd
    for (std::int64_t column = first; column < last; ++column) call.d_bias[column] += sums[column];
  }
}

}  // namespace

void head_rows(const HeadRows& call, int threads) {
  const std::int64_t rows = call.num_rows, blocks = std::min(rows, kHeadBlocks);
  if (rows == 0) return;
  const std::int64_t grain = 65536 * blocks / (rows * call.vocab_size) + 1;  // about 50 us of work
  parallel_for(blocks, threads, grain, [&](std::int64_t begin, std::int64_t end) noexcept {
    for (std::int64_t block = begin; block < end; ++block) {
      head_block(call, block, rows * block / blocks, rows * (block + 1) / blocks);
    }
  });
  if (!call.coefficients) return;
  parallel_for(call.vocab_size, threads, kColumnsPerThread, [&](std::int64_t first, std::int64_t last) noexcept {
    add_sums(call, blocks, first, last);
  });
}

}  // namespace electra_fast
