// Runs every kernel of csrc/ without Python, for sanitizers: random shapes and types, empty ones too, in buffers of
// exactly the size needed. Any number of threads must give the bits that one gives; some results are checked against a
// scalar loop. Usage: driver SEED ROUNDS [FILE]: the results of one thread go to the file, to compare builds by.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "attention.h"
#include "embedding.h"
#include "gelu.h"
#include "generator_head.h"
#include "layer_norm.h"
#include "masking_sampling.h"
#include "rtd_bce.h"
#include "sampling.h"
#include "weight_gradient.h"

using namespace electra_fast;

namespace {

std::mt19937_64 generator;
std::FILE* results = nullptr;  // where they go, if anywhere

std::int64_t integer(std::int64_t low, std::int64_t high) {  // both included
  return std::uniform_int_distribution<std::int64_t>(low, high)(generator);
}
bool coin() { return integer(0, 1) == 1; }

// Few rows or many, so that some calls have several threads and some none; 0, 1 and odd numbers among them.
std::int64_t a_size(std::int64_t most) { return integer(0, integer(0, 3) == 0 ? most : 5); }

// No element more than asked for: what is read or written beyond is seen. Freed memory and fresh memory look alike.
template <class T>
std::vector<T> filled(std::int64_t n, const std::function<T()>& value) {
  std::vector<T> values(static_cast<std::size_t>(n));
  for (T& each : values) each = value();
  values.shrink_to_fit();
  return values;
}

std::vector<std::int64_t> integers(std::int64_t n, std::int64_t low, std::int64_t high) {
  return filled<std::int64_t>(n, [&] { return integer(low, high); });
}
std::vector<std::uint8_t> flags(std::int64_t n) {
  return filled<std::uint8_t>(n, [] { return static_cast<std::uint8_t>(coin()); });
}
template <class T>
std::vector<T> floats(std::int64_t n, float spread = 3.0F) {
  std::normal_distribution<float> normal(0.0F, spread);
  return filled<T>(n, [&] {
    T value;
    store(&value, normal(generator));
    return value;
  });
}
template <class T>
T* or_null(std::vector<T>& values, bool present) {
  return present ? values.data() : nullptr;
}

// Outputs of a call, filled with a byte: calls that agree after different bytes have written every element.
class Outputs {
 public:
  explicit Outputs(int fill) : fill_(fill) {}
  template <class T>
  T* make(std::int64_t n) {
    const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(T);
    types_.push_back(std::is_same_v<T, float> ? 'f' : std::is_same_v<T, bfloat16> ? 'b' : sizeof(T) == 8 ? 'l' : 'B');
    buffers_.emplace_back(new unsigned char[bytes]);
    sizes_.push_back(bytes);
    std::memset(buffers_.back().get(), fill_, bytes);
    return reinterpret_cast<T*>(buffers_.back().get());
  }
  bool operator==(const Outputs& other) const {
    if (sizes_ != other.sizes_) return false;
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      if (sizes_[i] > 0 && std::memcmp(buffers_[i].get(), other.buffers_[i].get(), sizes_[i]) != 0) return false;
    }
    return true;
  }
  // For each: the name of the kernel, the type, the number of bytes, the bytes.
  void write(std::FILE* file, const char* name) const {
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      std::fprintf(file, "%s %c %zu\n", name, types_[i], sizes_[i]);
      std::fwrite(buffers_[i].get(), 1, sizes_[i], file);
    }
  }

 private:
  int fill_;
  std::vector<char> types_;  // as of Python's struct; b is bfloat16
  std::vector<std::unique_ptr<unsigned char[]>> buffers_;
  std::vector<std::size_t> sizes_;
};

void require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "wrong: %s\n", what.c_str());
  std::exit(1);
}

// Calls `run(outputs, threads)` for one thread and several.
void check_threads(const char* name, const std::function<void(Outputs&, int)>& run) {
  Outputs expected(0xA5);
  run(expected, 1);
  for (const int threads : {2, 3, 7}) {
    Outputs got(0x5A);
    run(got, threads);
    const std::string where = " on " + std::to_string(threads) + " threads";
    require(got == expected, name + (": other bits, or some not written," + where));
  }
  if (results) expected.write(results, name);
}

Dropout a_dropout() {
  Dropout dropout{};
  dropout.seed = generator();
  dropout.stream = static_cast<std::uint32_t>(integer(0, 2147483647));
  dropout.last_dropped = static_cast<std::uint32_t>(integer(0, 4294967295));
  dropout.scale = 1.25F;
  return dropout;
}

