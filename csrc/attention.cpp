#include "attention.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "matmul.h"
#include "parallel.h"
#include "philox.h"
#include "rows.h"

namespace electra_fast {
namespace {

constexpr std::int64_t kQueries = 64;  // query rows at a time: their scores with 512 keys are 128 KiB
// Multiplications worth a thread: about 30 us.
constexpr std::int64_t kGrain = 2'000'000;

// --- Packing: rows of one head in float32, in the layouts that matmul.h wants ---

// Sixteen numbers of a row, or what is left of them, and their bias.
template <int kBytes, class T>
ELECTRA_FAST_INLINE Lanes<kBytes> biased(const T* from, const float* bias, std::int64_t d, std::int64_t dim) {
  Lanes<kBytes> lanes;
  lanes.load(from + d, dim - d);
  if (bias != nullptr) {
    Lanes<kBytes> addend;
    addend.load(bias + d, dim - d);
    lanes.add(addend);
  }
  return lanes;
}

// [rows, dim] -> [rows, padded dim], the bias added, times a factor; padding is zero.
template <int kBytes, class T>
ELECTRA_FAST_INLINE void copy_rows(const T* from, const float* bias, std::int64_t stride, std::int64_t rows,
                                   std::int64_t dim, float factor, float* to) {
  for (std::int64_t i = 0; i < rows; ++i, from += stride) {
    for (std::int64_t d = 0; d < dim; d += kLanes, to += kLanes) {
      Lanes<kBytes> lanes = biased<kBytes>(from, bias, d, dim);
      lanes.scale(factor);
      lanes.store(to);
    }
  }
}

// [rows, dim] -> panels of 16 columns [padded dim / 16][rows][16]; padding is zero.
template <int kBytes, class T>
ELECTRA_FAST_INLINE void pack_panels(const T* from, const float* bias, std::int64_t stride, std::int64_t rows,
                                     std::int64_t dim, float* to) {
  for (std::int64_t i = 0; i < rows; ++i, from += stride, to += kLanes) {
    for (std::int64_t d = 0; d < dim; d += kLanes) {
      biased<kBytes>(from, bias, d, dim).store(to + d * rows);
    }
  }
}

// [rows, dim] -> its transpose in panels of 16 columns [padded rows / 16][dim][16]; padding is zero.
template <int kBytes, class T>
ELECTRA_FAST_INLINE void pack_transpose(const T* from, const float* bias, std::int64_t stride, std::int64_t rows,
                                        std::int64_t dim, float* to) {
  for (std::int64_t begin = 0; begin < rows; begin += kLanes, from += kLanes * stride) {
    const std::int64_t height = std::min(kLanes, rows - begin);
    for (std::int64_t d = 0; d < dim; d += kLanes) {
      Lanes<kBytes> tile[kLanes] = {};
      for (std::int64_t i = 0; i < height; ++i) tile[i] = biased<kBytes>(from + i * stride, bias, d, dim);
      transpose_lanes(tile);
      const std::int64_t width = std::min(kLanes, dim - d);
      for (std::int64_t j = 0; j < width; ++j, to += kLanes) tile[j].store(to);
    }
  }
}

// The way back of copy_rows, with a factor for each row, or, with a stride of 0, one for all. Adds the rows up in sums
// [padded dim], unless it is null.
template <int kBytes, class T>
ELECTRA_FAST_INLINE void store_rows(const float* from, std::int64_t rows, std::int64_t dim, const float* factors,
                                    std::int64_t factor_stride, T* to, std::int64_t stride, float* sums) {
  for (std::int64_t i = 0; i < rows; ++i, to += stride) {
    for (std::int64_t d = 0; d < dim; d += kLanes, from += kLanes) {
      Lanes<kBytes> lanes;
      lanes.load(from);
      lanes.scale(factors[i * factor_stride]);
      lanes.store(to + d, dim - d);
      if (sums != nullptr) {
        Lanes<kBytes> sum;
        sum.load(sums + d);
        sum.add(lanes);
        sum.store(sums + d);
      }
    }
  }
}

// `name(arguments)`, compiled for each instruction set and both sizes of registers.
#define ELECTRA_FAST_ON_LANES(name, body, parameters, ...)                           \
  ELECTRA_FAST_CLONES void name parameters {                                         \
    is_wide() ? body<kWide>(__VA_ARGS__) : body<kNarrow>(__VA_ARGS__);               \
  }
#define ELECTRA_FAST_PACKING(T)                                                                                       \
  ELECTRA_FAST_ON_LANES(copy, copy_rows,                                                                              \
                        (const T* from, const float* bias, std::int64_t stride, std::int64_t rows, std::int64_t dim,  \
                         float factor, float* to),                                                                    \
                        from, bias, stride, rows, dim, factor, to)                                                    \
  ELECTRA_FAST_ON_LANES(panels, pack_panels,                                                                          \
                        (const T* from, const float* bias, std::int64_t stride, std::int64_t rows, std::int64_t dim,  \
                         float* to),                                                                                  \
                        from, bias, stride, rows, dim, to)                                                            \
  ELECTRA_FAST_ON_LANES(transpose, pack_transpose,                                                                    \
                        (const T* from, const float* bias, std::int64_t stride, std::int64_t rows, std::int64_t dim,  \
                         float* to),                                                                                  \
                        from, bias, stride, rows, dim, to)                                                            \
  ELECTRA_FAST_ON_LANES(unpack, store_rows,                                                                           \
                        (const float* from, std::int64_t rows, std::int64_t dim, const float* factors,                \
                         std::int64_t factor_stride, T* to, std::int64_t stride, float* sums),                        \
                        from, rows, dim, factors, factor_stride, to, stride, sums)
ELECTRA_FAST_PACKING(float)
ELECTRA_FAST_PACKING(bfloat16)
#undef ELECTRA_FAST_PACKING
#undef ELECTRA_FAST_ON_LANES

// --- Rows of scores: `columns` is a multiple of 16; columns past the keys hold -infinity ---

// Scores become e^(score - max); returns their sum and sets `max`.
ELECTRA_FAST_CLONES
float exponentials(float* scores, std::int64_t columns, float* max) {
  float top = -INFINITY, sum = 0.0F;
#pragma omp simd reduction(max : top)
  for (std::int64_t j = 0; j < columns; ++j) top = scores[j] > top ? scores[j] : top;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < columns; ++j) {
    scores[j] = exp_nonpositive(scores[j] - top);
    sum += scores[j];
  }
  *max = top;
  return sum;
}

ELECTRA_FAST_CLONES
void drop(float* probabilities, const float* factors, std::int64_t columns) {
  for (std::int64_t j = 0; j < columns; ++j) probabilities[j] *= factors[j];
}

// One row of the backward pass: `scores` becomes the dropped probabilities, `d_scores`, which holds the gradients of
// these, becomes the gradients of the scores. Probabilities share the rounding of `lse`, so their sum is not quite 1;
// where it counts, in the difference, it is divided out.
ELECTRA_FAST_CLONES
void differentiate(float* scores, float* d_scores, const float* factors, float lse, std::int64_t columns,
                   float* probabilities) {
  float sum = 0.0F, total = 0.0F;
#pragma omp simd reduction(+ : sum, total)
  for (std::int64_t j = 0; j < columns; ++j) {
    probabilities[j] = exp_nonpositive(scores[j] - lse);
    scores[j] = probabilities[j] * factors[j];
    d_scores[j] *= scores[j];
    sum += d_scores[j];
    total += probabilities[j];
  }
  const float mean = sum / total;
  for (std::int64_t j = 0; j < columns; ++j) d_scores[j] -= probabilities[j] * mean;
}

ELECTRA_FAST_CLONES
void differentiate(float* scores, float* d_scores, float lse, std::int64_t columns) {
  float sum = 0.0F, total = 0.0F;
#pragma omp simd reduction(+ : sum, total)
  for (std::int64_t j = 0; j < columns; ++j) {
    scores[j] = exp_nonpositive(scores[j] - lse);
    d_scores[j] *= scores[j];
    sum += d_scores[j];
    total += scores[j];
  }
  const float mean = sum / total;
  for (std::int64_t j = 0; j < columns; ++j) d_scores[j] -= scores[j] * mean;
}

// Asks the second cache for a head's row: rows lie too far apart for the hardware to guess. Asked for while scores are
// worked on, what the next head reads and what this one writes are there when their turn comes.
template <class T>
void prefetch([[maybe_unused]] const T* row, [[maybe_unused]] std::int64_t dim) {
#if defined(__GNUC__)
  for (std::int64_t d = 0; d < dim; d += 64 / static_cast<std::int64_t>(sizeof(T))) __builtin_prefetch(row + d, 0, 2);
#endif
}

// --- Work and workspace ---

// The queries [query, query + queries) of one head of the sequence [begin, begin + length).
struct Item {
  std::int64_t begin, length, head, query, queries;
};

// Items of up to `most` queries each, sequence by sequence, and where their costs begin in the sum of all.
struct Plan {
  std::vector<Item> items;
  std::vector<std::int64_t> costs{0};
  std::int64_t longest = 0;

