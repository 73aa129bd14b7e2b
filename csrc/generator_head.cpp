#include "generator_head.h"

#include <cmath>

#include "parallel.h"
#include "sampling.h"

namespace electra_fast {
namespace {

constexpr std::int64_t kColumnsPerThread = 8192;  // of all blocks' sums: about 20 us
constexpr std::int64_t kTilesAhead = 2;  // to prefetch; 1 and 4 gain less

ELECTRA_FAST_INLINE float add_bias(float* logits, const float* bias, std::int64_t size, float largest) {
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < size; ++i) {
    const float logit = logits[i] + bias[i];
    logits[i] = logit;
    largest = logit > largest ? logit : largest;
  }
  return largest;
}

// Asks for what the first pass comes to next: the matrix product has left the logits in an outer cache at best, and the
// two loops over a tile alone would wait for it.
ELECTRA_FAST_INLINE void prefetch(const float* logits, std::int64_t size) {
#if defined(__GNUC__)
  constexpr std::int64_t kCacheLine = 16;
  for (std::int64_t i = 0; i < size; i += kCacheLine) __builtin_prefetch(logits + i, 1, 2);
#else
  (void)logits, (void)size;
#endif
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

// What the second pass over a row takes from the first.
struct MeasuredRow {
  float* masses;  // [vocab_size], each tile's against its own largest logit
  TileMasses tiles;
  double scale;  // of masses against the row's largest logit
};

// Rows that the second pass takes together: it reads and writes the column sums once for all of them.
constexpr int kRowsAtOnce = 4;

// The gradients of tile `t` take the place of its masses, and are added to `sums`.
template <int kRows>
ELECTRA_FAST_INLINE void make_gradients(const MeasuredRow* rows, std::int64_t t, std::int64_t begin, std::int64_t size,
                                        float* sums) {
  float scale[kRows];
  float* masses[kRows];
  for (int k = 0; k < kRows; ++k) {
    const TileMasses& tiles = rows[k].tiles;
    scale[k] = static_cast<float>(rows[k].scale * exp_nonpositive(tiles.largest[t] - tiles.largest[tiles.count - 1]));
    masses[k] = rows[k].masses + begin;
  }
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    float sum = sums[i];
    for (int k = 0; k < kRows; ++k) {
      const float gradient = masses[k][i] * scale[k];
      masses[k][i] = gradient;
      sum += gradient;
    }
    sums[i] = sum;
  }
}

template <int kRows>
ELECTRA_FAST_INLINE void second_pass(const HeadRows& call, const MeasuredRow* rows, float* sums) {
  const TileMasses& tiles = rows[0].tiles;
  for (std::int64_t t = 0; t < tiles.count; ++t) {
    const std::int64_t begin = t * tiles.width;
    make_gradients<kRows>(rows, t, begin, std::min(tiles.width, call.vocab_size - begin), sums + begin);
  }
}

ELECTRA_FAST_INLINE void second_pass(const HeadRows& call, const MeasuredRow* rows, int count, float* sums) {
  if (count == 4) second_pass<4>(call, rows, sums);
  if (count == 3) second_pass<3>(call, rows, sums);
  if (count == 2) second_pass<2>(call, rows, sums);
  if (count == 1) second_pass<1>(call, rows, sums);
}

double uniform_of(const HeadRows& call, std::int64_t i) {
  const std::int64_t row_id = call.row_ids ? call.row_ids[i] : call.first_row + i;
  return uniform53(philox(static_cast<std::uint64_t>(call.seed), 0, static_cast<std::uint64_t>(row_id), call.stream));
}

// The first pass over a row: masses come in place of its logits, and all but its gradient is said.
ELECTRA_FAST_INLINE void first_pass(const HeadRows& call, std::int64_t i, MeasuredRow& measured) {
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

  TileMasses& tiles = measured.tiles;
  set_tiles(size, tiles);
  float largest = -FLT_MAX;
  std::int64_t argmax = 0;
  for (std::int64_t t = 0; t < tiles.count; ++t) {
    const std::int64_t begin = t * tiles.width, length = std::min(tiles.width, size - begin);
    const float before = largest;
    const std::int64_t next = begin + kTilesAhead * tiles.width;
    prefetch(row + next, std::min(tiles.width, call.logits + call.num_rows * size - (row + next)));
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
  measured.masses = row;
  measured.scale = call.coefficients ? call.coefficients[i] / total : 0.0;
}

ELECTRA_FAST_CLONES
void head_block(const HeadRows& call, std::int64_t block, std::int64_t first, std::int64_t last) {
  MeasuredRow rows[kRowsAtOnce];
  if (!call.coefficients) {
    for (std::int64_t i = first; i < last; ++i) first_pass(call, i, rows[0]);
    return;
  }
  float* sums = call.partial_sums + block * call.vocab_size;
  std::fill(sums, sums + call.vocab_size, 0.0F);
  int count = 0;
  for (std::int64_t i = first; i < last; ++i) {
    first_pass(call, i, rows[count]);
    if (call.coefficients[i] != 0.0F) {
      ++count;
    } else {
      std::fill(rows[count].masses, rows[count].masses + call.vocab_size, 0.0F);
    }
    if (count == kRowsAtOnce || i + 1 == last) {
      second_pass(call, rows, count, sums);
      count = 0;
    }
  }
  for (std::int64_t i = first; i < last; ++i) {
    call.logits[i * call.vocab_size + call.labels[i]] -= call.coefficients[i];
    sums[call.labels[i]] -= call.coefficients[i];
  }
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
