// Names for Python. Tensors come as addresses and sizes, so that the extension depends on no version of PyTorch; the
// callers in electra_fast/ops check shapes and dtypes and keep the memory alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "attention.h"
#include "masking_sampling.h"
#include "parallel.h"

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

void bind_generator_head(py::module_&) {}

// --- rtd_bce ---

void bind_rtd_bce(py::module_&) {}

// --- layer_norm ---

void bind_layer_norm(py::module_&) {}

// --- embedding ---

void bind_embedding(py::module_&) {}

// --- gelu ---

void bind_gelu(py::module_&) {}

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

  template <class T>
  electra_fast::Attention<T> call() const {
    return {heads_at<const T>(q), heads_at<const T>(k), heads_at<const T>(v), at<const std::int64_t>(cu_seqlens),
            at<const std::int64_t>(row_ids), num_tokens, num_sequences, heads, head_dim, scale, drop_below,
            keep_scale, seed, stream};
  }
};

void bind_attention(py::module_& module) {
  py::class_<AttentionArguments>(module, "Attention")
      .def(py::init([](Address q, Address k, Address v, std::uintptr_t cu_seqlens, std::uintptr_t row_ids,
                       std::int64_t num_tokens, std::int64_t num_sequences, std::int64_t heads, std::int64_t head_dim,
                       float scale, std::uint64_t drop_below, float keep_scale, std::int64_t seed,
                       std::uint32_t stream) {
             return AttentionArguments{q,        k,     v,          cu_seqlens, row_ids,    num_tokens, num_sequences,
                                       heads,    head_dim, scale, drop_below, keep_scale, seed,       stream};
           }),
           py::kw_only(), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("cu_seqlens"), py::arg("row_ids"),
           py::arg("num_tokens"), py::arg("num_sequences"), py::arg("heads"), py::arg("head_dim"), py::arg("scale"),
           py::arg("drop_below"), py::arg("keep_scale"), py::arg("seed"), py::arg("stream"));
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
         bool is_bfloat16, int threads) {
        const auto run = [&](auto type) {
          using T = decltype(type);
          electra_fast::attention_backward(arguments.call<T>(), at<const float>(lse), heads_at<const T>(d_out),
                                           heads_at<T>(dq), heads_at<T>(dk), heads_at<T>(dv), threads);
        };
        const py::gil_scoped_release unlocked;
        is_bfloat16 ? run(electra_fast::bfloat16{}) : run(float{});
      },
      py::arg("arguments"), py::kw_only(), py::arg("lse"), py::arg("d_out"), py::arg("dq"), py::arg("dk"),
      py::arg("dv"), py::arg("is_bfloat16"), py::arg("threads"));
}

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
  bind_attention(module);
}