void run_draw_factors() {
  const std::int64_t n = integer(1, coin() ? kMaxWidth : 9);
  const auto row_id = static_cast<std::int64_t>(generator());
  const auto first_block = static_cast<std::uint32_t>(integer(0, std::int64_t{1} << 20));
  const Dropout dropout = a_dropout();
  std::vector<float> factors(static_cast<std::size_t>((n + kDrawn - 1) / kDrawn * kDrawn), NAN);
  draw_factors(dropout, row_id, n, factors.data(), first_block);
  for (std::int64_t i = 0; i < n; ++i) {
    const auto block = first_block + static_cast<std::uint32_t>(i / 4);
    const Words drawn = philox(dropout.seed, block, static_cast<std::uint64_t>(row_id), dropout.stream);
    const std::uint32_t words[4] = {drawn.w0, drawn.w1, drawn.w2, drawn.w3};
    const float expected = words[i % 4] > dropout.last_dropped ? dropout.scale : 0.0F;
    require(factors[static_cast<std::size_t>(i)] == expected, "draw_factors: column " + std::to_string(i));
  }
}

void run_mask_tokens() {
  const std::int64_t sequences = a_size(300);
  std::vector<std::int64_t> starts{0};
  for (std::int64_t s = 0; s < sequences; ++s) starts.push_back(starts.back() + a_size(s == 0 ? 8192 : 600));
  const std::int64_t tokens = starts.back() + a_size(9);
  auto ids = integers(tokens, 0, 30), rows = integers(tokens, INT64_MIN, INT64_MAX);
  auto units = flags(tokens);
  const std::vector<std::int64_t> never{2, 3, 4};
  MaskTokens call{};
  call.input_ids = ids.data();
  call.cu_seqlens = starts.data();
  call.row_ids = or_null(rows, coin());
  call.unit_starts = or_null(units, coin());
  call.never_mask_ids = never.data();
  call.num_tokens = tokens;
  call.num_sequences = sequences;
  call.num_never = integer(0, 3);
  call.num_masked = a_size(tokens + 5);
  call.seed = static_cast<std::int64_t>(generator());
  call.mask_token_id = 4;
  call.max_per_sequence = integer(1, 2000);
  call.mask_prob = static_cast<float>(integer(0, 100)) / 100.0F;
  call.replace_below = static_cast<std::uint64_t>(integer(0, std::int64_t{1} << 32));
  check_threads("mask_tokens", [&](Outputs& outputs, int threads) {
    call.masked_ids = outputs.make<std::int64_t>(tokens);
    call.positions = outputs.make<std::int64_t>(call.num_masked);
    call.labels = outputs.make<std::int64_t>(call.num_masked);
    call.weights = outputs.make<float>(call.num_masked);
    mask_tokens(call, threads);
    for (std::int64_t slot = 0; slot < call.num_masked; ++slot) {
      const std::int64_t position = call.positions[slot];
      require(position >= 0 && position < std::max<std::int64_t>(tokens, 1), "mask_tokens: position");
      require(call.labels[slot] == (tokens > 0 ? ids[static_cast<std::size_t>(position)] : 0), "mask_tokens: label");
    }
  });
}

void run_corrupt_tokens() {
  const std::int64_t tokens = a_size(100000);
  const std::int64_t slots = std::min(tokens, a_size(20000));
  auto ids = integers(tokens, 0, 30), sampled = integers(slots, 0, 30);
  std::vector<std::int64_t> positions;
  for (std::int64_t i = 0; i < slots; ++i) positions.push_back(i * (tokens / slots));
  auto weights = filled<float>(slots, [] { return coin() ? 1.0F : 0.0F; });
  CorruptTokens call{};
  call.input_ids = ids.data();
  call.positions = positions.data();
  call.sampled_ids = sampled.data();
  call.weights = weights.data();
  call.num_tokens = tokens;
  call.num_slots = slots;
  check_threads("corrupt_tokens", [&](Outputs& outputs, int threads) {
    call.corrupted_ids = outputs.make<std::int64_t>(tokens);
    call.is_replaced = outputs.make<std::uint8_t>(tokens);
    corrupt_tokens(call, threads);
    for (std::int64_t i = 0; i < tokens; ++i) {
      require(call.is_replaced[i] == (call.corrupted_ids[i] != ids[static_cast<std::size_t>(i)]), "corrupt_tokens");
    }
  });
}

