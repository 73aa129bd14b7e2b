#include "generator_head.h"

#include <cmath>
#include <memory>
#include <vector>

#include "generator_head_chunk.h"
#include "lanes.h"
#include "parallel.h"
#include "sampling.h"

namespace electra_fast {
namespace {

// Parts of the vocabulary, whose sums for d_hidden are apart: fixed, so that these have the same bits for any number of
// threads.
constexpr std::int64_t kParts = 16;
constexpr std::int64_t kDepth = 64;  // of one sum of products; by sums of 256, logits were twice as wrong as PyTorch's
constexpr std::int64_t kProductsPerThread = 4'000'000;  // about 50 us of work
constexpr std::int64_t kExpCost = 64;  // of making a mass and summing it, in products

// --- Products ---

// Weights of a tile as right factors: `by_token`, panels of 16 tokens, makes logits, `by_element` (or null), panels of
// 16 elements, makes d_hidden. Zeros fill both up.
template <int kBytes, class T>
ELECTRA_FAST_INLINE void pack_tile(const T* weight, std::int64_t tokens, std::int64_t width, float* by_token,
                                   float* by_element) {
  const std::int64_t padded = round_up(width, kLanes), depth = round_up(tokens, kLanes);
  for (std::int64_t token = 0; token < tokens; token += kLanes) {
    for (std::int64_t e = 0; e < width; e += kLanes) {
      Lanes<kBytes> block[kLanes] = {};
      for (std::int64_t i = 0; i < std::min(kLanes, tokens - token); ++i) {
        block[i].load(weight + (token + i) * width + e, std::min(kLanes, width - e));
      }
      for (std::int64_t i = 0; by_element && i < kLanes; ++i) {
        block[i].store(by_element + e * depth + (token + i) * kLanes);
      }
      transpose_lanes(block);
      for (std::int64_t i = 0; i < kLanes; ++i) block[i].store(by_token + token * padded + (e + i) * kLanes);
    }
  }
}

template <int kBytes>
ELECTRA_FAST_INLINE void pack_tile(const GeneratorHead& call, std::int64_t begin, std::int64_t tokens, float* by_token,
                                   float* by_element) {
  const std::int64_t offset = begin * call.width;
  if (call.bfloat16) {
    pack_tile<kBytes>(static_cast<const bfloat16*>(call.weight) + offset, tokens, call.width, by_token, by_element);
  } else {
    pack_tile<kBytes>(static_cast<const float*>(call.weight) + offset, tokens, call.width, by_token, by_element);
  }
}

ELECTRA_FAST_CLONES void pack_wide(const GeneratorHead& call, std::int64_t begin, std::int64_t tokens, float* by_token,
                                   float* by_element) {
  pack_tile<kWide>(call, begin, tokens, by_token, by_element);
}
ELECTRA_FAST_CLONES void pack_narrow(const GeneratorHead& call, std::int64_t begin, std::int64_t tokens,
                                     float* by_token, float* by_element) {
  pack_tile<kNarrow>(call, begin, tokens, by_token, by_element);
}

// Logits without bias.
void multiply_logits(const Chunk& chunk, std::int64_t width, std::int64_t tokens, const float* by_token,
                     float* logits) {
  Product product{};
  product.rows = chunk.rows;
  product.columns = tokens;
  product.a_row = chunk.padded;
  product.a_column = 1;
  product.b_row = kLanes;
  product.b_panel = chunk.padded * kLanes;
  product.c = logits;
  product.c_row = chunk.stride;
  for (std::int64_t e = 0; e < width; e += kDepth) {
    product.depth = std::min(kDepth, width - e);
    product.a = chunk.hidden + e;
    product.b = by_token + e * kLanes;
    product.accumulate = e > 0;
    multiply(product);
  }
}

void add_to_sums(const Chunk& chunk, std::int64_t width, std::int64_t part, std::int64_t t, std::int64_t tokens,
                 const float* by_element, const float* masses) {
  Product product{};
  product.rows = chunk.rows;
  product.columns = width;
  product.depth = tokens;
  product.a = masses;
  product.a_row = chunk.stride;
  product.a_column = 1;
  product.b = by_element;
  product.b_row = kLanes;
  product.b_panel = round_up(tokens, kLanes) * kLanes;
  product.c = chunk.sums + part * chunk.rows * chunk.padded;
  product.c_row = chunk.padded;
  product.accumulate = t > chunk.first_tile(part);
  multiply(product);
}

// --- A tile of logits becomes masses ---

ELECTRA_FAST_INLINE float add_bias(float* logits, const float* bias, std::int64_t size, float largest) {
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < size; ++i) {
    const float logit = logits[i] + bias[i];
    logits[i] = logit;
    largest = logit > largest ? logit : largest;
  }
  return largest;
}

// Returns their sum.
ELECTRA_FAST_INLINE float make_masses(float* logits, std::int64_t size, float largest) {
  float mass = 0.0F;
#pragma omp simd reduction(+ : mass)
  for (std::int64_t i = 0; i < size; ++i) {
    logits[i] = exp_nonpositive(logits[i] - largest);
    mass += logits[i];
  }
  return mass;
}

ELECTRA_FAST_CLONES
void measure_tile(const GeneratorHead& call, const Chunk& chunk, std::int64_t part, std::int64_t t, std::int64_t begin,
                  std::int64_t tokens, float* logits) {
  const bool is_first = t == chunk.first_tile(part);
  for (std::int64_t i = 0; i < chunk.rows; ++i) {
    float* row = logits + i * chunk.stride;
    const std::int64_t at = i * chunk.tiles + t, label = call.labels[chunk.first + i] - begin;
    const float before = is_first ? -FLT_MAX : chunk.largest[at - 1];  // finite: -inf has mass 0 beside it, and not NaN
    const float largest = add_bias(row, call.bias + begin, tokens, before);
    if (call.argmax_ids) {
      std::int64_t& argmax = chunk.argmax[part * chunk.rows + i];
      if (is_first) argmax = begin;
      if (largest > before) argmax = begin + (std::find(row, row + tokens, largest) - row);
    }
    const bool has_label = 0 <= label && label < tokens;
    const float label_logit = has_label ? row[label] : 0.0F;
    if (has_own_law(call)) {
      if (has_label && call.disallow_correct) row[label] = -INFINITY;
      chunk.law_largest[at] = largest_of(row, tokens, -FLT_MAX);
      chunk.law_mass[at] = mass_of(row, tokens, chunk.law_largest[at], call.inverse_temperature);
    }
    if (has_label) {
      chunk.label_logit[i] = label_logit;
      chunk.label_mass[i] = exp_nonpositive(label_logit - largest);
      row[label] = -INFINITY;
    }
    chunk.largest[at] = largest;
    chunk.mass[at] = make_masses(row, tokens, largest);
    if (call.coefficients && !is_first && largest > before) {
      const float scale = exp_nonpositive(before - largest);
      float* sums = chunk.sums + (part * chunk.rows + i) * chunk.padded;
#pragma omp simd
      for (std::int64_t e = 0; e < chunk.padded; ++e) sums[e] *= scale;
    }
  }
}

void measure_part(const GeneratorHead& call, const Chunk& chunk, std::int64_t part, float* workspace) {
  float* by_element = call.coefficients ? workspace + chunk.tile * chunk.padded : nullptr;
  // Made here and copied: what the products write and read must lie in a near cache.
  float* masses = workspace + 2 * chunk.tile * chunk.padded;
  for (std::int64_t t = chunk.first_tile(part); t < chunk.first_tile(part + 1); ++t) {
    const std::int64_t begin = t * chunk.tile, tokens = std::min(chunk.tile, call.vocab_size - begin);
    (is_wide() ? pack_wide : pack_narrow)(call, begin, tokens, workspace, by_element);
    multiply_logits(chunk, call.width, tokens, workspace, masses);
    measure_tile(call, chunk, part, t, begin, tokens, masses);
    if (by_element) add_to_sums(chunk, call.width, part, t, tokens, by_element, masses);
    std::copy(masses, masses + chunk.rows * chunk.stride, chunk.tile_masses(t));
  }
}

// --- d_weight and d_bias ---

// The rows of hidden, each multiplied by what this tile's masses must be, as a right factor; of unused rows, which may
// hold anything, nothing is left.
ELECTRA_FAST_CLONES
void scale_rows(const GeneratorHead& call, const Chunk& chunk, std::int64_t t, float* scaled) {
  for (std::int64_t i = 0; i < chunk.rows; ++i) {
    const bool is_used = call.coefficients[chunk.first + i] != 0.0F;
    const float factor = chunk.largest[i * chunk.tiles + t];
    float* row = chunk.tile_masses(t) + i * chunk.stride;
    if (!is_used) std::fill(row, row + chunk.tile, 0.0F);
    for (std::int64_t e = 0; e < chunk.padded; e += kLanes) {
      const float* from = chunk.hidden + i * chunk.padded + e;
      float* to = scaled + e * chunk.rows + i * kLanes;
#pragma omp simd
      for (std::int64_t lane = 0; lane < kLanes; ++lane) to[lane] = is_used ? from[lane] * factor : 0.0F;
    }
  }
}

// Sums over 32 rows are made apart, since one sum over thousands would round worse. Four rows go together: the sums are
// read and written once for all of them.
ELECTRA_FAST_CLONES
void add_to_d_bias(const GeneratorHead& call, const Chunk& chunk, std::int64_t t, std::int64_t begin,
                   std::int64_t tokens, float* sums) {
  constexpr std::int64_t kTogether = 4, kApart = 32;
  float* d_bias = call.d_bias + begin;
  if (chunk.first == 0) std::fill(d_bias, d_bias + tokens, 0.0F);
  std::fill(sums, sums + tokens, 0.0F);
  for (std::int64_t i = 0; i < chunk.rows; i += kTogether) {
    const float* rows[kTogether];
    float factors[kTogether];
    for (std::int64_t k = 0; k < kTogether; ++k) {
      const bool is_used = i + k < chunk.rows && call.coefficients[chunk.first + i + k] != 0.0F;
      rows[k] = chunk.tile_masses(t) + (is_used ? i + k : i) * chunk.stride;
      factors[k] = is_used ? chunk.largest[(i + k) * chunk.tiles + t] : 0.0F;
    }
#pragma omp simd
    for (std::int64_t j = 0; j < tokens; ++j) {
      sums[j] += (rows[0][j] * factors[0] + rows[1][j] * factors[1]) +
                 (rows[2][j] * factors[2] + rows[3][j] * factors[3]);
    }
    if ((i + kTogether) % kApart != 0 && i + kTogether < chunk.rows) continue;
    for (std::int64_t j = 0; j < tokens; ++j) {
      d_bias[j] += sums[j];
      sums[j] = 0.0F;
    }
  }
}

ELECTRA_FAST_CLONES
void add_labels(const GeneratorHead& call, const Chunk& chunk, std::int64_t begin, std::int64_t tokens) {
  for (std::int64_t i = 0; i < chunk.rows; ++i) {
    const std::int64_t label = call.labels[chunk.first + i];
    if (label < begin || label >= begin + tokens || call.coefficients[chunk.first + i] == 0.0F) continue;
    call.d_bias[label] += chunk.label_gradient[i];
    add_weight(chunk.hidden + i * chunk.padded, chunk.label_gradient[i], chunk.padded,
               call.d_weight + label * chunk.padded);
  }
}

void add_to_d_weight(const GeneratorHead& call, const Chunk& chunk, std::int64_t t, float* workspace) {
  const std::int64_t begin = t * chunk.tile, tokens = std::min(chunk.tile, call.vocab_size - begin);
  scale_rows(call, chunk, t, workspace);
  // Before the product, since it reads the masses in order, and the product then finds them nearby.
  add_to_d_bias(call, chunk, t, begin, tokens, workspace + chunk.rows * chunk.padded);
  Product product{};
  product.rows = tokens;
  product.columns = call.width;
  product.depth = chunk.rows;
  product.a = chunk.tile_masses(t);
  product.a_row = 1;
  product.a_column = chunk.stride;
  product.b = workspace;
  product.b_row = kLanes;
  product.b_panel = chunk.rows * kLanes;
  product.c = call.d_weight + begin * chunk.padded;
  product.c_row = chunk.padded;
  product.accumulate = chunk.first > 0;
  multiply(product);
  add_labels(call, chunk, begin, tokens);
}

// --- Chunks ---

void load_hidden(const GeneratorHead& call, const Chunk& chunk) {
  for (std::int64_t i = 0; i < chunk.rows; ++i) {
    const std::int64_t from = (chunk.first + i) * call.width;
    float* to = chunk.hidden + i * chunk.padded;
    std::fill(to + call.width, to + chunk.padded, 0.0F);
    for (std::int64_t e = 0; e < call.width; ++e) {
      to[e] = call.bfloat16 ? load(static_cast<const bfloat16*>(call.hidden) + from + e)
                            : static_cast<const float*>(call.hidden)[from + e];
    }
  }
}

// Memory of which pieces are taken, each at a multiple of 64 bytes.
class Arena {
 public:
  float* take(std::int64_t size) {
    float* piece = next_;
    next_ += round_up(size, kLanes);
    return piece;
  }
  void allocate(std::int64_t size) {
    memory_.reset(new float[static_cast<std::size_t>(size + kLanes)]);
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
    next_ = start_ = memory_.get() + (64 - address % 64) % 64 / sizeof(float);
  }

