"""Which attention runs: a vendor's kernel where there is one that can do what is asked, else ours, else PyTorch's SDPA.

In this order, on CUDA: `flash_attn` (the package flash-attn, with dropout), `torch` (the FlashAttention inside PyTorch:
`torch.nn.attention.varlen.varlen_attn`, and for dropout, which that one lacks, the private aten operator beneath it),
`triton` (ours), `sdpa` (padded). On CPU: `cpp` (ours), `sdpa`. What each lacks for a use is what `report` says.

A backend without dropout is never chosen for p > 0. FlashAttention 3 and 4 have none, so they are not here. flash-attn
itself has not been run with this code: its signature is checked where it is installed, and what is passed to it is
tested with a stand-in. Dropout of `flash_attn`, `torch` and `sdpa` comes from PyTorch's default generator on the
device, and flash-attn rounds p to 1/256; only ours is named by `seed`, `stream` and `row_ids`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops import _backends
from electra_fast.ops.attention import varlen_attention
from electra_fast.packing import packing_of_lengths

BACKENDS = ("flash_attn", "torch", "triton", "cpp", "sdpa")
MAX_TRITON_HEAD_DIM = 128
_HALVES = (torch.bfloat16, torch.float16)


class Use(NamedTuple):
    """All that the choice depends on."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    has_dropout: bool


class Choice(NamedTuple):
    """One line of `electra-fast info`: what attends, and why nothing that comes before it does."""

    use: Use
    backend: str
    missing: dict[str, str]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    p: float = 0.0,
    seed: Tensor | int | None = None,
    stream: int = 0,
    row_ids: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
    is_causal: bool = False,
) -> Tensor:
    """`ops.varlen_attention` by the fastest backend: same arguments, shapes and results, tail included.

    Args:
        backend: one of `BACKENDS`; None chooses. Under `ops.use_backend` or ELECTRA_FAST_BACKEND, None is ours.
        is_causal: each token attends to itself and those before it, by `sdpa`: our kernels have no such mode.

    Raises:
        ValueError: the backend is unknown, or is to be causal and not sdpa.
        RuntimeError: the backend that was asked for can't run, or lacks dropout; the message says what is missing.

    The numbers of dropout differ between backends as the module says.
    """
    # A branch, since p may be symbolic to the compiler, and the choice needs a constant.
    has_dropout = True if p > 0 else False  # noqa: SIM210
    if is_causal:
        if backend not in (None, "sdpa"):
            raise ValueError(f"attention: causal attention runs by sdpa only; got backend {backend!r}")
        return _sdpa(q, k, v, cu_seqlens, max_seqlen, p, scale, is_causal)
    if backend is None:
        backend = choose(q.device, q.dtype, q.shape[2], has_dropout)
    else:
        require(backend, q.device, q.dtype, q.shape[2], has_dropout)
    if backend in ("flash_attn", "torch"):
        return _without_tail(_VENDORS[backend], q, k, v, cu_seqlens, max_seqlen, p, scale)
    if backend == "sdpa":
        return _sdpa(q, k, v, cu_seqlens, max_seqlen, p, scale)
    return varlen_attention(
        q, k, v, cu_seqlens, max_seqlen, p=p, seed=seed, stream=stream, row_ids=row_ids, scale=scale
    )


@torch.compiler.assume_constant_result
def choose(device: torch.device, dtype: torch.dtype, head_dim: int, has_dropout: bool) -> str:
    """The first of `BACKENDS` that lacks nothing; a compiled function keeps what was chosen when it was traced."""
    return _backends.requested_backend() or _choice(Use(device, dtype, head_dim, has_dropout)).backend


