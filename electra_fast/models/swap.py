"""A module becomes fast when its class is swapped for a subclass of the same name.

One mechanism behind the drop-in classes, `optimize` and `patch_transformers`: no new parameters, and weights,
state-dict keys and hooks stay as they are.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

# Private: which outputs a model's hooks can record, by the name of its class. transformers fills it when a model is
# constructed, so a class that models only get later is not in it.
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

Class = TypeVar("Class", bound=type[nn.Module])

# The stock class -> ours. Its keys are the stock classes themselves: their names in transformers may come to mean ours.
SWAPS: dict[type[nn.Module], type[nn.Module]] = {}


def replaces(stock: type[nn.Module]) -> Any:
    """Class decorator: modules of exactly the class `stock` become the decorated class."""

    def decorate(cls: Class) -> Class:
        SWAPS[stock] = cls
        if issubclass(cls, PreTrainedModel):
            # Past the registry's own __setitem__, which wants an instance in some versions and a string in others.
            dict.__setitem__(_CAN_RECORD_REGISTRY, str(cls), cls._can_record_outputs)
        return cls

    return decorate


def swap_classes(model: nn.Module) -> int:
    """Swap the class of `model` and of every module in it; returns how many were, or had been, swapped."""
    count = 0
    for module in model.modules():
        if type(module) in SWAPS:
            module.__class__ = SWAPS[type(module)]
        count += type(module) in SWAPS.values()
    return count


class Swapped:
    """Mixed into the classes that users construct: what transformers builds inside them becomes fast."""

    # The losses are means; transformers' Trainer then divides them by the number of accumulation steps. Without this it
    # leaves that to the model, and the gradients of a mean loss come out that many times too large.
    accepts_loss_kwargs = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        swap_classes(self)
