"""`--format onnx-int8`: ONNX Runtime's dynamic quantisation, weights in 8 bits, activations as each call finds them."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from electra_fast.deployment.manifest import Port
from electra_fast.deployment.onnx_graph import FILE, require_onnx, write_onnx


def write_onnx_int8(
    model: PreTrainedModel, outputs: tuple[Port, ...], folder: Path, *, per_channel: bool = True, bits: int = 8
) -> str:
    """Write `model` into `folder` and return the file's name.

    Products of activations and weights, and the embedding tables, are in 8 bits; attention's own products, softmax,
    LayerNorm, GELU and the heads that read one vector a sequence stay float32.

    Args:
        per_channel: a scale for each column of a weight, not one for all.
        bits: 7 for x86 processors without VNNI, whose sums of two 8-bit products saturate.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    write_onnx(model, outputs, folder)
    file = folder / FILE
    graph = onnx.load(file)
    add_pre_process_metadata(graph)  # what the quantiser asks for is done: folded, and shapes can be inferred
    onnx.save(graph, file)
    quantised = folder / f".{FILE}.int8"
    quantize_dynamic(file, quantised, per_channel=per_channel, reduce_range=bits == 7, weight_type=QuantType.QInt8)
    quantised.replace(file)
    return FILE
