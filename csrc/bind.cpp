// Names for Python. Tensors come as addresses and sizes, so that the extension depends on no version of PyTorch; the
// callers in electra_fast/ops check shapes and dtypes and keep the memory alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "generator_head.h"
#include "masking_sampling.h"
#include "parallel.h"
#include "sampling.h"

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
      [](std::uintptr_t input_ids, std::uintptr_t cu_seqlens, std::uintptr_t row_ids, std::int64_t num_tokens,
         std::int64_t num_sequences, std::int64_t seed, std::int64_t mask_token_id,
         const std::vector<std::int64_t>& never_mask_ids, std::int64_t num_masked, float mask_prob,
         std::uint64_t replace_below, std::int64_t max_per_sequence, std::uintptr_t masked_ids,
         std::uintptr_t positions, std::uintptr_t labels, std::uintptr_t weights, int threads) {
        electra_fast::MaskTokens call{};
        call.input_ids = at<const std::int64_t>(input_ids);
        call.cu_seqlens = at<const std::int64_t>(cu_seqlens);
        call.row_ids = at<const std::int64_t>(row_ids);
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
      py::kw_only(), py::arg("input_ids"), py::arg("cu_seqlens"), py::arg("row_ids"), py::arg("num_tokens"),
      py::arg("num_sequences"), py::arg("seed"), py::arg("mask_token_id"), py::arg("never_mask_ids"),
      py::arg("num_masked"), py::arg("mask_prob"), py::arg("replace_below"), py::arg("max_per_sequence"),
      py::arg("masked_ids"), py::arg("positions"), py::arg("labels"), py::arg("weights"), py::arg("threads"));
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
  module.attr("HEAD_BLOCKS") = electra_fast::kHeadBlocks;
  module.def(
      "head_rows",
      [](std::uintptr_t logits, std::int64_t num_rows, std::int64_t vocab_size, std::uintptr_t bias,
         std::uintptr_t labels, std::uintptr_t coefficients, std::uintptr_t nll, std::uintptr_t largest, std::uintptr_t log_total,
         std::uintptr_t sampled_ids,
         std::uintptr_t row_ids, std::int64_t first_row, std::int64_t seed, std::uint32_t stream,
         float inverse_temperature, bool disallow_correct, std::uintptr_t argmax_ids, std::uintptr_t partial_sums,
         std::uintptr_t d_bias, int threads) {
        electra_fast::HeadRows call{};
        call.logits = at<float>(logits);
        call.num_rows = num_rows;
        call.vocab_size = vocab_size;
        call.bias = at<const float>(bias);
        call.labels = at<const std::int64_t>(labels);
        call.coefficients = at<const float>(coefficients);
        call.nll = at<float>(nll);
        call.largest = at<float>(largest);
        call.log_total = at<float>(log_total);
        call.sampled_ids = at<std::int64_t>(sampled_ids);
        call.row_ids = at<const std::int64_t>(row_ids);
        call.first_row = first_row;
        call.seed = seed;
        call.stream = stream;
        call.inverse_temperature = inverse_temperature;
        call.disallow_correct = disallow_correct;
        call.argmax_ids = at<std::int64_t>(argmax_ids);
        call.partial_sums = at<float>(partial_sums);
        call.d_bias = at<float>(d_bias);
        const py::gil_scoped_release unlocked;
        electra_fast::head_rows(call, threads);
      },
      py::kw_only(), py::arg("logits"), py::arg("num_rows"), py::arg("vocab_size"), py::arg("bias"), py::arg("labels"),
      py::arg("coefficients") = 0, py::arg("nll") = 0, py::arg("largest") = 0, py::arg("log_total") = 0, py::arg("sampled_ids") = 0, py::arg("row_ids") = 0,
      py::arg("first_row") = 0, py::arg("seed") = 0, py::arg("stream") = 0, py::arg("inverse_temperature") = 1.0F,
      py::arg("disallow_correct") = false, py::arg("argmax_ids") = 0, py::arg("partial_sums") = 0,
      py::arg("d_bias") = 0, py::arg("threads"));
}

// --- rtd_bce ---

void bind_rtd_bce(py::module_&) {}

// --- layer_norm ---

void bind_layer_norm(py::module_&) {}

// --- embedding ---

void bind_embedding(py::module_&) {}

// --- gelu ---

void bind_gelu(py::module_&) {}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "C++ kernels for CPU; see electra_fast.ops.";

  module.attr("MAX_SEQUENCE_LENGTH") = electra_fast::kMaxSequenceLength;

  module.def("has_openmp", [] { return electra_fast::OpenMP::get().available(); },
             "Whether parallel loops run on PyTorch's OpenMP threads.");

  bind_masking_sampling(module);
  bind_generator_head(module);
  bind_rtd_bce(module);
  bind_layer_norm(module);
  bind_embedding(module);
  bind_gelu(module);
}