 private:
  std::unique_ptr<float[]> memory_;
  float *start_ = nullptr, *next_ = nullptr;
};

// `run(item, workspace)` for n items, on as many threads as the work is worth.
template <class Run>
void for_each(std::int64_t n, std::int64_t cost, int threads, float* workspaces, std::int64_t stride, const Run& run) {
  const std::int64_t most = std::max<std::int64_t>(cost / kProductsPerThread, 1);
  const std::int64_t workers = std::min({n, std::int64_t{threads}, most});
  parallel_for(workers, static_cast<int>(workers), 1, [&](std::int64_t begin, std::int64_t end) noexcept {
    for (std::int64_t worker = begin; worker < end; ++worker) {
      for (std::int64_t item = n * worker / workers; item < n * (worker + 1) / workers; ++item) {
        run(item, workspaces + worker * stride);
      }
    }
  });
}

// Tokens of a tile: two packed tiles should stay in the second cache.
std::int64_t tile_of(const GeneratorHead& call) {
  return std::min<std::int64_t>(head_stride(call.width) > 256 ? 128 : kTileStep, round_up(call.vocab_size, kLanes));
}

// Floats of a thread's workspace: while tiles are measured, and later.
struct Workspace {
  std::int64_t large, small;
};

Workspace workspace_of(const Chunk& chunk) {
  Workspace sizes{};
  sizes.small = round_up(std::max(chunk.rows * chunk.padded, chunk.tiles) + chunk.tile, kLanes);
  sizes.large = std::max(round_up(2 * chunk.tile * chunk.padded + chunk.rows * chunk.stride, kLanes), sizes.small);
  return sizes;
}

// Takes the chunk's arrays, and returns the workspaces behind them.
float* allocate(const GeneratorHead& call, std::int64_t workspaces, Chunk& chunk, Arena& arena) {
  const std::int64_t rows = chunk.rows, law_tiles = has_own_law(call) ? chunk.tiles : 0;
  const std::int64_t sums = call.coefficients ? chunk.parts * chunk.padded : 0;
  const std::int64_t of_row = chunk.padded + chunk.tiles * (chunk.stride + 2) + 2 * law_tiles + 3 + sums;
  arena.allocate(rows * of_row + workspaces + 16 * kLanes);
  chunk.hidden = arena.take(rows * chunk.padded);
  chunk.masses = arena.take(rows * chunk.tiles * chunk.stride);
  chunk.largest = arena.take(rows * chunk.tiles);
  chunk.mass = arena.take(rows * chunk.tiles);
  chunk.law_largest = arena.take(rows * law_tiles);
  chunk.law_mass = arena.take(rows * law_tiles);
  chunk.label_logit = arena.take(rows);
  chunk.label_mass = arena.take(rows);
  chunk.label_gradient = arena.take(rows);
  chunk.sums = arena.take(rows * sums);
  return arena.take(workspaces);
}

}  // namespace