template <class T>
void run_sample_tokens() {
  const std::int64_t rows = a_size(60), vocab = integer(2, coin() ? 40000 : 70);
  auto logits = floats<T>(rows * vocab);
  auto row_ids = integers(rows, INT64_MIN, INT64_MAX), disallow = integers(rows, 0, vocab - 1);
  SampleTokens call{};
  call.logits = logits.data();
  call.bfloat16 = sizeof(T) == 2;
  call.num_rows = rows;
  call.vocab_size = call.row_stride = vocab;
  call.row_ids = or_null(row_ids, coin());
  call.disallow = or_null(disallow, coin());
  call.seed = static_cast<std::int64_t>(generator());
  call.stream = 3;
  call.inverse_temperature = 1.25F;
  check_threads("sample_tokens", [&](Outputs& outputs, int threads) {
    call.sampled_ids = outputs.make<std::int64_t>(rows);
    sample_tokens(call, threads);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t token = call.sampled_ids[r];
      require(token >= 0 && token < vocab, "sample_tokens: token");
      require(call.disallow == nullptr || token != call.disallow[r], "sample_tokens: disallowed token");
    }
  });
}

template <class T>
void run_generator_head() {
  const std::int64_t rows = a_size(90), vocab = integer(2, coin() ? 9000 : 70), width = integer(1, coin() ? 40 : 300);
  const auto hidden = floats<T>(rows * width), weight = floats<T>(vocab * width);
  auto bias = floats<float>(vocab), coefficients = floats<float>(rows);
  for (float& each : coefficients) each = coin() ? each : 0.0F;
  auto labels = integers(rows, 0, vocab - 1), row_ids = integers(rows, INT64_MIN, INT64_MAX);
  const bool has_coefficients = coin(), has_sample = coin(), has_nll = coin(), has_argmax = coin();
  GeneratorHead call{};
  call.hidden = hidden.data();
  call.weight = weight.data();
  call.bfloat16 = sizeof(T) == 2;
  call.num_rows = rows;
  call.vocab_size = vocab;
  call.width = width;
  call.chunk = integer(1, 100);
  call.bias = bias.data();
  call.labels = labels.data();
  call.coefficients = or_null(coefficients, has_coefficients);
  call.row_ids = or_null(row_ids, coin());
  call.seed = static_cast<std::int64_t>(generator());
  call.stream = 3;
  call.inverse_temperature = coin() ? 1.0F : 0.8F;
  call.disallow_correct = coin();
  // Where there are no rows, nobody writes the gradients.
  const std::int64_t stride = has_coefficients && rows > 0 ? head_stride(width) : 0;
  check_threads("generator_head", [&](Outputs& outputs, int threads) {
    call.nll = has_nll ? outputs.make<float>(rows) : nullptr;
    call.largest = has_nll ? outputs.make<float>(rows) : nullptr;
    call.log_total = has_nll ? outputs.make<float>(rows) : nullptr;
    call.sampled_ids = has_sample ? outputs.make<std::int64_t>(rows) : nullptr;
    call.argmax_ids = has_argmax ? outputs.make<std::int64_t>(rows) : nullptr;
    call.d_hidden = outputs.make<float>(rows * stride);
    call.d_weight = outputs.make<float>(vocab * stride);
    call.d_bias = outputs.make<float>(stride > 0 ? vocab : 0);
    generator_head(call, threads);
    for (std::int64_t r = 0; has_sample && r < rows; ++r) {
      require(call.sampled_ids[r] >= 0 && call.sampled_ids[r] < vocab, "generator_head: token");
    }
  });
}

