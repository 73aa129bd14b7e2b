"""`--format onnx`: a graph of the ONNX standard's operators, which ONNX Runtime and others run."""

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
OPSET = 20  # the first with GELU as one operator


def require_onnx() -> None:
    """Raises ValueError where a package that exporting needs is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, extra="export", purpose="ONNX models")


def write_onnx(model: PreTrainedModel, outputs: tuple[Port, ...], folder: Path) -> str:
    """Write `model`, whose outputs are `outputs`, into `folder`, and return the file's name."""
    require_onnx()
    import onnx

    names = [port.name for port in outputs]
    aside = folder / f".{FILE}"
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            TensorsOnly(model, tuple(names)),
            (),
            kwargs=example(model, batch=3, choices=4, length=11),
            dynamic_shapes=dynamic_shapes(model),
            output_names=names,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        ).save(aside)
    graph = _without_constants(aside)
    aside.unlink()
    _name_axes(graph, axes(model), outputs)
    onnx.save(graph, folder / FILE)
    return FILE


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


def _name_axes(graph: Any, input_axes: tuple[str, ...], outputs: tuple[Port, ...]) -> None:
    """Axes that a reader knows in place of the exporter's symbols; shapes inside the graph, which are theirs, go."""
    del graph.graph.value_info[:]
    for value in graph.graph.input:
        _set_shape(value, input_axes)
    for value, port in zip(graph.graph.output, outputs, strict=True):
        _set_shape(value, port.shape)


def _set_shape(value: Any, shape: tuple[int | str, ...]) -> None:
    dims = value.type.tensor_type.shape.dim
    del dims[:]
    for size in shape:
        dims.add(**({"dim_value": size} if isinstance(size, int) else {"dim_param": size}))


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