  template <class T>
  Plan(const Attention<T>& call, std::int64_t most) {
    for (std::int64_t s = 0; s < call.num_sequences; ++s) {
      const std::int64_t begin = call.cu_seqlens[s], length = call.cu_seqlens[s + 1] - begin;
      longest = std::max(longest, length);
      for (std::int64_t head = 0; head < call.heads; ++head) {
        for (std::int64_t query = 0; query < length; query += most) {
          items.push_back({begin, length, head, query, std::min(most, length - query)});
          costs.push_back(costs.back() + items.back().queries * (length + kLanes) * call.head_dim);
        }
      }
    }
  }

  // Calls run(item, follows, next, workspace) for every item; it follows if the same thread has just run the item
  // before it of the same head. `next` is the thread's next item, or null. A thread's items are neighbours, and cost
  // about the same in all.
  template <class Run>
  void run(int threads, std::int64_t grain, std::int64_t workspace_size, const Run& run) const {
    const std::int64_t total = costs.back();
    const std::int64_t workers = std::max<std::int64_t>(1, std::min<std::int64_t>(threads, total / grain));
    const std::int64_t stride = round_up(workspace_size, kLanes);
    // Not a vector, which would fill it with zeros.
    const std::unique_ptr<float[]> workspaces(new float[static_cast<std::size_t>(workers * stride + kLanes)]);
    float* first = workspaces.get();
    first += (64 - reinterpret_cast<std::uintptr_t>(first) % 64) / sizeof(float) % kLanes;
    parallel_for(workers, static_cast<int>(workers), 1, [&](std::int64_t begin, std::int64_t end) noexcept {
      for (std::int64_t worker = begin; worker < end; ++worker) {
        const auto item_at = [&](std::int64_t share) {
          return std::lower_bound(costs.begin(), costs.end() - 1, total * share / workers) - costs.begin();
        };
        const auto start = item_at(worker);
        for (auto i = start, last = item_at(worker + 1); i < last; ++i) {
          const Item& item = items[static_cast<std::size_t>(i)];
          run(item, i > start && item.query > 0, i + 1 < last ? &item + 1 : nullptr, first + worker * stride);
        }
      }
    });
  }
};

// Cuts arrays from a block of memory; without one it only adds up their sizes.
class Workspace {
 public:
  explicit Workspace(float* memory) : memory_(memory) {}

