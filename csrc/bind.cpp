// Names for Python. Tensors come as addresses and sizes, so that the extension depends on no version of PyTorch; the
// callers in electra_fast/ops check shapes and dtypes and keep the memory alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "attention.h"
#include "embedding.h"
#include "gelu.h"
#include "generator_head.h"
#include "lanes.h"
#include "layer_norm.h"
#include "masking_sampling.h"
#include "parallel.h"
#include "rtd_bce.h"
#include "sampling.h"
#include "weight_gradient.h"

namespace py = pybind11;

namespace {

template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// --- masking_sampling ---

void bind_masking_sampling(py::module_& module) {
  module.def(
      "mask_tokens",
      [](std::uintptr_t input_ids, std::uintptr_t cu_seqlens, std::uintptr_t row_ids, std::uintptr_t unit_starts,
         std::int64_t num_tokens, std::int64_t num_sequences, std::int64_t seed, std::int64_t mask_token_id,
         const std::vector<std::int64_t>& never_mask_ids, std::int64_t num_masked, float mask_prob,
         std::uint64_t replace_below, std::int64_t max_per_sequence, std::uintptr_t masked_ids,
         std::uintptr_t positions, std::uintptr_t labels, std::uintptr_t weights, int threads) {
        electra_fast::MaskTokens call{};
        call.input_ids = at<const std::int64_t>(input_ids);
        call.cu_seqlens = at<const std::int64_t>(cu_seqlens);
        call.row_ids = at<const std::int64_t>(row_ids);
        call.unit_starts = at<const std::uint8_t>(unit_starts);
        call.never_mask_ids = never_mask_ids.data();
        call.num_tokens = num_tokens;
        call.num_sequences = num_sequences;
        call.num_never = static_cast<std::int64_t>(never_mask_ids.size());
        call.num_masked = num_masked;
        call.seed = seed;
        call.mask_token_id = mask_token_id;
        call.max_per_sequence = max_per_sequence;
        call.mask_prob = mask_prob;
        call.replace_below = replace_below;
        call.masked_ids = at<std::int64_t>(masked_ids);
        call.positions = at<std::int64_t>(positions);
        call.labels = at<std::int64_t>(labels);
        call.weights = at<float>(weights);
        const py::gil_scoped_release unlocked;
        electra_fast::mask_tokens(call, threads);
      },
      py::kw_only(), py::arg("input_ids"), py::arg("cu_seqlens"), py::arg("row_ids"), py::arg("unit_starts"),
      py::arg("num_tokens"), py::arg("num_sequences"), py::arg("seed"), py::arg("mask_token_id"),
      py::arg("never_mask_ids"), py::arg("num_masked"), py::arg("mask_prob"), py::arg("replace_below"), py::arg("max_per_sequence"),
      py::arg("masked_ids"), py::arg("positions"), py::arg("labels"), py::arg("weights"), py::arg("threads"));

  module.def(
      "corrupt_tokens",
      [](std::uintptr_t input_ids, std::uintptr_t positions, std::uintptr_t sampled_ids, std::uintptr_t weights,
         std::int64_t num_tokens, std::int64_t num_slots, std::uintptr_t corrupted_ids, std::uintptr_t is_replaced,
         int threads) {
        electra_fast::CorruptTokens call{};
        call.input_ids = at<const std::int64_t>(input_ids);
        call.positions = at<const std::int64_t>(positions);
        call.sampled_ids = at<const std::int64_t>(sampled_ids);
        call.weights = at<const float>(weights);
        call.num_tokens = num_tokens;
        call.num_slots = num_slots;
        call.corrupted_ids = at<std::int64_t>(corrupted_ids);
        call.is_replaced = at<std::uint8_t>(is_replaced);
        const py::gil_scoped_release unlocked;
        electra_fast::corrupt_tokens(call, threads);
      },
      py::kw_only(), py::arg("input_ids"), py::arg("positions"), py::arg("sampled_ids"), py::arg("weights"),
      py::arg("num_tokens"), py::arg("num_slots"), py::arg("corrupted_ids"), py::arg("is_replaced"),
      py::arg("threads"));
}

// --- generator_head ---

void bind_generator_head(py::module_& module) {
  module.def(
      "sample_tokens",
      [](std::uintptr_t logits, bool bfloat16, std::int64_t num_rows, std::int64_t vocab_size, std::int64_t row_stride,
         std::uintptr_t row_ids, std::uintptr_t disallow, std::int64_t seed, std::uint32_t stream,
         float inverse_temperature, std::uintptr_t sampled_ids, int threads) {
        electra_fast::SampleTokens call{};
        call.logits = at<const void>(logits);
        call.bfloat16 = bfloat16;
        call.num_rows = num_rows;
        call.vocab_size = vocab_size;
        call.row_stride = row_stride;
        call.row_ids = at<const std::int64_t>(row_ids);
        call.disallow = at<const std::int64_t>(disallow);
        call.seed = seed;
        call.stream = stream;
        call.inverse_temperature = inverse_temperature;
        call.sampled_ids = at<std::int64_t>(sampled_ids);
        const py::gil_scoped_release unlocked;
        electra_fast::sample_tokens(call, threads);
      },
      py::kw_only(), py::arg("logits"), py::arg("bfloat16"), py::arg("num_rows"), py::arg("vocab_size"),
      py::arg("row_stride"), py::arg("row_ids"), py::arg("disallow"), py::arg("seed"), py::arg("stream"),
      py::arg("inverse_temperature"), py::arg("sampled_ids"), py::arg("threads"));
  module.def("head_stride", &electra_fast::head_stride, py::arg("width"));
  module.def(
      "generator_head",
      [](std::uintptr_t hidden, std::uintptr_t weight, bool bfloat16, std::int64_t num_rows, std::int64_t vocab_size,
         std::int64_t width, std::int64_t chunk, std::uintptr_t bias, std::uintptr_t labels, std::uintptr_t nll,
         std::uintptr_t largest, std::uintptr_t log_total, std::uintptr_t sampled_ids, std::uintptr_t row_ids,
         std::int64_t seed, std::uint32_t stream, float inverse_temperature, bool disallow_correct,
         std::uintptr_t argmax_ids, std::uintptr_t coefficients, std::uintptr_t d_hidden, std::uintptr_t d_weight,
         std::uintptr_t d_bias, int threads) {
        electra_fast::GeneratorHead call{};
        call.hidden = at<const void>(hidden);
        call.weight = at<const void>(weight);
        call.bfloat16 = bfloat16;
        call.num_rows = num_rows;
        call.vocab_size = vocab_size;
        call.width = width;
        call.chunk = chunk;
        call.bias = at<const float>(bias);
        call.labels = at<const std::int64_t>(labels);
        call.nll = at<float>(nll);
        call.largest = at<float>(largest);
        call.log_total = at<float>(log_total);
        call.sampled_ids = at<std::int64_t>(sampled_ids);
        call.row_ids = at<const std::int64_t>(row_ids);
        call.seed = seed;
        call.stream = stream;
        call.inverse_temperature = inverse_temperature;
        call.disallow_correct = disallow_correct;
        call.argmax_ids = at<std::int64_t>(argmax_ids);
        call.coefficients = at<const float>(coefficients);
        call.d_hidden = at<float>(d_hidden);
        call.d_weight = at<float>(d_weight);
        call.d_bias = at<float>(d_bias);
        const py::gil_scoped_release unlocked;
        electra_fast::generator_head(call, threads);
      },
      py::kw_only(), py::arg("hidden"), py::arg("weight"), py::arg("bfloat16"), py::arg("num_rows"),
      py::arg("vocab_size"), py::arg("width"), py::arg("chunk"), py::arg("bias"), py::arg("labels"),
      py::arg("nll") = 0, py::arg("largest") = 0, py::arg("log_total") = 0, py::arg("sampled_ids") = 0,
      py::arg("row_ids") = 0, py::arg("seed") = 0, py::arg("stream") = 0, py::arg("inverse_temperature") = 1.0F,
      py::arg("disallow_correct") = false, py::arg("argmax_ids") = 0, py::arg("coefficients") = 0,
      py::arg("d_hidden") = 0, py::arg("d_weight") = 0, py::arg("d_bias") = 0, py::arg("threads"));
}

// --- rtd_bce ---

template <class T>
void call_rtd_bce(std::uintptr_t logits, std::uintptr_t is_replaced, std::uintptr_t mask, std::int64_t num_tokens,
                  std::uintptr_t loss_sum, std::uintptr_t counts, std::uintptr_t histogram, std::uintptr_t gradient,
                  int threads) {
  electra_fast::RTDBCE<T> call{};
  call.logits = at<const T>(logits);
  call.is_replaced = at<const std::uint8_t>(is_replaced);
  call.mask = at<const std::uint8_t>(mask);
  call.num_tokens = num_tokens;
  call.loss_sum = at<float>(loss_sum);
  call.counts = at<std::int64_t>(counts);
  call.histogram = at<std::int64_t>(histogram);
  call.gradient = at<T>(gradient);
  const py::gil_scoped_release unlocked;
  electra_fast::rtd_bce(call, threads);
}

void bind_rtd_bce(py::module_& module) {
  const auto define = [&module](const char* name, auto* function) {
    module.def(name, function, py::kw_only(), py::arg("logits"), py::arg("is_replaced"), py::arg("mask"),
               py::arg("num_tokens"), py::arg("loss_sum"), py::arg("counts"), py::arg("histogram"),
               py::arg("gradient"), py::arg("threads"));
  };
  define("rtd_bce_float32", call_rtd_bce<float>);
  define("rtd_bce_bfloat16", call_rtd_bce<electra_fast::bfloat16>);
}

// --- layer_norm ---

electra_fast::LayerNormRows layer_norm_rows(std::uintptr_t x, std::uintptr_t residual, std::uintptr_t row_ids,
                                            std::int64_t num_rows, std::int64_t width, bool x_is_bfloat16,
                                            bool y_is_bfloat16, std::uint64_t drop_below, std::int64_t seed,
                                            std::uint32_t stream, float scale) {
  electra_fast::LayerNormRows rows{};
  rows.x = at<const void>(x);
  rows.residual = at<const void>(residual);
  rows.row_ids = at<const std::int64_t>(row_ids);
  rows.num_rows = num_rows;
  rows.width = width;
  rows.x_is_bfloat16 = x_is_bfloat16;
  rows.y_is_bfloat16 = y_is_bfloat16;
  rows.drops = drop_below > 0;
  rows.dropout = {static_cast<std::uint64_t>(seed), stream, static_cast<std::uint32_t>(drop_below - 1), scale};
  return rows;
}

// Positional: names would cost a microsecond of the few that a call takes. electra_fast/_C.pyi has them.
void bind_layer_norm(py::module_& module) {
  module.def("layer_norm", [](std::uintptr_t x, std::uintptr_t residual, std::uintptr_t row_ids, std::int64_t num_rows,
                              std::int64_t width, bool x_is_bfloat16, bool y_is_bfloat16, std::uint64_t drop_below,
                              std::int64_t seed, std::uint32_t stream, float scale, std::uintptr_t weight,
                              std::uintptr_t bias, float eps, std::uintptr_t y, std::uintptr_t stats,
                              std::uintptr_t x_bias, std::uintptr_t sum, int threads) {
    electra_fast::LayerNorm call{};
    call.rows = layer_norm_rows(x, residual, row_ids, num_rows, width, x_is_bfloat16, y_is_bfloat16, drop_below, seed,
                                stream, scale);
    call.weight = at<const float>(weight);
    call.bias = at<const float>(bias);
    call.eps = eps;
    call.y = at<void>(y);
    call.mean = at<float>(stats);
    call.rstd = call.mean + num_rows;
    call.x_bias = at<const float>(x_bias);
    call.sum = at<float>(sum);
    const py::gil_scoped_release unlocked;
    electra_fast::layer_norm(call, threads);
  });
  module.def("layer_norm_backward",
             [](std::uintptr_t x, std::uintptr_t residual, std::uintptr_t row_ids, std::int64_t num_rows,
                std::int64_t width, bool x_is_bfloat16, bool y_is_bfloat16, std::uint64_t drop_below, std::int64_t seed,
                std::uint32_t stream, float scale, std::uintptr_t dy, std::uintptr_t weight, std::uintptr_t stats,
                std::uintptr_t dx, std::uintptr_t dresidual, std::uintptr_t dweight, std::uintptr_t dbias,
                std::uintptr_t dx_bias, int threads) {
               electra_fast::LayerNormBackward call{};
               call.rows = layer_norm_rows(x, residual, row_ids, num_rows, width, x_is_bfloat16, y_is_bfloat16,
                                           drop_below, seed, stream, scale);
               call.dy = at<const void>(dy);
               call.weight = at<const float>(weight);
               call.mean = at<const float>(stats);
               call.rstd = call.mean + num_rows;
               call.dx = at<void>(dx);
               call.dresidual = at<void>(dresidual);
               call.dweight = at<float>(dweight);
               call.dbias = at<float>(dbias);
               call.dx_bias = at<float>(dx_bias);
               const py::gil_scoped_release unlocked;
               electra_fast::layer_norm_backward(call, threads);
             });
}

// --- embedding ---

void bind_embedding(py::module_& module) {
  using electra_fast::EmbeddingRows;
  module.def(
      "find_outside",
      [](std::uintptr_t ids, std::int64_t n, std::int64_t size) {
        return electra_fast::find_outside(at<const std::int64_t>(ids), n, size);
      },
      py::arg("ids"), py::arg("n"), py::arg("size"), py::pos_only());
  // What forward and backward both take. By position: a dozen names take longer to look up than a small call runs.
  py::class_<EmbeddingRows>(module, "EmbeddingRows")
      .def(py::init([](std::uintptr_t word, std::uintptr_t token_type, std::uintptr_t position, bool is_bfloat16,
                       std::uintptr_t weight, std::uintptr_t input_ids, std::uintptr_t token_type_ids,
                       std::uintptr_t position_ids, std::uintptr_t row_ids, std::int64_t num_tokens,
                       std::int64_t width, std::int64_t seed, std::uint32_t stream, std::uint64_t drop_below,
                       float scale) {
             EmbeddingRows rows{};
             rows.word = at<const void>(word);
             rows.token_type = at<const void>(token_type);
             rows.position = at<const void>(position);
             rows.is_bfloat16 = is_bfloat16;
             rows.weight = at<const float>(weight);
             rows.input_ids = at<const std::int64_t>(input_ids);
             rows.token_type_ids = at<const std::int64_t>(token_type_ids);
             rows.position_ids = at<const std::int64_t>(position_ids);
             rows.row_ids = at<const std::int64_t>(row_ids);
             rows.num_tokens = num_tokens;
             rows.width = width;
             rows.has_dropout = drop_below > 0;
             rows.dropout.seed = static_cast<std::uint64_t>(seed);
             rows.dropout.stream = stream;
             rows.dropout.last_dropped = static_cast<std::uint32_t>(drop_below - 1);
             rows.dropout.scale = scale;
             return rows;
           }),
           py::arg("word"), py::arg("token_type"), py::arg("position"), py::arg("is_bfloat16"), py::arg("weight"),
           py::arg("input_ids"), py::arg("token_type_ids"), py::arg("position_ids"), py::arg("row_ids"),
           py::arg("num_tokens"), py::arg("width"), py::arg("seed"), py::arg("stream"), py::arg("drop_below"),
           py::arg("scale"), py::pos_only());
  module.def(
      "embedding_layer_norm",
      [](const EmbeddingRows& rows, std::uintptr_t bias, float eps, std::uintptr_t y, std::uintptr_t stats,
         int threads) {
        const electra_fast::EmbeddingLayerNorm call{rows, at<const float>(bias), eps, at<void>(y), at<float>(stats)};
        const py::gil_scoped_release unlocked;
        electra_fast::embedding_layer_norm(call, threads);
      },
      py::arg("rows"), py::arg("bias"), py::arg("eps"), py::arg("y"), py::arg("stats"), py::arg("threads"),
      py::pos_only());
  module.def(
      "embedding_layer_norm_backward",
      [](const EmbeddingRows& rows, std::uintptr_t dy, std::uintptr_t stats, std::int64_t num_words,
         std::int64_t num_types, std::int64_t num_positions, std::int64_t padding_idx, std::uintptr_t dword,
         std::uintptr_t dtoken_type, std::uintptr_t dposition, std::uintptr_t dweight, std::uintptr_t dbias,
         int threads) {
        electra_fast::EmbeddingLayerNormBackward call{};
        call.rows = rows;
        call.dy = at<const void>(dy);
        call.stats = at<const float>(stats);
        call.num_words = num_words;
        call.num_types = num_types;
        call.num_positions = num_positions;
        call.padding_idx = padding_idx;
        call.dword = at<void>(dword);
        call.dtoken_type = at<void>(dtoken_type);
        call.dposition = at<void>(dposition);
        call.dweight = at<float>(dweight);
        call.dbias = at<float>(dbias);
        const py::gil_scoped_release unlocked;
        electra_fast::embedding_layer_norm_backward(call, threads);
      },
      py::arg("rows"), py::arg("dy"), py::arg("stats"), py::arg("num_words"), py::arg("num_types"),
      py::arg("num_positions"), py::arg("padding_idx"), py::arg("dword"), py::arg("dtoken_type"),
      py::arg("dposition"), py::arg("dweight"), py::arg("dbias"), py::arg("threads"),
      py::pos_only());
}

// --- gelu ---

template <class T>
void call_bias_gelu(std::uintptr_t x, std::uintptr_t bias, std::int64_t rows, std::int64_t width, std::uintptr_t y,
                    int threads) {
  const electra_fast::BiasGELU<T> call{at<const T>(x), at<const float>(bias), rows, width, at<T>(y)};
  const py::gil_scoped_release unlocked;
  electra_fast::bias_gelu(call, threads);
}

template <class T>
void call_bias_gelu_backward(std::uintptr_t dy, std::uintptr_t x, std::uintptr_t bias, std::int64_t rows,
                             std::int64_t width, std::uintptr_t dx, std::uintptr_t dbias, std::uintptr_t y,
                             int threads) {
  const electra_fast::BiasGELUBackward<T> call{
      at<const T>(dy), at<const T>(x), at<const float>(bias), rows, width, at<T>(dx), at<float>(dbias), at<T>(y)};
  const py::gil_scoped_release unlocked;
  electra_fast::bias_gelu_backward(call, threads);
}

void bind_gelu(py::module_& module) {
  const auto forward = [&module](const char* name, auto* function) {
    module.def(name, function, py::kw_only(), py::arg("x"), py::arg("bias"), py::arg("rows"), py::arg("width"),
               py::arg("y"), py::arg("threads"));
  };
  const auto backward = [&module](const char* name, auto* function) {
    module.def(name, function, py::kw_only(), py::arg("dy"), py::arg("x"), py::arg("bias"), py::arg("rows"),
               py::arg("width"), py::arg("dx"), py::arg("dbias"), py::arg("y") = 0, py::arg("threads"));
  };
  forward("bias_gelu_float32", call_bias_gelu<float>);
  forward("bias_gelu_bfloat16", call_bias_gelu<electra_fast::bfloat16>);
  backward("bias_gelu_backward_float32", call_bias_gelu_backward<float>);
  backward("bias_gelu_backward_bfloat16", call_bias_gelu_backward<electra_fast::bfloat16>);
}

// --- attention ---

using Address = std::array<std::int64_t, 3>;  // of a tensor [tokens, heads, head_dim]: where, and its first two strides

template <class T>
electra_fast::Heads<T> heads_at(const Address& address) {
  return {at<T>(static_cast<std::uintptr_t>(address[0])), address[1], address[2]};
}

struct AttentionArguments {
  Address q, k, v;
  std::uintptr_t cu_seqlens, row_ids;
  std::int64_t num_tokens, num_sequences, heads, head_dim;
  float scale;
  std::uint64_t drop_below;
  float keep_scale;
  std::int64_t seed;
  std::uint32_t stream;
  std::uintptr_t bias;