template <class T>
void run_rtd_bce() {
  const std::int64_t tokens = a_size(200000);
  auto logits = floats<T>(tokens);
  if (tokens > 2) {
    store(&logits[0], NAN);
    store(&logits[1], INFINITY);
    store(&logits[2], -INFINITY);
  }
  const auto is_replaced = flags(tokens), mask = flags(tokens);
  const bool has_gradient = coin();
  check_threads("rtd_bce", [&](Outputs& outputs, int threads) {
    RTDBCE<T> call{};
    call.logits = logits.data();
    call.is_replaced = is_replaced.data();
    call.mask = mask.data();
    call.num_tokens = tokens;
    call.loss_sum = outputs.make<float>(1);
    call.counts = outputs.make<std::int64_t>(5);
    call.histogram = outputs.make<std::int64_t>(2 * kHistogramBins);
    call.gradient = has_gradient ? outputs.make<T>(tokens) : nullptr;
    rtd_bce(call, threads);
    std::int64_t counts[5] = {}, binned = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const bool predicted = load(&logits[i]) > 0.0F, replaced = is_replaced[i] != 0;
      if (!mask[i]) continue;
      ++counts[0];
      ++counts[predicted ? (replaced ? 1 : 2) : (replaced ? 4 : 3)];
    }
    for (std::int64_t bin = 0; bin < 2 * kHistogramBins; ++bin) binned += call.histogram[bin];
    require(std::equal(counts, counts + 5, call.counts), "rtd_bce: counts");
    require(binned == counts[0], "rtd_bce: histogram");
  });
}

template <class T>
void run_bias_gelu() {
  const std::int64_t rows = a_size(400), width = a_size(1500);
  const auto x = floats<T>(rows * width), dy = floats<T>(rows * width);
  const auto bias = floats<float>(width);
  check_threads("bias_gelu", [&](Outputs& outputs, int threads) {
    const BiasGELU<T> call{x.data(), bias.data(), rows, width, outputs.make<T>(rows * width)};
    bias_gelu(call, threads);
    for (std::int64_t i = 0; i < rows * width; ++i) {
      const double u = load(&x[static_cast<std::size_t>(i)]) + bias[static_cast<std::size_t>(i % width)];
      const double expected = 0.5 * u * std::erfc(-u / std::sqrt(2.0));
      require(std::fabs(load(call.y + i) - expected) <= (sizeof(T) == 2 ? 5e-3 : 1e-6) * (1.0 + std::fabs(u)), "gelu");
    }
    BiasGELUBackward<T> backward{dy.data(), x.data(), bias.data(), rows, width,
                                 outputs.make<T>(rows * width), outputs.make<float>(width), nullptr};
    bias_gelu_backward(backward, threads);
    backward.y = outputs.make<T>(rows * width);
    bias_gelu_backward(backward, threads);
    for (std::int64_t i = 0; i < rows * width; ++i) {
      require(std::fabs(load(backward.y + i) - load(call.y + i)) <= 1e-2F * (std::fabs(load(call.y + i)) + 1e-4F), "gelu again");
    }
  });
}

// X and Y: the types of x and of y.
template <class X, class Y>
void run_layer_norm() {
  const std::int64_t rows = a_size(500), width = integer(1, coin() ? 2000 : 9);
  const auto x = floats<X>(rows * width);
  const auto residual = floats<Y>(rows * width), dy = floats<Y>(rows * width);
  const auto weight = floats<float>(width), bias = floats<float>(width), x_bias = floats<float>(width);
  auto row_ids = integers(rows, INT64_MIN, INT64_MAX);
  const bool has_residual = sizeof(X) != sizeof(Y) || coin(), wants_weights = coin(), wants_x = coin();
  const bool has_x_bias = has_residual && coin(), keeps_sum = sizeof(X) == 4 && sizeof(Y) == 4 && has_residual && coin();
  LayerNormRows shared{};
  shared.x = x.data();
  shared.residual = has_residual ? residual.data() : nullptr;
  shared.row_ids = or_null(row_ids, coin());
  shared.num_rows = rows;
  shared.width = width;
  shared.x_is_bfloat16 = sizeof(X) == 2;
  shared.y_is_bfloat16 = sizeof(Y) == 2;
  shared.drops = has_residual && coin();
  shared.dropout = a_dropout();
  check_threads("layer_norm", [&](Outputs& outputs, int threads) {
    LayerNorm call{};
    call.rows = shared;
    call.weight = weight.data();
    call.bias = bias.data();
    call.eps = 1e-12F;
    call.y = outputs.make<Y>(rows * width);
    call.mean = outputs.make<float>(rows);
    call.rstd = outputs.make<float>(rows);
    call.x_bias = has_x_bias ? x_bias.data() : nullptr;
    call.sum = keeps_sum ? outputs.make<float>(rows * width) : nullptr;
    layer_norm(call, threads);
    LayerNormBackward back{};
    back.rows = shared;
    if (keeps_sum) {
      back.rows.x = call.sum;
      back.rows.residual = nullptr;
    }
    back.dy = dy.data();
    back.weight = weight.data();
    back.mean = call.mean;
    back.rstd = call.rstd;
    back.dx = wants_x ? outputs.make<X>(rows * width) : nullptr;
    back.dresidual = has_residual ? outputs.make<Y>(rows * width) : nullptr;
    back.dweight = wants_weights ? outputs.make<float>(width) : nullptr;
    back.dbias = wants_weights ? outputs.make<float>(width) : nullptr;
    back.dx_bias = wants_weights && wants_x ? outputs.make<float>(width) : nullptr;
    layer_norm_backward(back, threads);
  });
}

