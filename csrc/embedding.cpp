#include "embedding.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "parallel.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace electra_fast {
namespace {

constexpr std::int64_t kGrain = 32768;  // elements a thread: some 30 us of work
// Sums over tokens are added in two stages: over blocks of tokens, then over the blocks. Both are fixed by num_tokens.
constexpr std::int64_t kBlock = 64;
constexpr std::int64_t kMaxBlocks = 256;
// Up to so many token types are summed by blocks, each block with a sum of its own for every type.
constexpr std::int64_t kFewTypes = 4;

constexpr std::int64_t kAhead = 4;  // rows to prefetch by
// A gradient of more bytes than this is written past the caches, see `put`.
constexpr std::int64_t kCached = 4 << 20;

std::int64_t ceil_div(std::int64_t n, std::int64_t d) { return (n + d - 1) / d; }

// The three rows whose sum is normalised for one token.
template <class T>
struct Sum {
  const T *word, *token_type, *position;

  ELECTRA_FAST_INLINE Sum(const EmbeddingRows& rows, std::int64_t token) {
    const std::int64_t type = rows.token_type_ids ? rows.token_type_ids[token] : 0;
    word = static_cast<const T*>(rows.word) + rows.input_ids[token] * rows.width;
    token_type = static_cast<const T*>(rows.token_type) + type * rows.width;
    position = static_cast<const T*>(rows.position) + rows.position_ids[token] * rows.width;
  }

  ELECTRA_FAST_INLINE float operator()(std::int64_t i) const {
    return load(word + i) + load(token_type + i) + load(position + i);
  }
};

// Asks for the word row of a token some rows ahead: rows of a vocabulary lie anywhere in memory.
template <class T>
ELECTRA_FAST_INLINE void prefetch(const EmbeddingRows& rows, std::int64_t token, std::int64_t end) {
#if defined(__GNUC__)
  if (token + kAhead >= end) return;
  const T* word = static_cast<const T*>(rows.word) + rows.input_ids[token + kAhead] * rows.width;
  constexpr std::int64_t line = 64 / sizeof(T);
  for (std::int64_t i = 0; i < rows.width; i += line) __builtin_prefetch(word + i);
#endif
}

ELECTRA_FAST_INLINE void draw_factors(const EmbeddingRows& rows, std::int64_t token, float* factors) {
  draw_factors(rows.dropout, rows.row_ids ? rows.row_ids[token] : token, rows.width, factors);
}

// --- forward ---

template <class T>
ELECTRA_FAST_INLINE void forward_rows(const EmbeddingLayerNorm& call, std::int64_t begin, std::int64_t end) {
  const EmbeddingRows& rows = call.rows;
  const std::int64_t width = rows.width;
  const float *weight = rows.weight, *bias = call.bias;
  float row[kMaxWidth], factors[kMaxWidth];
  for (std::int64_t token = begin; token < end; ++token) {
    prefetch<T>(rows, token, end);
    const Moments moments = fill_row(width, call.eps, row, Sum<T>(rows, token));
    call.stats[token] = moments.mean;
    call.stats[rows.num_tokens + token] = moments.rstd;
    T* y = static_cast<T*>(call.y) + token * width;
    if (rows.has_dropout) {
      draw_factors(rows, token, factors);
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) {
        store(y + i, (standardised(row[i], moments) * weight[i] + bias[i]) * factors[i]);
      }
    } else {
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) store(y + i, standardised(row[i], moments) * weight[i] + bias[i]);
    }
  }
}

ELECTRA_FAST_CLONES
void forward_float(const EmbeddingLayerNorm& call, std::int64_t begin, std::int64_t end) {
  forward_rows<float>(call, begin, end);
}

ELECTRA_FAST_CLONES
void forward_bfloat16(const EmbeddingLayerNorm& call, std::int64_t begin, std::int64_t end) {
  forward_rows<bfloat16>(call, begin, end);
}

// --- backward: each token's gradient, and sums over blocks of tokens ---