void generator_head(const GeneratorHead& call, int threads) {
  Chunk chunk{};
  chunk.rows = std::min(call.chunk, call.num_rows);
  chunk.padded = head_stride(call.width);
  chunk.tile = tile_of(call);
  chunk.tiles = (call.vocab_size + chunk.tile - 1) / chunk.tile;
  chunk.parts = std::min(kParts, chunk.tiles);
  chunk.stride = chunk.tile + kLanes;  // a power of two would send the columns of a tile to few sets of the cache
  const auto [large, small] = workspace_of(chunk);
  Arena arena;
  const std::int64_t measuring = std::min<std::int64_t>(threads, chunk.parts);
  float* workspaces = allocate(call, std::max(measuring * large, threads * small), chunk, arena);
  std::vector<std::int64_t> argmax(static_cast<std::size_t>(call.argmax_ids ? chunk.parts * chunk.rows : 0));
  chunk.argmax = argmax.data();

  for (; chunk.first < call.num_rows; chunk.first += chunk.rows) {
    chunk.rows = std::min(chunk.rows, call.num_rows - chunk.first);
    load_hidden(call, chunk);
    const std::int64_t cost = chunk.rows * call.vocab_size * (call.width + kExpCost);
    for_each(chunk.parts, cost, threads, workspaces, large,
             [&](std::int64_t part, float* space) { measure_part(call, chunk, part, space); });
    const std::int64_t cost_of_rows = chunk.rows * (chunk.tiles + chunk.tile + chunk.parts * chunk.padded) * kExpCost;
    for_each(chunk.rows, cost_of_rows, threads, workspaces, small,
             [&](std::int64_t i, float* space) { finish_rows(call, chunk, i, i + 1, space); });
    if (!call.coefficients) continue;
    for_each(chunk.tiles, cost, threads, workspaces, small,
             [&](std::int64_t t, float* space) { add_to_d_weight(call, chunk, t, space); });
  }
}

}  // namespace electra_fast