  float* take(std::int64_t size) {
    float* taken = memory_ ? memory_ + used_ : nullptr;
    used_ += round_up(size, kLanes);
    return taken;
  }
  std::int64_t used() const { return used_; }

 private:
  float* memory_;
  std::int64_t used_ = 0;
};

// Sizes for sequences of up to `length` tokens.
struct Sizes {
  std::int64_t length, dim, padded_length, padded_dim, score_row, factors;

  Sizes(std::int64_t length, std::int64_t dim)
      : length(length),
        dim(dim),
        padded_length(round_up(length, kLanes)),
        padded_dim(round_up(dim, kLanes)),
        // A power of two would put a column of scores into few sets of the cache.
        score_row(padded_length + kLanes),
        factors(round_up(length, kDrawn)) {}
};

// The bias of one head of q (0), k (1) or v (2); null where there is none.
template <class T>
const float* bias_of(const Attention<T>& call, std::int64_t which, std::int64_t head) {
  return call.bias ? call.bias + (which * call.heads + head) * call.head_dim : nullptr;
}

// What to multiply the probabilities of one query's keys by: 0, or `scale` where they are kept.
template <class T>
void draw_factors(const Attention<T>& call, float scale, std::int64_t token, std::int64_t head, std::int64_t length,
                  float* factors) {
  const Dropout dropout{static_cast<std::uint64_t>(call.seed), call.stream,
                        static_cast<std::uint32_t>(call.drop_below - 1), scale};
  draw_factors(dropout, call.row_ids ? call.row_ids[token] : token, length, factors,
               static_cast<std::uint32_t>(head << 14));
}

template <class T>
void zero_tail(const Attention<T>& call, Heads<T> tensor) {
  for (std::int64_t token = call.cu_seqlens[call.num_sequences]; token < call.num_tokens; ++token) {
    for (std::int64_t head = 0; head < call.heads; ++head) {
      std::fill_n(tensor.at(token, head), call.head_dim, T{});
    }
  }
}

void hide_padding(float* scores, const Sizes& sizes) {
  for (std::int64_t j = sizes.length; j < sizes.padded_length; ++j) scores[j] = -INFINITY;
}

// --- Forward ---

struct ForwardSpace {
  float *k, *v, *q, *scores, *out, *kept;
  std::int64_t used;

