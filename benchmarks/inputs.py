"""What a benchmark calls: inputs that lie in no cache, and forward passes with their backward."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Arguments = tuple[Any, ...]

# On the two cores measured on, copies slow from 43 to 20 GB/s between 32 and 64 MB of data and no further up to 512 MB,
# though the machine names a shared last-level cache of 260 MB: beyond this size memory is what is measured.
_CPU_ROTATION = 128 * 2**20
_MOST_COPIES = {"cpu": 1024, "cuda": 256}


@cache
def rotation_bytes(device: str) -> int:
    """How much memory inputs must fill so that each is out of the cache when its turn comes again."""
    if device == "cuda":
        return 4 * torch.cuda.get_device_properties(0).L2_cache_size
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    largest = max((int(path.read_text().strip().removesuffix("K")) * 1024 for path in sizes), default=_CPU_ROTATION)
    return min(2 * largest, _CPU_ROTATION)


def copies(device: str, make_inputs: Callable[[], Arguments], num_bytes: int | None = None) -> list[Arguments]:
    """As many argument tuples as it takes to fill the caches, at least two, each from a call of `make_inputs`.

    Args:
        make_inputs: makes a tuple of arguments with fresh values on `device`.
        num_bytes: what one tuple adds to the memory in use; default: the size of its tensors. Give it where they share.
    """
    first = make_inputs()
    if num_bytes is None:
        num_bytes = sum(value.nbytes for value in first if isinstance(value, Tensor))
    count = min(_MOST_COPIES[device], max(2, -(-rotation_bytes(device) // max(num_bytes, 1))))
    return [first] + [make_inputs() for _ in range(count - 1)]


class ForwardBackward:
    """A call with its backward pass: results, then `torch.autograd.grad` with random upstream gradients.

    Args:
        call: returns a tensor or a tuple; every tensor in it that requires a gradient gets an upstream one.
        wrt: positions of the arguments that gradients are taken with respect to. None accumulates in `.grad`.
    """

    direction = "forward + backward"

    def __init__(self, call: Callable[..., Any], wrt: Sequence[int]) -> None:
        self._call = call
        self._wrt = tuple(wrt)

    def bind(self, inputs: list[Arguments]) -> list[Callable[[], Any]]:
        """One function without arguments for each input, its upstream gradients made beforehand."""
        bound = [self._require_gradients(arguments) for arguments in inputs]
        shapes = [torch.empty_like(result) for result in _differentiable(self._call(*bound[0]))]
        return [partial(self._run, arguments, [torch.randn_like(shape) for shape in shapes]) for arguments in bound]

    def __call__(self, *arguments: Any) -> Any:
        return self.bind([arguments])[0]()

    def _require_gradients(self, arguments: Arguments) -> Arguments:
        return tuple(
            value.detach().requires_grad_() if index in self._wrt else value for index, value in enumerate(arguments)
        )

    def _run(self, arguments: Arguments, upstream: list[Tensor]) -> tuple[Tensor, ...]:
        results = _differentiable(self._call(*arguments))
        return torch.autograd.grad(results, [arguments[index] for index in self._wrt], upstream)


def _differentiable(results: Any) -> list[Tensor]:
    results = (results,) if isinstance(results, Tensor) else results
    return [result for result in results if isinstance(result, Tensor) and result.requires_grad]


def bind(call: Callable[..., Any], inputs: list[Arguments]) -> list[Callable[[], Any]]:
    return call.bind(inputs) if isinstance(call, ForwardBackward) else [partial(call, *each) for each in inputs]


def liger() -> ModuleType | None:
    """Liger-Kernel's operators, `liger_kernel.ops`; None where it is not installed."""
    try:
        return importlib.import_module("liger_kernel.ops")
    except ImportError:
        return None