template <class T>
ELECTRA_FAST_INLINE void backward_rows(const EmbeddingLayerNormBackward& call, std::int64_t begin, std::int64_t end,
                                       T* dx, float* sums, bool sums_types) {
  const EmbeddingRows& rows = call.rows;
  const std::int64_t width = rows.width;
  const float* weight = rows.weight;
  const bool sums_affine = call.dweight != nullptr || call.dbias != nullptr;
  float x_hat[kMaxWidth], factors[kMaxWidth];
  for (std::int64_t token = begin; token < end; ++token) {
    prefetch<T>(rows, token, end);
    const Moments moments{call.stats[token], call.stats[rows.num_tokens + token]};
    const Sum<T> sum(rows, token);
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) x_hat[i] = standardised(sum(i), moments);
    const T* dy = static_cast<const T*>(call.dy) + token * width;
    float* upstream = factors;
    if (rows.has_dropout) {
      draw_factors(rows, token, factors);
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) upstream[i] *= load(dy + i);
    } else {
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) upstream[i] = load(dy + i);
    }
    const GradientMeans means =
        gradient_means(width, upstream, x_hat, weight, sums_affine ? sums : nullptr, sums + width);
    // A single column is constant: no gradient, where 1 / sqrt(eps) would multiply what rounding leaves.
    const float rstd = width > 1 ? moments.rstd : 0.0F;
    T* out = dx + token * width;
    if (sums_types) {
      const std::int64_t type = rows.token_type_ids ? rows.token_type_ids[token] : 0;
      float* type_sum = sums + (2 + type) * width;
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) {
        const float value = gradient(upstream[i], x_hat[i], weight[i], means, rstd);
        store(out + i, value);
        type_sum[i] += value;
      }
    } else {
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) {
        store(out + i, gradient(upstream[i], x_hat[i], weight[i], means, rstd));
      }
    }
  }
}

ELECTRA_FAST_CLONES
void backward_float(const EmbeddingLayerNormBackward& call, std::int64_t begin, std::int64_t end, void* dx,
                    float* sums, bool sums_types) {
  backward_rows(call, begin, end, static_cast<float*>(dx), sums, sums_types);
}

ELECTRA_FAST_CLONES
void backward_bfloat16(const EmbeddingLayerNormBackward& call, std::int64_t begin, std::int64_t end, void* dx,
                       float* sums, bool sums_types) {
  backward_rows(call, begin, end, static_cast<bfloat16*>(dx), sums, sums_types);
}

// --- backward: the tables ---

// The tokens of each row of a table, in their order: a counting sort of ids.
struct TokensOfRows {
  std::int64_t num_rows = 0;
  std::vector<std::int64_t> first, tokens;  // row r has tokens[first[r]] to tokens[first[r + 1]]

  TokensOfRows() = default;
  TokensOfRows(const std::int64_t* ids, std::int64_t num_tokens, std::int64_t rows)
      : num_rows(rows), first(static_cast<std::size_t>(rows) + 2), tokens(static_cast<std::size_t>(num_tokens)) {
    std::int64_t* next = first.data() + 1;  // where the next token of a row goes: afterwards, where its last one ends
    for (std::int64_t token = 0; token < num_tokens; ++token) ++next[id_of(ids, token) + 1];
    for (std::int64_t row = 1; row <= rows; ++row) next[row] += next[row - 1];
    for (std::int64_t token = 0; token < num_tokens; ++token) {
      tokens[static_cast<std::size_t>(next[id_of(ids, token)]++)] = token;
    }
  }

 private:
  static std::int64_t id_of(const std::int64_t* ids, std::int64_t token) { return ids ? ids[token] : 0; }
};

// One table's gradient: row r is the sum of dx over its tokens.
struct Table {
  void* gradient = nullptr;
  std::int64_t padding_idx = -1;
  TokensOfRows of_rows;

