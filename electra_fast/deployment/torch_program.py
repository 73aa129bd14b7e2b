"""`--format torch-export`: a program of `torch.export`, which PyTorch loads without the model's code."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from electra_fast.deployment.graph import TensorsOnly, dynamic_shapes, example
from electra_fast.deployment.manifest import Port

FILE = "model.pt2"


def write_torch_program(model: PreTrainedModel, outputs: tuple[Port, ...], folder: Path) -> str:
    """Write `model` with `outputs` into `folder`, and return the file's name."""
    inputs = example(model, batch=3, choices=4, length=11)
    with torch.no_grad():
        program = torch.export.export(
            TensorsOnly(model, tuple(port.name for port in outputs)),
            (),
            inputs,
            dynamic_shapes=dynamic_shapes(model),
            strict=False,
        )
    torch.export.save(program, folder / FILE)
    return FILE