@torch.compiler.assume_constant_result
def require(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int, has_dropout: bool) -> None:
    """Raise if the backend can't run for this use."""
    if backend not in BACKENDS:
        raise ValueError(f"attention: unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    missing = _missing(backend, Use(device, dtype, head_dim, has_dropout))
    if missing is not None:
        raise RuntimeError(f"attention: the {backend} backend can't run here: {missing}")


def report(dtype: torch.dtype = torch.bfloat16, head_dim: int = 64) -> list[Choice]:
    """What attends on each type of device of this machine, without and with dropout."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda", torch.cuda.current_device()))
    return [_choice(Use(device, dtype, head_dim, dropout)) for device in devices for dropout in (False, True)]


@functools.cache
def _choice(use: Use) -> Choice:
    missing: dict[str, str] = {}
    for backend in BACKENDS:
        reason = _missing(backend, use)
        if reason is None:
            return Choice(use, backend, missing)
        missing[backend] = reason
    raise AssertionError("sdpa runs everywhere")


def _missing(backend: str, use: Use) -> str | None:
    """What a backend lacks for this use; None if nothing."""
    if backend == "sdpa":
        return None
    if use.device.type != "cuda" and backend != "cpp":
        return "it runs on CUDA devices only"
    if backend in ("triton", "cpp"):
        missing = _backends.missing("varlen_attention", backend, use.device, use.dtype)
        if missing is None and backend == "triton" and use.head_dim > MAX_TRITON_HEAD_DIM:
            missing = f"it takes heads of up to {MAX_TRITON_HEAD_DIM} dimensions, not {use.head_dim}"
        return missing
    if use.dtype not in _HALVES:
        return f"it does not take {use.dtype}"
    if use.head_dim % 8 or use.head_dim > 256:
        return f"it takes heads of 8, 16, ... 256 dimensions, not {use.head_dim}"
    if torch.cuda.get_device_capability(use.device) < (8, 0):
        return "it needs compute capability 8.0"
    return _flash_attn_problem() if backend == "flash_attn" else _torch_problem(use.has_dropout)


# --- Signatures that the adapters rely on -----------------------------------------------------------------------------

_FLASH_ATTN_ARGUMENTS = (
    *("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"),
    *("dropout_p", "softmax_scale", "causal", "deterministic"),
)
_TORCH_ARGUMENTS = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale", "window_size")
_ATEN_ARGUMENTS = (
    *("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"),
    *("dropout_p", "is_causal", "return_debug_mask", "scale"),
)


def _flash_attn_problem() -> str | None:
    try:
        function = importlib.import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, AttributeError) as error:
        return f"flash-attn is not importable: {error}; install it with: pip install flash-attn"
    return _lacks("flash_attn_varlen_func", inspect.signature(function).parameters, _FLASH_ATTN_ARGUMENTS)


def _torch_problem(has_dropout: bool) -> str | None:
    if not torch.backends.cuda.is_flash_attention_available():
        return "this build of PyTorch has no FlashAttention"
    if has_dropout:
        operator = getattr(torch.ops.aten, "_flash_attention_forward", None)
        if operator is None:
            return "this PyTorch has no aten::_flash_attention_forward"
        names = [argument.name for argument in operator.default._schema.arguments]
        return _lacks("aten::_flash_attention_forward", names, _ATEN_ARGUMENTS)
    try:
        function = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError) as error:
        return f"this PyTorch has no varlen_attn: {error}"
    return _lacks("varlen_attn", inspect.signature(function).parameters, _TORCH_ARGUMENTS)


def _lacks(name: str, has: Iterable[str], needs: tuple[str, ...]) -> str | None:
    missing = [argument for argument in needs if argument not in list(has)]
    return f"the installed {name} has no argument {', '.join(missing)}" if missing else None


# --- Adapters ---------------------------------------------------------------------------------------------------------


def _flash_attn(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, max_seqlen: int, p: float, scale: float | None
) -> Tensor:
    return importlib.import_module("flash_attn").flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=bounds,
        cu_seqlens_k=bounds,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=max_seqlen,
        dropout_p=p,
        softmax_scale=scale,
        causal=False,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _torch_flash(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, max_seqlen: int, p: float, scale: float | None
) -> Tensor:
    if p > 0:
        return torch.ops.aten._flash_attention_forward(
            q, k, v, bounds, bounds, max_seqlen, max_seqlen, p, False, False, scale=scale
        )[0]
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    return varlen_attn(q, k, v, bounds, bounds, max_seqlen, max_seqlen, scale=scale, window_size=(-1, -1))


_VENDORS: dict[str, Callable[..., Tensor]] = {"flash_attn": _flash_attn, "torch": _torch_flash}


class _NoTailGradient(torch.autograd.Function):
    """The tensors themselves; their gradients without what a vendor left in the rows of no sequence."""

    @staticmethod
    def forward(ctx: Any, is_real: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(is_real)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (is_real,) = ctx.saved_tensors
        return None, *(torch.where(is_real, gradient, 0) for gradient in gradients)


def _without_tail(
    vendor: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    p: float,
    scale: float | None,
) -> Tensor:
    """Vendors take int32 bounds and contiguous last dimensions, and never write the rows of no sequence."""
    bounds = cu_seqlens.to(torch.int32).contiguous()
    is_real = (torch.arange(q.shape[0], device=q.device) < bounds[-1])[:, None, None]
    q, k, v = _NoTailGradient.apply(is_real, *(x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v)))
    return torch.where(is_real, vendor(q, k, v, bounds, max_seqlen, p, scale), 0)


def _sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    p: float,
    scale: float | None,
    is_causal: bool = False,
) -> Tensor:
    """Padded to [B, heads, S, D]; empty sequences see their padding, since a softmax of nothing is NaN."""
    packing = packing_of_lengths(cu_seqlens, q.shape[0], max_seqlen)
    padded = (packing.pad(x).transpose(1, 2) for x in (q, k, v))
    visible = (packing.padding_mask | (cu_seqlens.diff() == 0).unsqueeze(1))[:, None, None]  # [B, 1, 1, S]
    if is_causal:
        visible = visible & torch.ones(max_seqlen, max_seqlen, dtype=torch.bool, device=q.device).tril()
    out = F.scaled_dot_product_attention(*padded, attn_mask=visible, dropout_p=p, scale=scale)
    return packing.unpad(out.transpose(1, 2))