  ForwardSpace(float* memory, const Sizes& sizes) {
    Workspace space(memory);
    k = space.take(sizes.padded_length * sizes.dim);  // transposed
    v = space.take(sizes.length * sizes.padded_dim);
    q = space.take(kQueries * sizes.padded_dim);
    scores = space.take(kQueries * sizes.score_row);
    out = space.take(kQueries * sizes.padded_dim);
    kept = space.take(sizes.factors);
    used = space.used();
  }
};

template <class T>
void forward_item(const Attention<T>& call, const Item& item, bool is_packed, const Item* next, Heads<T> out,
                  float* lse, float* memory) {
  const Sizes sizes(item.length, call.head_dim);
  const ForwardSpace space(memory, sizes);
  if (!is_packed) {
    transpose(call.k.at(item.begin, item.head), bias_of(call, 1, item.head), call.k.token_stride, item.length, sizes.dim,
              space.k);
    panels(call.v.at(item.begin, item.head), bias_of(call, 2, item.head), call.v.token_stride, item.length, sizes.dim,
           space.v);
  }
  const std::int64_t token = item.begin + item.query;
  copy(call.q.at(token, item.head), bias_of(call, 0, item.head), call.q.token_stride, item.queries, sizes.dim, call.scale,
       space.q);
  multiply({item.queries, item.length, sizes.dim, space.q, sizes.padded_dim, 1, space.k, kLanes, sizes.dim * kLanes,
            space.scores, sizes.score_row, false});

  const float kept = call.drop_below > 0 ? call.keep_scale : 1.0F;
  float factors[kQueries];
  for (std::int64_t i = 0; i < item.queries; ++i) {
    float* scores = space.scores + i * sizes.score_row;
    prefetch(out.at(token + i, item.head), sizes.dim);
    if (next != nullptr && i < next->queries) prefetch(call.q.at(next->begin + next->query + i, next->head), sizes.dim);
    if (next != nullptr && next->query == 0) {
      for (std::int64_t row = i; row < next->length; row += item.queries) {
        prefetch(call.k.at(next->begin + row, next->head), sizes.dim);
        prefetch(call.v.at(next->begin + row, next->head), sizes.dim);
      }
    }
    hide_padding(scores, sizes);
    float max;
    const float sum = exponentials(scores, sizes.padded_length, &max);
    factors[i] = kept / sum;
    lse[item.head * call.num_tokens + token + i] = max + std::log(sum);
    if (call.drop_below > 0) {
      draw_factors(call, 1.0F, token + i, item.head, item.length, space.kept);
      drop(scores, space.kept, sizes.padded_length);
    }
  }
  multiply({item.queries, sizes.dim, item.length, space.scores, sizes.score_row, 1, space.v, kLanes, item.length * kLanes,
            space.out, sizes.padded_dim, false});
  unpack(space.out, item.queries, sizes.dim, factors, 1, out.at(token, item.head), out.token_stride, nullptr);
}

// --- Backward ---

struct BackwardSpace {
  float *k_transposed, *v_transposed, *k, *dk, *dv;                   // of the sequence
  float *q, *d_out, *scores, *d_scores, *dq;  // of a block of queries
  float* probabilities;                                               // of a query
  float* kept;
  std::int64_t used;