  template <class T>
  electra_fast::Attention<T> call() const {
    return {heads_at<const T>(q), heads_at<const T>(k), heads_at<const T>(v), at<const std::int64_t>(cu_seqlens),
            at<const std::int64_t>(row_ids), num_tokens, num_sequences, heads, head_dim, scale, drop_below,
            keep_scale, seed, stream, at<const float>(bias)};
  }
};

void bind_attention(py::module_& module) {
  py::class_<AttentionArguments>(module, "Attention")
      .def(py::init([](Address q, Address k, Address v, std::uintptr_t cu_seqlens, std::uintptr_t row_ids,
                       std::int64_t num_tokens, std::int64_t num_sequences, std::int64_t heads, std::int64_t head_dim,
                       float scale, std::uint64_t drop_below, float keep_scale, std::int64_t seed,
                       std::uint32_t stream, std::uintptr_t bias) {
             return AttentionArguments{q,     k,        v,     cu_seqlens, row_ids,    num_tokens, num_sequences,
                                       heads, head_dim, scale, drop_below, keep_scale, seed,       stream, bias};
           }),
           py::kw_only(), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("cu_seqlens"), py::arg("row_ids"),
           py::arg("num_tokens"), py::arg("num_sequences"), py::arg("heads"), py::arg("head_dim"), py::arg("scale"),
           py::arg("drop_below"), py::arg("keep_scale"), py::arg("seed"), py::arg("stream"), py::arg("bias"));
  module.def(
      "attention",
      [](const AttentionArguments& arguments, Address out, std::uintptr_t lse, bool is_bfloat16, int threads) {
        const auto run = [&](auto type) {
          using T = decltype(type);
          electra_fast::attention(arguments.call<T>(), heads_at<T>(out), at<float>(lse), threads);
        };
        const py::gil_scoped_release unlocked;
        is_bfloat16 ? run(electra_fast::bfloat16{}) : run(float{});
      },
      py::arg("arguments"), py::kw_only(), py::arg("out"), py::arg("lse"), py::arg("is_bfloat16"), py::arg("threads"));
  module.def(
      "attention_backward",
      [](const AttentionArguments& arguments, std::uintptr_t lse, Address d_out, Address dq, Address dk, Address dv,
         std::uintptr_t dbias, bool is_bfloat16, int threads) {
        const auto run = [&](auto type) {
          using T = decltype(type);
          electra_fast::attention_backward(arguments.call<T>(), at<const float>(lse), heads_at<const T>(d_out),
                                           heads_at<T>(dq), heads_at<T>(dk), heads_at<T>(dv), at<float>(dbias), threads);
        };
        const py::gil_scoped_release unlocked;
        is_bfloat16 ? run(electra_fast::bfloat16{}) : run(float{});
      },
      py::arg("arguments"), py::kw_only(), py::arg("lse"), py::arg("d_out"), py::arg("dq"), py::arg("dk"),
      py::arg("dv"), py::arg("dbias"), py::arg("is_bfloat16"), py::arg("threads"));
}

// --- weight_gradient ---

// Positional, as layer_norm.
void bind_weight_gradient(py::module_& module) {
  module.def("weight_gradient", [](std::uintptr_t dy, std::uintptr_t x, std::int64_t dy_stride, std::int64_t x_stride,
                                   std::int64_t tokens, std::int64_t outputs, std::int64_t inputs, bool accumulate,
                                   std::uintptr_t dweight, int threads) {
    const electra_fast::WeightGradient call{at<const float>(dy), at<const float>(x), dy_stride, x_stride,  tokens,
                                            outputs,             inputs,             accumulate, at<float>(dweight)};
    const py::gil_scoped_release unlocked;
    electra_fast::weight_gradient(call, threads);
  });
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "C++ kernels for CPU; see electra_fast.ops.";

  module.attr("MAX_SEQUENCE_LENGTH") = electra_fast::kMaxSequenceLength;

  module.def("has_openmp", [] { return electra_fast::OpenMP::get().available(); },
             "Whether parallel loops run on PyTorch's OpenMP threads.");

  module.def("has_wide_registers", &electra_fast::is_wide,
             "Whether kernels run on registers of 64 bytes: AVX-512, where the compiler could choose it.");

  bind_masking_sampling(module);
  bind_generator_head(module);
  bind_rtd_bce(module);
  bind_layer_norm(module);
  bind_embedding(module);
  bind_gelu(module);
  bind_attention(module);
  bind_weight_gradient(module);
}
