"""A model as `torch.export` and `torch.onnx` take it: tensors in, a tuple of tensors out, batch and length free."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from electra_fast.deployment.manifest import Port
from electra_fast.twins import is_multiple_choice

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class TensorsOnly(nn.Module):
    """The model's forward with its outputs as a tuple, `names` in their order."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return tuple(outputs[name] for name in self.names)


def axes(model: PreTrainedModel) -> tuple[str, ...]:
    """The names of the inputs' axes, all of them free."""
    return ("batch", "choices", "length") if is_multiple_choice(model) else ("batch", "length")


def example(model: PreTrainedModel, **sizes: int) -> dict[str, Tensor]:
    """Inputs of the given sizes, the last token of the first row padding where it can be."""
    shape = [sizes[axis] for axis in axes(model)]
    mask = torch.ones(shape, dtype=torch.int64)
    mask.view(-1, shape[-1])[0, 1:][-1:] = 0
    inputs = (torch.zeros(shape, dtype=torch.int64), mask, torch.zeros(shape, dtype=torch.int64))
    return dict(zip(INPUTS, inputs, strict=True))


def dynamic_shapes(model: PreTrainedModel) -> dict[str, dict[int, object]]:
    """For `torch.export`."""
    anything = torch.export.Dim.DYNAMIC
    return {name: dict.fromkeys(range(len(axes(model))), anything) for name in INPUTS}


def ports(model: PreTrainedModel) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs. An output's axis is named after that of the inputs with which it changes."""
    small, large = {"batch": 2, "choices": 3, "length": 5}, {"batch": 3, "choices": 5, "length": 7}
    names = {(small[axis], large[axis]): axis for axis in axes(model)}
    with torch.inference_mode():
        results = [model(**example(model, **sizes)) for sizes in (small, large)]
    outputs = tuple(
        Port(name, "float32", tuple(names.get(pair, pair[0]) for pair in zip(first.shape, second.shape, strict=True)))
        for (name, first), second in zip(results[0].items(), results[1].values(), strict=True)
    )
    return tuple(Port(name, "int64", axes(model)) for name in INPUTS), outputs