  BackwardSpace(float* memory, const Sizes& sizes) {
    Workspace space(memory);
    k_transposed = space.take(sizes.padded_length * sizes.dim);
    v_transposed = space.take(sizes.padded_length * sizes.dim);
    k = space.take(sizes.length * sizes.padded_dim);
    dk = space.take(sizes.length * sizes.padded_dim);
    dv = space.take(sizes.length * sizes.padded_dim);
    q = space.take(kQueries * sizes.padded_dim);
    d_out = space.take(kQueries * sizes.padded_dim);
    scores = space.take(kQueries * sizes.score_row);
    d_scores = space.take(kQueries * sizes.score_row);
    dq = space.take(kQueries * sizes.padded_dim);
    probabilities = space.take(sizes.padded_length);
    kept = space.take(sizes.factors);
    used = space.used();
  }
};

// All queries of one head of one sequence, so that no two threads add to the same key's gradient. Adds up dq, dk and dv
// over the tokens in sums [3, padded dim], unless it is null.
template <class T>
void backward_item(const Attention<T>& call, const Item& item, const Item* next, const float* lse,
                   Heads<const T> d_out, Heads<T> dq, Heads<T> dk, Heads<T> dv, float* sums, float* memory) {
  const Sizes sizes(item.length, call.head_dim);
  const BackwardSpace space(memory, sizes);
  const std::int64_t length = item.length, dim = sizes.dim, padded = sizes.padded_dim;
  const float *bias_q = bias_of(call, 0, item.head), *bias_k = bias_of(call, 1, item.head);
  transpose(call.k.at(item.begin, item.head), bias_k, call.k.token_stride, length, dim, space.k_transposed);
  transpose(call.v.at(item.begin, item.head), bias_of(call, 2, item.head), call.v.token_stride, length, dim,
            space.v_transposed);
  panels(call.k.at(item.begin, item.head), bias_k, call.k.token_stride, length, dim, space.k);

  for (std::int64_t query = 0; query < length; query += kQueries) {
    const std::int64_t token = item.begin + query, rows = std::min(kQueries, length - query);
    copy(call.q.at(token, item.head), bias_q, call.q.token_stride, rows, dim, call.scale, space.q);
    copy(d_out.at(token, item.head), nullptr, d_out.token_stride, rows, dim, 1.0F, space.d_out);
    multiply({rows, length, dim, space.q, padded, 1, space.k_transposed, kLanes, dim * kLanes, space.scores, sizes.score_row,
              false});
    multiply({rows, length, dim, space.d_out, padded, 1, space.v_transposed, kLanes, dim * kLanes, space.d_scores,
              sizes.score_row, false});
    for (std::int64_t i = 0; i < rows; ++i) {
      float *scores = space.scores + i * sizes.score_row, *d_scores = space.d_scores + i * sizes.score_row;
      const float row_lse = lse[item.head * call.num_tokens + token + i];
      prefetch(dq.at(token + i, item.head), dim);
      prefetch(dk.at(token + i, item.head), dim);
      prefetch(dv.at(token + i, item.head), dim);
      if (next != nullptr && query + i < next->length) {
        const std::int64_t row = next->begin + query + i;
        prefetch(call.q.at(row, next->head), dim);
        prefetch(call.k.at(row, next->head), dim);
        prefetch(call.v.at(row, next->head), dim);
        prefetch(d_out.at(row, next->head), dim);
      }
      hide_padding(scores, sizes);
      if (call.drop_below > 0) {
        draw_factors(call, call.keep_scale, token + i, item.head, length, space.kept);
        differentiate(scores, d_scores, space.kept, row_lse, sizes.padded_length, space.probabilities);
      } else {
        differentiate(scores, d_scores, row_lse, sizes.padded_length);
      }
    }
    multiply({rows, dim, length, space.d_scores, sizes.score_row, 1, space.k, kLanes, length * kLanes, space.dq, padded,
              false});
    unpack(space.dq, rows, dim, &call.scale, 0, dq.at(token, item.head), dq.token_stride, sums);

    multiply({length, dim, rows, space.d_scores, 1, sizes.score_row, space.q, padded, kLanes, space.dk, padded,
              query > 0});
    multiply({length, dim, rows, space.scores, 1, sizes.score_row, space.d_out, padded, kLanes, space.dv, padded,
              query > 0});
  }
  const float one = 1.0F;
  unpack(space.dk, length, dim, &one, 0, dk.at(item.begin, item.head), dk.token_stride,
         sums ? sums + padded : nullptr);
  unpack(space.dv, length, dim, &one, 0, dv.at(item.begin, item.head), dv.token_stride,
         sums ? sums + 2 * padded : nullptr);
}

}  // namespace