  // Rows and tokens together are the work to share out; row r stands at the point r + first[r].
  std::int64_t work() const { return gradient ? of_rows.num_rows + static_cast<std::int64_t>(of_rows.tokens.size()) : 0; }

  std::int64_t row_at(std::int64_t point) const {
    std::int64_t low = 0, high = of_rows.num_rows;
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (middle + of_rows.first[static_cast<std::size_t>(middle)] < point) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// Writes a row, or zeros where `row` is null. Usual stores first fetch each line that they write; for a gradient that no
// cache will hold anyway those that don't take half the time: 0.8 ms for 30522 x 128 floats, instead of 1.6.
ELECTRA_FAST_INLINE void put(void* out, const void* row, std::int64_t bytes, [[maybe_unused]] bool streams) {
#if defined(__SSE2__)
  if (streams) {
    auto* to = static_cast<__m128i*>(out);
    const auto* from = static_cast<const __m128i*>(row);
    for (std::int64_t i = 0; i < bytes / 16; ++i) {
      _mm_stream_si128(to + i, from ? _mm_loadu_si128(from + i) : _mm_setzero_si128());
    }
    return;
  }
#endif
  if (row) {
    std::memcpy(out, row, static_cast<std::size_t>(bytes));
  } else {
    std::memset(out, 0, static_cast<std::size_t>(bytes));
  }
}

// The rows of `table` that stand in [begin, end) of its work.
template <class T>
ELECTRA_FAST_INLINE void sum_rows(const Table& table, std::int64_t width, const T* dx, std::int64_t begin,
                                  std::int64_t end) {
  if (table.gradient == nullptr) return;
  const std::int64_t last_row = table.row_at(end);
  const std::int64_t *first = table.of_rows.first.data(), *tokens = table.of_rows.tokens.data();
  const std::int64_t row_bytes = width * static_cast<std::int64_t>(sizeof(T));
  const bool streams = table.of_rows.num_rows * row_bytes > kCached && row_bytes % 16 == 0 &&
                       reinterpret_cast<std::uintptr_t>(table.gradient) % 16 == 0;
  float sum[kMaxWidth];
  T rounded[kMaxWidth];
  for (std::int64_t row = table.row_at(begin); row < last_row; ++row) {
    T* out = static_cast<T*>(table.gradient) + row * width;
    if (first[row] == first[row + 1] || row == table.padding_idx) {
      put(out, nullptr, row_bytes, streams);
      continue;
    }
    const T* one = dx + tokens[first[row]] * width;
    if (first[row] + 1 == first[row + 1]) {
      put(out, one, row_bytes, streams);
      continue;
    }
    for (std::int64_t i = 0; i < width; ++i) sum[i] = load(one + i);
    for (std::int64_t k = first[row] + 1; k < first[row + 1]; ++k) {
      const T* next = dx + tokens[k] * width;
      for (std::int64_t i = 0; i < width; ++i) sum[i] += load(next + i);
    }
    for (std::int64_t i = 0; i < width; ++i) store(rounded + i, sum[i]);
    put(out, rounded, row_bytes, streams);
  }
#if defined(__SSE2__)
  if (streams) _mm_sfence();  // before another thread reads them
#endif
}

ELECTRA_FAST_CLONES
void sum_float(const Table& table, std::int64_t width, const void* dx, std::int64_t begin, std::int64_t end) {
  sum_rows(table, width, static_cast<const float*>(dx), begin, end);
}

ELECTRA_FAST_CLONES
void sum_bfloat16(const Table& table, std::int64_t width, const void* dx, std::int64_t begin, std::int64_t end) {
  sum_rows(table, width, static_cast<const bfloat16*>(dx), begin, end);
}

}  // namespace

std::int64_t find_outside(const std::int64_t* ids, std::int64_t n, std::int64_t size) {
  for (std::int64_t i = 0; i < n; ++i) {
    if (ids[i] < 0 || ids[i] >= size) return i;
  }
  return -1;
}

void embedding_layer_norm(const EmbeddingLayerNorm& call, int threads) {
  const auto run = call.rows.is_bfloat16 ? forward_bfloat16 : forward_float;
  parallel_for(call.rows.num_tokens, threads, kGrain / call.rows.width,
               [&](std::int64_t begin, std::int64_t end) noexcept { run(call, begin, end); });
}

void embedding_layer_norm_backward(const EmbeddingLayerNormBackward& call, int threads) {
  const EmbeddingRows& rows = call.rows;
  const std::int64_t num_tokens = rows.num_tokens, width = rows.width;
  const bool sums_types = call.dtoken_type != nullptr && call.num_types <= kFewTypes;

  Table word{call.dword, call.padding_idx, {}}, position{call.dposition, -1, {}};
  Table token_type{sums_types ? nullptr : call.dtoken_type, -1, {}};
  if (word.gradient) word.of_rows = TokensOfRows(rows.input_ids, num_tokens, call.num_words);
  if (position.gradient) position.of_rows = TokensOfRows(rows.position_ids, num_tokens, call.num_positions);
  if (token_type.gradient) token_type.of_rows = TokensOfRows(rows.token_type_ids, num_tokens, call.num_types);

  const std::int64_t block = std::max(kBlock, ceil_div(num_tokens, kMaxBlocks));
  const std::int64_t num_blocks = std::max<std::int64_t>(1, ceil_div(num_tokens, block));
  const std::int64_t num_sums = (2 + (sums_types ? call.num_types : 0)) * width;
  const std::unique_ptr<float[]> sums(new float[static_cast<std::size_t>(num_blocks * num_sums)]);
  const std::size_t element = rows.is_bfloat16 ? sizeof(bfloat16) : sizeof(float);
  const std::unique_ptr<unsigned char[]> dx(new unsigned char[static_cast<std::size_t>(num_tokens * width) * element]);

  const auto run = rows.is_bfloat16 ? backward_bfloat16 : backward_float;
  parallel_for(num_blocks, threads, ceil_div(kGrain, block * width), [&](std::int64_t first, std::int64_t last) noexcept {
    std::fill(sums.get() + first * num_sums, sums.get() + last * num_sums, 0.0F);
    for (std::int64_t b = first; b < last; ++b) {
      run(call, b * block, std::min(num_tokens, (b + 1) * block), dx.get(), sums.get() + b * num_sums, sums_types);
    }
  });

  // One loop over the work of all tables, so that threads are called together once.
  const auto sum = rows.is_bfloat16 ? sum_bfloat16 : sum_float;
  const std::int64_t word_work = word.work(), position_work = position.work();
  parallel_for(word_work + position_work + token_type.work(), threads, kGrain / width,
               [&](std::int64_t begin, std::int64_t end) noexcept {
                 sum(word, width, dx.get(), begin, end);
                 sum(position, width, dx.get(), begin - word_work, end - word_work);
                 const std::int64_t before = word_work + position_work;
                 sum(token_type, width, dx.get(), begin - before, end - before);
               });

  parallel_for(num_sums, threads, ceil_div(kGrain, num_blocks), [&](std::int64_t first, std::int64_t last) noexcept {
    for (std::int64_t b = 1; b < num_blocks; ++b) {
      const float* next = sums.get() + b * num_sums;
      for (std::int64_t i = first; i < last; ++i) sums[static_cast<std::size_t>(i)] += next[i];
    }
  });
  if (call.dweight) std::copy(sums.get(), sums.get() + width, call.dweight);
  if (call.dbias) std::copy(sums.get() + width, sums.get() + 2 * width, call.dbias);
  if (sums_types) {
    for (std::int64_t i = 0; i < call.num_types * width; ++i) {
      const float total = sums[static_cast<std::size_t>(2 * width + i)];
      if (rows.is_bfloat16) {
        store(static_cast<bfloat16*>(call.dtoken_type) + i, total);
      } else {
        store(static_cast<float*>(call.dtoken_type) + i, total);
      }
    }
  }
}

}  // namespace electra_fast
