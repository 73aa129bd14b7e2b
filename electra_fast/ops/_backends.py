"""Which backend runs an operator: the reference (plain PyTorch), cpp (csrc/) or triton (kernels/).

The choice is made at the call: `use_backend`, else ELECTRA_FAST_BACKEND, else the fastest one that can run. An operator
with kernels is opaque to torch.compile and chooses inside, when it runs; one that is only a reference is traced, and
its choice is fixed when it is.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ("reference", "cpp", "triton")

# Per operator: the backends beside the reference, and the dtypes of the tensor it is chosen by that each one takes.
_CPP_FLOATS = (torch.float32, torch.bfloat16)
_TRITON_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_KERNELS: dict[str, dict[str, tuple[torch.dtype, ...]]] = {
    # masking_sampling
    "mask_tokens": {"cpp": (torch.int64,), "triton": (torch.int64,)},
    "sample_tokens": {"cpp": _CPP_FLOATS, "triton": _TRITON_FLOATS},
    "corrupt_tokens": {"cpp": (torch.int64,), "triton": (torch.int64,)},
    # generator_head
    "linear_cross_entropy_sample": {"cpp": _CPP_FLOATS, "triton": _TRITON_FLOATS},
    # rtd_bce
    "rtd_bce": {"cpp": _CPP_FLOATS, "triton": _TRITON_FLOATS},
    # layer_norm
    "layer_norm": {"cpp": _CPP_FLOATS, "triton": _TRITON_FLOATS},
    "dropout_add_layer_norm": {"cpp": _CPP_FLOATS, "triton": _TRITON_FLOATS},
    # embedding
    "embedding_layer_norm": {"cpp": _CPP_FLOATS, "triton": _TRITON_FLOATS},
    # gelu
    "bias_gelu": {"cpp": _CPP_FLOATS, "triton": _TRITON_FLOATS},
    # attention
    "varlen_attention": {"cpp": _CPP_FLOATS, "triton": _TRITON_FLOATS},
}


# What os.environ itself looks into. Its `get` encodes the name, then raises and catches where it is unset: more than a
# microsecond, on the way of every call.
_ENVIRONMENT, _VARIABLE = os.environ._data, os.environ.encodekey("ELECTRA_FAST_BACKEND")


class Availability(NamedTuple):
    """One line of `electra-fast info`: whether a backend can run an operator on a type of device."""

    operator: str
    device_type: str  # "cpu" or "cuda"
    backend: str
    is_default: bool
    missing: str | None  # why it can't run here; None where it can


class _Choice(threading.local):
    backend: str | None = None


_choice = _Choice()


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make the operators called in this block, by this thread, run on one backend, or raise where it can't.

    Args:
        name: "reference", "cpp" or "triton". Overrides the environment variable ELECTRA_FAST_BACKEND.

    Enter it around a compiled function, not inside one: operators with kernels choose when the compiled code runs.
    """
    _check_name(name, "use_backend")
    before, _choice.backend = _choice.backend, name
    try:
        yield
    finally:
        _choice.backend = before


def select(operator: str, tensor: Tensor) -> str:
    """The backend that runs `operator` on data like `tensor`.

    Raises:
        ValueError: the requested backend is unknown.
        RuntimeError: it does not exist for this operator, or can't run on this device.
        TypeError: it does not take this dtype.
    """
    requested = requested_backend()
    if requested is not None:
        if requested != "reference":
            _require(operator, requested, tensor.device, tensor.dtype)
        return requested
    return _default(operator, tensor.device, tensor.dtype)


@functools.cache  # a microsecond on the way of every call; it warns when it is first asked
def _default(operator: str, device: torch.device, dtype: torch.dtype) -> str:
    default = _default_kernel(device)
    if default is None or default not in _KERNELS[operator]:
        return "reference"
    reason = missing(operator, default, device, dtype)
    if reason is None:
        return default
    message = f"{operator} runs its plain PyTorch reference instead of the {default} backend: {reason}"
    warnings.warn(message, RuntimeWarning, stacklevel=6)  # the line that called the operator
    return "reference"


def requested_backend() -> str | None:
    """What `use_backend` or else ELECTRA_FAST_BACKEND asks for; None leaves the choice to us."""
    if _choice.backend is not None:
        return _choice.backend
    if not _ENVIRONMENT.get(_VARIABLE):
        return None
    requested = os.environ["ELECTRA_FAST_BACKEND"]
    _check_name(requested, "ELECTRA_FAST_BACKEND")
    return requested


def missing(operator: str, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """What a backend lacks to run `operator` on such a tensor; None if nothing."""
    reason = _missing(backend, device)
    if reason is None and dtype not in _KERNELS[operator][backend]:
        reason = f"it does not take {dtype}"
    return reason


@functools.cache
def extension() -> ModuleType:
    """The C++ extension, `electra_fast._C`; ImportError where it is not built."""
    return importlib.import_module("electra_fast._C")


def availability() -> list[Availability]:
    """For every operator, type of device and backend: is it the default, and if it can't run, why."""
    devices = [torch.device("cpu")] + (
        [torch.device("cuda", torch.cuda.current_device())] if torch.cuda.is_available() else []
    )
    rows = []
    for operator, kernels in _KERNELS.items():
        for device in devices:
            missing = {"reference": None} | {
                name: _missing(name, device) if name in kernels else _not_written(operator, name)
                for name in BACKENDS[1:]
            }
            fastest = _default_kernel(device)
            default = fastest if fastest is not None and missing[fastest] is None else "reference"
            rows += [Availability(operator, device.type, name, name == default, missing[name]) for name in BACKENDS]
    return rows


def _default_kernel(device: torch.device) -> str | None:
    return {"cpu": "cpp", "cuda": "triton"}.get(device.type)


@functools.cache  # what it raises is not kept
def _require(operator: str, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    kernels = _KERNELS[operator]
    if backend not in kernels:
        raise RuntimeError(_not_written(operator, backend))
    missing = _missing(backend, device)
    if missing is not None:
        raise RuntimeError(f"the {backend} backend of {operator} can't run on {device}: {missing}")
    if dtype not in kernels[backend]:
        takes = ", ".join(map(str, kernels[backend]))
        raise TypeError(f"the {backend} backend of {operator} takes {takes}, not {dtype}; use the reference")


def _missing(backend: str, device: torch.device) -> str | None:
    """What a backend lacks to run on `device`; None if nothing."""
    if backend == "cpp":
        if device.type != "cpu":
            return "it runs on CPU tensors only"
        error = _extension_error()
        return error and f"the C++ extension is not built: {error}; reinstall with a C++ compiler present"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "Triton runs on CPU tensors only in its interpreter: set TRITON_INTERPRET=1 before Python starts"
    elif device.type != "cuda":
        return "it runs on CUDA devices only"
    elif _capability(device.index) < (8, 0):
        return f"it needs compute capability 8.0, this GPU has {'.'.join(map(str, _capability(device.index)))}"
    error = _triton_error()
    return error and f"Triton is not importable: {error}; install it with: pip install triton"


def _not_written(operator: str, backend: str) -> str:
    existing = ", ".join(("reference", *_KERNELS[operator]))
    return f"{operator} has no {backend} backend; it has: {existing}"


def _check_name(name: str, source: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{source}: unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")


@functools.cache
def _extension_error() -> str | None:
    try:
        extension()
    except ImportError as error:
        return str(error)
    return None


@functools.cache
def _triton_error() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return str(error)
    return None


@functools.cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