template <class T>
void attention(const Attention<T>& call, Heads<T> out, float* lse, int threads) {
  const Plan plan(call, kQueries);
  const std::int64_t size = ForwardSpace(nullptr, Sizes(plan.longest, call.head_dim)).used;
  plan.run(threads, kGrain / 2, size, [&](const Item& item, bool follows, const Item* next, float* memory) {
    forward_item(call, item, follows, next, out, lse, memory);
  });
  zero_tail(call, out);
  for (std::int64_t head = 0; head < call.heads; ++head) {
    float* row = lse + head * call.num_tokens;
    std::fill(row + call.cu_seqlens[call.num_sequences], row + call.num_tokens, 0.0F);
  }
}

template <class T>
void attention_backward(const Attention<T>& call, const float* lse, Heads<const T> d_out, Heads<T> dq, Heads<T> dk,
                        Heads<T> dv, float* dbias, int threads) {
  const Plan plan(call, std::max<std::int64_t>(call.num_tokens, 1));
  const Sizes sizes(plan.longest, call.head_dim);
  // Sums of each item by itself, so that they do not depend on which thread had it.
  const std::int64_t stride = 3 * sizes.padded_dim;
  std::vector<float> sums(dbias ? plan.items.size() * static_cast<std::size_t>(stride) : 0);
  const std::int64_t size = BackwardSpace(nullptr, sizes).used;
  plan.run(threads, kGrain / 5, size, [&](const Item& item, bool, const Item* next, float* memory) {
    float* of_item = dbias ? sums.data() + (&item - plan.items.data()) * stride : nullptr;
    backward_item(call, item, next, lse, d_out, dq, dk, dv, of_item, memory);
  });
  for (const Heads<T>& gradient : {dq, dk, dv}) zero_tail(call, gradient);
  if (dbias == nullptr) return;
  std::fill_n(dbias, 3 * call.heads * call.head_dim, 0.0F);
  const float* of_item = sums.data();
  for (const Item& item : plan.items) {
    for (std::int64_t which = 0; which < 3; ++which, of_item += sizes.padded_dim) {
      float* sum = dbias + (which * call.heads + item.head) * call.head_dim;
      for (std::int64_t d = 0; d < call.head_dim; ++d) sum[d] += of_item[d];
    }
  }
}

template void attention(const Attention<float>&, Heads<float>, float*, int);
template void attention(const Attention<bfloat16>&, Heads<bfloat16>, float*, int);
template void attention_backward(const Attention<float>&, const float*, Heads<const float>, Heads<float>, Heads<float>,
                                 Heads<float>, float*, int);
template void attention_backward(const Attention<bfloat16>&, const float*, Heads<const bfloat16>, Heads<bfloat16>,
                                 Heads<bfloat16>, Heads<bfloat16>, float*, int);

}  // namespace electra_fast
