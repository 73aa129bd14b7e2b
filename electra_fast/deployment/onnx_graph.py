"""`--format onnx`: a graph for ONNX Runtime, with its fused operators or with standard ones only."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from electra_fast.deployment.graph import TensorsOnly, axes, dynamic_shapes, example
from electra_fast.deployment.manifest import Port
from electra_fast.extras import require

FILE = "model.onnx"
OPSET = 20  # the newest in which attention is still small operators, whose pattern the fusions know
_MASK = "attention_mask"


def require_onnx() -> None:
    """Raises ValueError where a package that exporting needs is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, extra="export", purpose="ONNX models")


def write_onnx(model: PreTrainedModel, outputs: tuple[Port, ...], folder: Path, *, fused: bool = True) -> str:
    """Write `model` into `folder` and return the file's name.

    Args:
        outputs: the model's.
        fused: attention, residual + LayerNorm and bias + GELU as one operator of ONNX Runtime each; else operators of
            the ONNX standard only, which other programs run too.
    """
    require_onnx()
    import onnx
    import onnx_ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    names = tuple(port.name for port in outputs)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            TensorsOnly(model, names),
            (),
            kwargs=example(model, batch=3, choices=4, length=11),
            dynamic_shapes=dynamic_shapes(model),
            output_names=list(names),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
        graph = program.model
        if fused:
            graph, _ = optimize_for_ort(graph)
    proto = onnx_ir.to_proto(graph)
    if fused:
        _take_padding_mask(proto)
    aside = folder / f".{FILE}"
    onnx.save(proto, aside)
    folded = _without_constants(aside)
    aside.unlink()
    _name_axes(folded, axes(model), outputs)
    onnx.save(folded, folder / FILE)
    return FILE


def _take_padding_mask(proto: Any) -> None:
    """Give each fused attention `attention_mask` [B, S] itself instead of a bias [B, 1, S, S] made of it.

    The bias would be read for each head and layer, and the 8-bit attention takes none.
    """
    from onnx import TensorProto, helper

    attentions = [n for n in proto.graph.node if (n.domain, n.op_type) == ("com.microsoft", "Attention")]
    if not attentions or any(list(node.input[3:5]) not in ([], [""], ["", ""]) for node in attentions):
        return
    mask = f"{_MASK}_int32"
    for node in attentions:
        del node.input[3:]
        node.input.append(mask)
        # Equal thirds, which is what it means to leave them out; the 8-bit attention wants them left out.
        kept = [attribute for attribute in node.attribute if attribute.name != "qkv_hidden_sizes"]
        del node.attribute[:]
        node.attribute.extend(kept)
    proto.graph.node.insert(0, helper.make_node("Cast", [_MASK], [mask], to=TensorProto.INT32))


def _without_constants(file: Path) -> Any:
    """What depends on no input computed once, by ONNX Runtime, and what no output depends on left out."""
    import onnx
    import onnxruntime as ort

    folded = file.with_name(f"{file.name}.folded")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 3
    try:
        ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return onnx.load(folded)
    finally:
        folded.unlink(missing_ok=True)


def _name_axes(proto: Any, input_axes: tuple[str, ...], outputs: tuple[Port, ...]) -> None:
    """Axes that a reader knows in place of the exporter's symbols; shapes inside the graph, which are theirs, go."""
    del proto.graph.value_info[:]
    for value in proto.graph.input:
        _set_shape(value, input_axes)
    for value, port in zip(proto.graph.output, outputs, strict=True):
        _set_shape(value, port.shape)


def _set_shape(value: Any, shape: tuple[int | str, ...]) -> None:
    tensor = value.type.tensor_type
    del tensor.shape.dim[:]
    for size in shape:
        tensor.shape.dim.add(**({"dim_value": size} if isinstance(size, int) else {"dim_param": size}))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's messages about packages and deprecations that are not this package's users'."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
