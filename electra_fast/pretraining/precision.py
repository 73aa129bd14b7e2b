"""Training in 16 bits: float32 master weights, and loss scaling for float16. No autocast: weights have their dtype.

Source: Micikevicius et al., "Mixed precision training" (2018), sections 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

FIRST_LOSS_SCALE = 2.0**16
LARGEST_LOSS_SCALE = 2.0**24
STEPS_TO_A_LARGER_SCALE = 2000


class MasterWeights:
    """The float32 weights of a model: what the optimizer updates and checkpoints hold.

    In 16 bits `model` computes with rounded copies of them, but for LayerNorm's, which stay float32. In float32 they
    are the model's parameters themselves. A parameter that several modules share has one master.

    Args:
        model: float32; its parameters are made `dtype` in place.
        dtype: float32, bfloat16 or float16.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model = model
        norms = (module for module in model.modules() if isinstance(module, nn.LayerNorm))
        in_float32 = {id(parameter) for norm in norms for parameter in norm.parameters()}
        self._masters: dict[str, nn.Parameter] = {}
        self._rounded: list[nn.Parameter] = []  # the model's 16-bit parameters ...
        self._exact: list[nn.Parameter] = []  # ... and the master of each
        for name, parameter in model.named_parameters():
            master = parameter
            if dtype != torch.float32 and id(parameter) not in in_float32:
                master = nn.Parameter(parameter.detach().clone())
                parameter.data = parameter.data.to(dtype)
                self._rounded.append(parameter)
                self._exact.append(master)
            self._masters[name] = master
        self._master_of = dict(zip(self._rounded, self._exact, strict=True))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names as in the model."""
        return iter(self._masters.items())

    def gradients(self) -> list[Tensor]:
        return [master.grad for master in self._masters.values() if master.grad is not None]

    def clear_gradients(self) -> None:
        for parameter in (*self._masters.values(), *self._rounded):
            parameter.grad = None

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """The master of a 16-bit parameter of the model."""
        return self._master_of[parameter]

    def take_gradients(self, sums: Mapping[nn.Parameter, Tensor] = MappingProxyType({})) -> None:
        """Move the model's 16-bit gradients to the masters, where micro-batches add up in float32.

        `sums` are float32 gradients of parameters that have one, instead of theirs and their master's.
        """
        for parameter, master in zip(self._rounded, self._exact, strict=True):
            if parameter.grad is None:
                continue
            if parameter in sums:
                master.grad = sums[parameter]
            else:
                master.grad = parameter.grad.float() if master.grad is None else master.grad.add_(parameter.grad)
            parameter.grad = None

    @torch.no_grad()
    def give_weights(self) -> None:
        """Round the masters into the model, after an update or a checkpoint."""
        if self._rounded:
            torch._foreach_copy_(self._rounded, self._exact)

    def complete_gradients(self) -> None:
        """After the last micro-batch: nothing is left to do."""

    def norm(self) -> Tensor:
        """Of the gradient of all parameters."""
        return get_total_norm(self.gradients())

    def whole_state(self, optimizer: torch.optim.Optimizer) -> tuple[MasterWeights, torch.optim.Optimizer]:
        """What a checkpoint holds: the weights, and their optimizer."""
        return self, optimizer

    @contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """The model as it computes, for evaluation within the block."""
        yield self._model

    @torch.no_grad()
    def export(self) -> nn.Module:
        """The model, made float32 again, with the masters' values."""
        for parameter, master in zip(self._rounded, self._exact, strict=True):
            parameter.data = master.data
        return self._model


class LossScale:
    """What the loss is multiplied by, so that float16 gradients do not vanish; 1 for other dtypes.

    Halved after each overflow, doubled after 2,000 steps without one, up to 2^24; all of it on the device. At 1 an
    overflow is no fault of the scale any more.
    """

    def __init__(self, device: torch.device, *, is_dynamic: bool) -> None:
        self.is_dynamic = is_dynamic
        self.scale = torch.full((), FIRST_LOSS_SCALE if is_dynamic else 1.0, device=device)
        self._steps = torch.zeros((), dtype=torch.int64, device=device)  # since it last changed

    def update(self, overflowed: Tensor) -> None:
        """`overflowed`: bool, 0-d."""
        if not self.is_dynamic:
            return
        steps = self._steps + 1
        grows = ~overflowed & (steps == STEPS_TO_A_LARGER_SCALE)
        larger = torch.where(grows, self.scale * 2, self.scale)
        self.scale = torch.where(overflowed, self.scale / 2, larger).clamp(1.0, LARGEST_LOSS_SCALE)
        self._steps = torch.where(overflowed | grows, 0, steps)

    def state(self) -> dict[str, float]:
        """For a checkpoint; empty where the scale never changes."""
        return {"loss_scale": float(self.scale), "loss_scale_steps": int(self._steps)} if self.is_dynamic else {}

    def load(self, state: dict[str, float]) -> None:
        if self.is_dynamic:
            self.scale.fill_(state["loss_scale"])
            self._steps.fill_(int(state["loss_scale_steps"]))