template <class T>
void run_embedding() {
  const std::int64_t tokens = a_size(600), width = integer(1, coin() ? 800 : 9);
  const std::int64_t words = integer(1, 400), types = integer(1, 3), positions = integer(1, 70);
  const auto word = floats<T>(words * width), type = floats<T>(types * width), position = floats<T>(positions * width);
  const auto dy = floats<T>(tokens * width);
  const auto weight = floats<float>(width), bias = floats<float>(width);
  const auto input_ids = integers(tokens, 0, words - 1), position_ids = integers(tokens, 0, positions - 1);
  auto type_ids = integers(tokens, 0, types - 1), row_ids = integers(tokens, INT64_MIN, INT64_MAX);
  const bool wants_tables = coin(), wants_weights = coin();
  EmbeddingRows shared{};
  shared.word = word.data();
  shared.token_type = type.data();
  shared.position = position.data();
  shared.is_bfloat16 = sizeof(T) == 2;
  shared.weight = weight.data();
  shared.input_ids = input_ids.data();
  shared.token_type_ids = or_null(type_ids, coin());
  shared.position_ids = position_ids.data();
  shared.row_ids = or_null(row_ids, coin());
  shared.num_tokens = tokens;
  shared.width = width;
  shared.has_dropout = coin();
  shared.dropout = a_dropout();
  check_threads("embedding_layer_norm", [&](Outputs& outputs, int threads) {
    EmbeddingLayerNorm call{};
    call.rows = shared;
    call.bias = bias.data();
    call.eps = 1e-12F;
    call.y = outputs.make<T>(tokens * width);
    call.stats = outputs.make<float>(2 * tokens);
    embedding_layer_norm(call, threads);
    EmbeddingLayerNormBackward back{};
    back.rows = shared;
    back.dy = dy.data();
    back.stats = call.stats;
    back.num_words = words;
    back.num_types = types;
    back.num_positions = positions;
    back.padding_idx = words > 3 ? 3 : -1;
    back.dword = wants_tables ? outputs.make<T>(words * width) : nullptr;
    back.dtoken_type = wants_tables ? outputs.make<T>(types * width) : nullptr;
    back.dposition = wants_tables ? outputs.make<T>(positions * width) : nullptr;
    back.dweight = wants_weights ? outputs.make<float>(width) : nullptr;
    back.dbias = wants_weights ? outputs.make<float>(width) : nullptr;
    embedding_layer_norm_backward(back, threads);
  });
}

