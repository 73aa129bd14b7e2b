"""Bias and GELU in one pass, to follow a linear layer without bias."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops import _backends
from electra_fast.ops._checks import check_tensor
from electra_fast.ops._register import register


def bias_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias).to(x.dtype)  # in the bias's dtype, float32 or wider


def bias_gelu_backward_reference(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    dx = torch.ops.aten.gelu_backward(dy.to(bias.dtype), x + bias)
    return dx.to(x.dtype), dx.sum(0)


def bias_gelu_cpp(x: Tensor, bias: Tensor, y: Tensor | None = None) -> Tensor:
    """The result of `bias_gelu_reference`, in `y` where that is given."""
    extension = _backends.extension()
    run = extension.bias_gelu_float32 if x.dtype == torch.float32 else extension.bias_gelu_bfloat16
    y = torch.empty_like(x) if y is None else y
    run(
        x=x.data_ptr(),
        bias=bias.data_ptr(),
        rows=x.shape[0],
        width=x.shape[1],
        y=y.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return y


def _bias_gelu_backward_cpp(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    dx, dbias = torch.empty_like(x), torch.empty_like(bias)
    _run_backward_cpp(dy, x, bias, dx, dbias)
    return dx, dbias


def bias_gelu_backward_in_place_cpp(dy: Tensor, x: Tensor, bias: Tensor, y: Tensor) -> Tensor:
    """dbias; `dy` becomes dx, and in `y` the forward's result is made again, so that nobody has to keep it."""
    dbias = torch.empty_like(bias)
    _run_backward_cpp(dy, x, bias, dy, dbias, y)
    return dbias


def _run_backward_cpp(dy: Tensor, x: Tensor, bias: Tensor, dx: Tensor, dbias: Tensor, y: Tensor | None = None) -> None:
    extension = _backends.extension()
    is_float32 = x.dtype == torch.float32
    run = extension.bias_gelu_backward_float32 if is_float32 else extension.bias_gelu_backward_bfloat16
    run(
        dy=dy.data_ptr(),
        x=x.data_ptr(),
        bias=bias.data_ptr(),
        rows=x.shape[0],
        width=x.shape[1],
        dx=dx.data_ptr(),
        dbias=dbias.data_ptr(),
        y=0 if y is None else y.data_ptr(),
        threads=torch.get_num_threads(),
    )


def _bias_gelu_triton(x: Tensor, bias: Tensor) -> Tensor:
    from electra_fast.kernels.gelu import bias_gelu_triton

    return bias_gelu_triton(x, bias)


def _bias_gelu_backward_triton(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    from electra_fast.kernels.gelu import bias_gelu_backward_triton

    return bias_gelu_backward_triton(dy, x, bias)


def _shapes(x: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x)


def _backward_shapes(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(bias)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    return _bias_gelu_backward(dy.contiguous(), *ctx.saved_tensors, backend=ctx.backend)


_bias_gelu_backward = register(
    "bias_gelu_backward",
    {
        "reference": bias_gelu_backward_reference,
        "cpp": _bias_gelu_backward_cpp,
        "triton": _bias_gelu_backward_triton,
    },
    operator="bias_gelu",
    shapes=_backward_shapes,
)
_bias_gelu = register(
    "bias_gelu",
    {"reference": bias_gelu_reference, "cpp": bias_gelu_cpp, "triton": _bias_gelu_triton},
    operator="bias_gelu",
    shapes=_shapes,
    setup_context=_setup_context,
    backward=_backward,
)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias), exact: u times the normal distribution's integral up to u. For `F.linear` without its bias.

    Args:
        x: [..., I], float32, bfloat16 or float16 (float64 too).
        bias: [I], of x's dtype or float32 (as a parameter under autocast).

    Returns:
        [..., I] in x's dtype, also under autocast; computed in float32 or wider. The backward pass keeps x alone.

    Raises:
        TypeError, ValueError: a dtype, shape or device other than the above.

    Source: Hendrycks and Gimpel, "Gaussian error linear units", 2016; google-research/electra, model/modeling.py
    (`gelu`).
    """
    name = "bias_gelu"
    if not x.is_floating_point():
        raise TypeError(f"{name}: x must be a floating-point tensor, not {x.dtype}")
    if x.dim() == 0:
        raise ValueError(f"{name}: x must have at least one dimension; got shape ()")
    wide = torch.promote_types(x.dtype, torch.float32)
    check_tensor(name, "bias", bias, 1, tuple({x.dtype, wide}), x.device)
    if bias.shape[0] != x.shape[-1]:
        raise ValueError(f"{name}: bias has {bias.shape[0]} entries, x has {x.shape[-1]} columns")
    rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    y = _bias_gelu(x.reshape(rows, x.shape[-1]).contiguous(), bias.to(wide).contiguous())
    return y.view(x.shape)
