"""Runs exported models. Of the packages that it needs, those of the format are imported when a folder is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from electra_fast.deployment.manifest import Manifest, read_manifest
from electra_fast.deployment.padding import Feature, num_tokens, pad
from electra_fast.extras import require

BATCH_SIZE = 32
# Of ONNX Runtime's fusions those that cost time on CPUs: residual + LayerNorm in one kernel takes four times as long as
# in two, bias + GELU twice as long (see docs/log.md).
SLOW_FUSIONS = ("SkipLayerNormFusion", "BiasGeluFusion")


class Outputs(dict[str, np.ndarray]):
    """A model's outputs by name, as items and as attributes: `outputs["logits"]`, `outputs.logits`."""

    def __getattr__(self, name: str) -> np.ndarray:
        if name not in self:
            raise AttributeError(f"no output {name!r} (outputs: {', '.join(self)})")
        return self[name]


class Deployed:
    """An exported model; `load` makes it.

    Attributes:
        manifest: inputs, outputs, and how it was checked.
    """

    def __init__(self, manifest: Manifest, run: Callable[[dict[str, np.ndarray]], list[np.ndarray]]) -> None:
        self.manifest = manifest
        self._run = run

    def __call__(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> Outputs:
        """The outputs of a padded batch.

        Args:
            input_ids: integers [B, S], of a multiple choice [B, choices, S]: arrays, CPU tensors or lists.
            attention_mask: 1 at tokens, 0 at padding; None: there is no padding.
            token_type_ids: None: all 0.

        Returns:
            What the model's forward returns, as float32 arrays. Values at padding mean nothing.

        Raises:
            ValueError: another shape, or sequences longer than `manifest.max_length`.
        """
        ids = np.asarray(input_ids, dtype=np.int64)
        given = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask, np.int64),
            "token_type_ids": np.zeros_like(ids) if token_type_ids is None else np.asarray(token_type_ids, np.int64),
        }
        shape = self.manifest.inputs[0].shape
        for name, value in given.items():
            if value.ndim != len(shape) or value.shape != ids.shape:
                axes = ", ".join(map(str, shape))
                raise ValueError(f"{name} must be integers [{axes}], all inputs alike; got shape {value.shape}")
        if ids.size == 0 or ids.shape[-1] > self.manifest.max_length:
            raise ValueError(
                f"input_ids must have a row, and 1 to {self.manifest.max_length} tokens a row; got shape {ids.shape}"
            )
        results = self._run({port.name: given[port.name] for port in self.manifest.inputs})
        return Outputs(zip((port.name for port in self.manifest.outputs), results, strict=True))

    def run(self, features: Sequence[Feature], *, batch_size: int = BATCH_SIZE) -> list[Outputs]:
        """The outputs of each feature, in the features' order and without padding.

        Features of about the same length share a batch, so that little is computed for nothing.

        Args:
            features: dicts with "input_ids" and, where not all 0, "token_type_ids": lists of ints [n], as a tokenizer
                gives them; of a multiple choice a list for each choice, the same number everywhere.

        Raises:
            ValueError: a feature holds no token, or more than `manifest.max_length`.
        """
        for index, feature in enumerate(features):
            if not len(feature["input_ids"]):
                raise ValueError(f"feature {index} has no token: give [CLS] and [SEP] at least")
        results: list[Outputs] = [Outputs()] * len(features)
        order = sorted(range(len(features)), key=lambda index: -num_tokens(features[index]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            outputs = self(**pad([features[index] for index in batch], self.manifest.pad_token_id))
            for row, index in enumerate(batch):
                results[index] = self._row(outputs, row, num_tokens(features[index]))
        return results

    def _row(self, outputs: Outputs, row: int, length: int) -> Outputs:
        parts = Outputs()
        for port in self.manifest.outputs:
            value = outputs[port.name][row]
            cut = [slice(length if axis == "length" else None) for axis in port.shape[1:]]
            parts[port.name] = value[tuple(cut)]
        return parts


def load(folder: str | Path, *, threads: int | None = None) -> Deployed:
    """Open a folder that `electra-fast export` wrote as `onnx`, `onnx-int8` or `torch-export`.

    Args:
        threads: of the CPU; None: as many as ONNX Runtime or PyTorch takes. For `torch-export` it holds for all of
            PyTorch in this process, so leave it out there.

    Raises:
        ValueError: there is none, it is damaged, or ONNX Runtime is not installed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    file = folder / manifest.file
    if not file.is_file():
        raise ValueError(f"{folder} is damaged: it holds no {manifest.file}")
    opener = _open_torch if manifest.kind == "torch-export" else _open_onnx
    return Deployed(manifest, opener(file, threads))


def _open_onnx(file: Path, threads: int | None) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    ort = require("onnxruntime", extra="export", purpose="ONNX models")
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are about graphs, not about what users do
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(SLOW_FUSIONS)
        )
    except Exception as error:  # ONNX Runtime's own classes, which have no common base but this
        raise ValueError(f"ONNX Runtime can't open {file}: {str(error)[:300]}") from error
    taken = {value.name for value in session.get_inputs()}  # a graph drops an input that no output depends on

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return session.run(None, {name: value for name, value in inputs.items() if name in taken})

    return run


def _open_torch(file: Path, threads: int | None) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        module = torch.export.load(file).module()
    except Exception as error:  # a damaged file fails in any of its parts
        raise ValueError(f"torch.export can't load {file}: {str(error)[:300]}") from error

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        return [output.numpy() for output in outputs]

    return run