template <class T>
void run_attention() {
  const std::int64_t heads = integer(1, 3), head_dim = integer(1, coin() ? 80 : 9);
  std::vector<std::int64_t> cu_seqlens{0};
  for (std::int64_t n = integer(0, 5); n > 0; --n) cu_seqlens.push_back(cu_seqlens.back() + a_size(90));
  const std::int64_t tokens = cu_seqlens.back() + a_size(5), size = tokens * heads * head_dim;
  const auto q = floats<T>(size, 1.0F), k = floats<T>(size, 1.0F), v = floats<T>(size), d_out = floats<T>(size);
  auto row_ids = integers(tokens, INT64_MIN, INT64_MAX);
  const std::int64_t stride = heads * head_dim;
  const Dropout dropout = a_dropout();
  const auto bias = floats<float>(3 * stride);
  const bool wants_dbias = coin(), drops = coin(), has_bias = coin();
  const Attention<T> call{{q.data(), stride, head_dim},
                          {k.data(), stride, head_dim},
                          {v.data(), stride, head_dim},
                          cu_seqlens.data(),
                          or_null(row_ids, coin()),
                          tokens,
                          static_cast<std::int64_t>(cu_seqlens.size()) - 1,
                          heads,
                          head_dim,
                          0.2F,
                          drops ? std::uint64_t{dropout.last_dropped} + 1 : 0,
                          dropout.scale,
                          static_cast<std::int64_t>(dropout.seed),
                          dropout.stream,
                          has_bias ? bias.data() : nullptr};
  check_threads("attention", [&](Outputs& outputs, int threads) {
    T* const out = outputs.make<T>(size);
    float* const lse = outputs.make<float>(heads * tokens);
    attention(call, Heads<T>{out, stride, head_dim}, lse, threads);
    // The tail belongs to no sequence; a sequence's outputs are means of its values, unless dropout scales them.
    for (std::int64_t i = cu_seqlens.back() * stride; i < size; ++i) require(load(out + i) == 0.0F, "attention: tail");
    float largest = 0.0F;
    for (std::int64_t i = 0; i < size; ++i) largest = std::max(largest, std::fabs(load(&v[i])));
    for (std::int64_t i = 0; i < size && !drops && !has_bias; ++i) require(std::fabs(load(out + i)) <= 1.01F * largest, "attention");
    T* const dq = outputs.make<T>(size);
    T* const dk = outputs.make<T>(size);
    T* const dv = outputs.make<T>(size);
    attention_backward(call, lse, Heads<const T>{d_out.data(), stride, head_dim}, Heads<T>{dq, stride, head_dim},
                       Heads<T>{dk, stride, head_dim}, Heads<T>{dv, stride, head_dim},
                       wants_dbias ? outputs.make<float>(3 * stride) : nullptr, threads);
  });
}

void run_weight_gradient() {
  const std::int64_t tokens = a_size(300), outputs = 16 * integer(1, 9), inputs = 64 * integer(1, 3);
  const std::int64_t dy_stride = outputs + integer(0, 3), x_stride = inputs + integer(0, 3);
  const auto dy = floats<float>(tokens * dy_stride), x = floats<float>(tokens * x_stride);
  check_threads("weight_gradient", [&](Outputs& outputs_of, int threads) {
    WeightGradient call{dy.data(), x.data(), dy_stride, x_stride, tokens, outputs, inputs, false,
                        outputs_of.make<float>(outputs * inputs)};
    weight_gradient(call, threads);
    const std::vector<float> once(call.dweight, call.dweight + outputs * inputs);
    call.accumulate = true;
    weight_gradient(call, threads);
    for (std::int64_t i = 0; i < outputs * inputs; ++i) {
      double sum = 0.0, size = 0.0;
      for (std::int64_t t = 0; t < tokens; ++t) {
        const double product = double{dy[static_cast<std::size_t>(t * dy_stride + i / inputs)]} *
                               double{x[static_cast<std::size_t>(t * x_stride + i % inputs)]};
        sum += product;
        size += std::fabs(product);
      }
      const double bound = 2e-5 * size + 1e-30;
      require(std::fabs(once[static_cast<std::size_t>(i)] - sum) <= bound, "weight_gradient");
      require(std::fabs(call.dweight[i] - 2.0 * sum) <= 2.0 * bound, "weight_gradient: added");
    }
  });
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3 && count != 4) {
    std::fprintf(stderr, "usage: driver SEED ROUNDS [FILE]\n");
    return 2;
  }
  if (count == 4) results = std::fopen(arguments[3], "wb");
  require(count == 3 || results, "the file can't be opened");
  generator.seed(std::strtoull(arguments[1], nullptr, 10));
  const std::vector<std::function<void()>> kernels{
      run_draw_factors,
      run_mask_tokens,
      run_corrupt_tokens,
      run_sample_tokens<float>,
      run_sample_tokens<bfloat16>,
      run_generator_head<float>,
      run_generator_head<bfloat16>,
      run_rtd_bce<float>,
      run_rtd_bce<bfloat16>,
      run_bias_gelu<float>,
      run_bias_gelu<bfloat16>,
      run_layer_norm<float, float>,
      run_layer_norm<float, bfloat16>,
      run_layer_norm<bfloat16, float>,
      run_layer_norm<bfloat16, bfloat16>,
      run_embedding<float>,
      run_embedding<bfloat16>,
      run_attention<float>,
      run_attention<bfloat16>,
      run_weight_gradient,
  };
  const int rounds = std::atoi(arguments[2]);
  for (int round = 0; round < rounds; ++round) {
    for (const auto& kernel : kernels) kernel();
  }
  if (results) std::fclose(results);
  std::printf("%d rounds of %zu kernels\n", rounds, kernels.size());
}
