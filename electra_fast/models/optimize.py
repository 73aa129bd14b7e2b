"""`optimize` makes a stock model fast; `patch_transformers` makes transformers build fast ones."""

from __future__ import annotations

import functools
import gc
import importlib
from types import ModuleType, TracebackType
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from electra_fast.models import bert, electra  # noqa: F401  (fill SWAPS)
from electra_fast.models.swap import SWAPS, swap_classes

Model = TypeVar("Model", bound=nn.Module)


def optimize(model: Model) -> Model:
    """Make a transformers ELECTRA or BERT model fast, in place, and return it: same weights, same results.

    Takes any module that has such models in it, such as one that PEFT has wrapped, or a model of your own around an
    `ElectraModel`. Subclasses of transformers' classes keep what they override. Doing it twice changes nothing.

    Raises:
        ValueError: there is nothing to make fast.
    """
    if swap_classes(model) == 0:
        raise ValueError(
            f"{type(model).__name__} has no ELECTRA or BERT module of transformers in it; nothing to optimize"
        )
    return model


class patch_transformers:
    """After `patch_transformers()`, transformers' own names mean the fast classes, ELECTRA's and BERT's.

    `from transformers import ElectraModel`, `AutoModel.from_pretrained` and pipelines then build fast models; what was
    imported before still means the stock classes. The result undoes it: `patch = patch_transformers()`, then
    `patch.undo()`; or `with patch_transformers(): ...`. Undoing leaves models as they were built.
    """

    def __init__(self) -> None:
        self._stock: list[tuple[object, str, type[nn.Module]]] = []
        packages = _packages(importlib.import_module("transformers"))
        for stock, fast in SWAPS.items():
            if not issubclass(stock, PreTrainedModel):
                continue  # a part, which fast models swap when they are built
            file = stock.__module__
            for module in (*packages, *map(importlib.import_module, (file.rpartition(".")[0], file))):
                self._stock.append((module, stock.__name__, getattr(module, stock.__name__)))
                setattr(module, stock.__name__, fast)

    def undo(self) -> None:
        while self._stock:
            module, name, stock = self._stock.pop()
            setattr(module, name, stock)

    def __enter__(self) -> patch_transformers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()


@functools.cache  # a tenth of a second in a large process; only one that replaces `current` adds another
def _packages(current: ModuleType) -> list[ModuleType]:
    """All modules named as `current`, transformers: importing a model first replaces it, and who imported it before
    keeps the old."""
    named = (module for module in gc.get_objects() if type(module) is type(current))
    others = [module for module in named if module.__name__ == current.__name__ and module is not current]
    return [current, *others]  # the collector may not show it: gc.freeze
