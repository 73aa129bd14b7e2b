// Names for Python. Tensors come as addresses and sizes, so that the extension depends on no version of PyTorch; the
// callers in electra_fast/ops check shapes and dtypes and keep the memory alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "embedding.h"
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
