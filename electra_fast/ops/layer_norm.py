"""Layer normalisation, alone and as it ends each half of a layer: LN(dropout(x) + residual)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from electra_fast.ops import _backends
from electra_fast.ops._register import is_autocast_enabled, register
from electra_fast.ops.random import as_seed, check_stream, dropout_factors, threshold

MAX_WIDTH = 8192
_OPERATOR = "dropout_add_layer_norm"  # one kernel serves both public functions
_HALF = (torch.bfloat16, torch.float16)
_FLOATS = (torch.float32, *_HALF, torch.float64)

# The arguments of the operator, in the order of every implementation below:
#   x, residual [..., H], or None for no residual (and then no dropout)
#   weight, bias [H], float32 (float64 for float64 data)
#   seed, row_ids [...], None without dropout; row_ids None: 0, 1, 2, ...
#   p, eps, stream
# Its results: y [..., H] and stats [2, number of rows], the mean and 1 / sqrt(variance + eps) of each row.
# The backward takes dy first and stats after bias, and what is asked of it last; it returns dx, dresidual, dweight and
# dbias, empty where not asked for.


def _summed(
    x: Tensor, residual: Tensor | None, seed: Tensor | None, row_ids: Tensor | None, p: float, stream: int
) -> tuple[Tensor, Tensor | None]:
    """dropout(x) + residual [rows, H], and what dropout multiplied by (None where it didn't)."""
    width = x.shape[-1]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    total, factors = x.reshape(-1, width).to(wide), None
    if threshold(p) > 0:
        rows = torch.arange(total.shape[0], device=x.device) if row_ids is None else row_ids.reshape(-1)
        factors = dropout_factors(seed, rows, width, p, stream).to(wide)
        total = total * factors
    if residual is not None:
        total = total + residual.reshape(-1, width).to(wide)
    return total, factors


def dropout_add_layer_norm_reference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    p: float,
    eps: float,
    stream: int,
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch on any device."""
    total, _ = _summed(x, residual, seed, row_ids, p, stream)
    y, mean, rstd = torch.native_layer_norm(total, total.shape[-1:], weight, bias, eps)
    return y.to(x.dtype if residual is None else residual.dtype).view(x.shape), torch.stack([mean[:, 0], rstd[:, 0]])


def dropout_add_layer_norm_backward_reference(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    stats: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    p: float,
    stream: int,
    needs_dx: bool,
    needs_dresidual: bool,
    needs_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients in closed form, in plain PyTorch."""
    total, factors = _summed(x, residual, seed, row_ids, p, stream)
    mean, rstd = stats.unsqueeze(-1)  # [rows, 1]
    x_hat = (total - mean) * rstd
    dy = dy.reshape(total.shape).to(total.dtype)
    g = dy * weight
    gradient = rstd * (g - g.mean(1, keepdim=True) - x_hat * (g * x_hat).mean(1, keepdim=True))
    dropped = gradient if factors is None else gradient * factors
    return (
        dropped.to(x.dtype, copy=True).view(x.shape) if needs_dx else x.new_empty(0),
        gradient.to(residual.dtype).view(x.shape) if needs_dresidual else x.new_empty(0),
        (dy * x_hat).sum(0) if needs_parameters else weight.new_empty(0),
        dy.sum(0) if needs_parameters else weight.new_empty(0),
    )


def _dropout_add_layer_norm_shapes(
    x: Tensor, residual: Tensor | None, weight: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    rows = x.numel() // x.shape[-1]
    return torch.empty_like(x if residual is None else residual), weight.new_empty(2, rows)


def _dropout_add_layer_norm_backward_shapes(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    stats: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    p: float,
    stream: int,
    needs_dx: bool,
    needs_dresidual: bool,
    needs_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x) if needs_dx else x.new_empty(0),
        torch.empty_like(residual) if needs_dresidual else x.new_empty(0),
        torch.empty_like(weight) if needs_parameters else weight.new_empty(0),
        torch.empty_like(weight) if needs_parameters else weight.new_empty(0),
    )


# The addresses and sizes that csrc/bind.cpp calls rows, in its order.
def _rows(
    x: Tensor, residual: Tensor | None, seed: Tensor | None, row_ids: Tensor | None, p: float, stream: int
) -> tuple[Any, ...]:
    width = x.shape[-1]
    y_dtype = x.dtype if residual is None else residual.dtype
    drop_below = threshold(p) if p else 0
    return (
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        0 if row_ids is None else row_ids.data_ptr(),
        x.numel() // width,
        width,
        x.dtype == torch.bfloat16,
        y_dtype == torch.bfloat16,
        drop_below,
        seed.item() if drop_below > 0 else 0,
        stream,
        1 / (1 - p),
    )


def dropout_add_layer_norm_cpp(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    p: float,
    eps: float,
    stream: int,
    *,
    x_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The results of `dropout_add_layer_norm_reference`.

    x_bias: [H], added to x, in float32; the sum that is normalised then comes in the place of x.
    """
    y, stats = _dropout_add_layer_norm_shapes(x, residual, weight)
    _backends.extension().layer_norm(
        *_rows(x, residual, seed, row_ids, p, stream),
        weight.data_ptr(),
        bias.data_ptr(),
        eps,
        y.data_ptr(),
        stats.data_ptr(),
        0 if x_bias is None else x_bias.data_ptr(),
        0 if x_bias is None else x.data_ptr(),
        torch.get_num_threads(),
    )
    return y, stats


def _dropout_add_layer_norm_backward_cpp(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    stats: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    p: float,
    stream: int,
    needs_dx: bool,
    needs_dresidual: bool,
    needs_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients = _dropout_add_layer_norm_backward_shapes(
        dy, x, residual, weight, stats, seed, row_ids, p, stream, needs_dx, needs_dresidual, needs_parameters
    )
    dx, dresidual, dweight, dbias = gradients
    _backends.extension().layer_norm_backward(
        *_rows(x, residual, seed, row_ids, p, stream),
        dy.data_ptr(),
        weight.data_ptr(),
        stats.data_ptr(),
        dx.data_ptr() if needs_dx else 0,
        dresidual.data_ptr() if needs_dresidual else 0,
        dweight.data_ptr() if needs_parameters else 0,
        dbias.data_ptr() if needs_parameters else 0,
        0,
        torch.get_num_threads(),
    )
    return gradients


def dropout_add_layer_norm_backward_of_sum_cpp(
    dy: Tensor,
    total: Tensor,
    weight: Tensor,
    stats: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    p: float,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dresidual [..., H], dx_bias, dweight and dbias [H] from the sum that was normalised, in float32."""
    dx, dresidual = torch.empty_like(total), torch.empty_like(total)
    dx_bias, dweight, dbias = (torch.empty_like(weight) for _ in range(3))
    _backends.extension().layer_norm_backward(
        *_rows(total, None, seed, row_ids, p, stream),
        dy.data_ptr(),
        weight.data_ptr(),
        stats.data_ptr(),
        dx.data_ptr(),
        dresidual.data_ptr(),
        dweight.data_ptr(),
        dbias.data_ptr(),
        dx_bias.data_ptr(),
        torch.get_num_threads(),
    )
    return dx, dresidual, dx_bias, dweight, dbias


def _dropout_add_layer_norm_triton(*args: Any) -> tuple[Tensor, Tensor]:
    from electra_fast.kernels.layer_norm import layer_norm_triton

    return layer_norm_triton(*args)


def _dropout_add_layer_norm_backward_triton(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from electra_fast.kernels.layer_norm import layer_norm_backward_triton

    return layer_norm_backward_triton(*args)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, residual, weight, _, seed, row_ids, p, _, stream = inputs
    stats = output[1]
    ctx.save_for_backward(x, residual, weight, stats, seed, row_ids)
    ctx.p, ctx.stream = p, stream
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 9
    x, residual, weight, stats, seed, row_ids = ctx.saved_tensors
    needs_dx, needs_dresidual, needs_dweight, needs_dbias = ctx.needs_input_grad[:4]
    # Without dropout both have the same gradient: one tensor for both, if it has the right type.
    is_shared = needs_dresidual and threshold(ctx.p) == 0 and x.dtype == residual.dtype
    dx, dresidual, dweight, dbias = _dropout_add_layer_norm_backward(
        dy.contiguous(),
        x,
        residual,
        weight,
        stats,
        seed,
        row_ids,
        ctx.p,
        ctx.stream,
        needs_dx or is_shared,
        needs_dresidual and not is_shared,
        needs_dweight or needs_dbias,
        backend=ctx.backend,
    )
    return (
        dx if needs_dx else None,
        (dx if is_shared else dresidual) if needs_dresidual else None,
        dweight if needs_dweight else None,
        dbias if needs_dbias else None,
        *(None,) * 5,
    )


_dropout_add_layer_norm_backward = register(
    "dropout_add_layer_norm_backward",
    {
        "reference": dropout_add_layer_norm_backward_reference,
        "cpp": _dropout_add_layer_norm_backward_cpp,
        "triton": _dropout_add_layer_norm_backward_triton,
    },
    operator=_OPERATOR,
    shapes=_dropout_add_layer_norm_backward_shapes,
)

_dropout_add_layer_norm = register(
    "dropout_add_layer_norm",
    {
        "reference": dropout_add_layer_norm_reference,
        "cpp": dropout_add_layer_norm_cpp,
        "triton": _dropout_add_layer_norm_triton,
    },
    operator=_OPERATOR,
    shapes=_dropout_add_layer_norm_shapes,
    setup_context=_setup_context,
    backward=_backward,
)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-12) -> Tensor:
    """Normalise each row to mean 0 and variance 1, then scale and shift: `F.layer_norm(x, (H,), weight, bias, eps)`.

    Statistics and sums are float32 whatever the dtype (float64 for float64). Under autocast the result is float32.

    Args:
        x: [..., H], float32, bfloat16, float16 or float64; H at most 8,192.
        weight, bias: [H], floating point.
        eps: added to the variance.

    Returns:
        [..., H] in the dtype of `x`.

    Raises:
        TypeError, ValueError: a dtype, shape or device other than the above.

    Source: Ba et al., "Layer normalization", 2016; google-research/electra, model/modeling.py (`layer_norm`), whose eps
    is 1e-12.
    """
    if x.dtype in _HALF and is_autocast_enabled(x.device):
        x = x.float()
    weight, bias = _check("layer_norm", x, weight, bias, x.dtype)
    return _dropout_add_layer_norm(x.contiguous(), None, weight, bias, None, None, 0.0, eps, 0)[0]


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    p: float = 0.0,
    eps: float = 1e-12,
    seed: Tensor | int | None = None,
    stream: int = 0,
    row_ids: Tensor | None = None,
) -> Tensor:
    """`layer_norm(dropout(x) + residual)` in one pass; the backward makes the dropout mask again instead of storing it.

    Args:
        x: [..., H], float32, bfloat16, float16 or float64; H at most 8,192.
        residual: the same shape; its dtype may be another one.
        weight, bias: [H], floating point.
        p: the probability in [0, 1) that an element of `x` becomes 0; the others are multiplied by 1 / (1 - p).
        eps: added to the variance.
        seed: int64 0-d tensor on the device of the data, or an int; None draws one from torch's default generator. Not
            looked at if p is 0.
        stream: int in [0, 2^31), separates uses of one seed.
        row_ids: int64 [...], names of the rows for the random numbers; None is 0, 1, 2, ...

    The sum, its statistics and its gradient are float32 whatever the dtypes (float64 if one is). Under autocast the
    residual and the result are float32.

    Returns:
        [..., H] in the dtype of `residual`.

    Raises:
        TypeError, ValueError: a dtype, shape, device or range other than the above.

    Source: Devlin et al., BERT, 2019; google-research/electra, model/modeling.py (`transformer_model`).
    """
    name = "dropout_add_layer_norm"
    if residual.shape != x.shape:
        raise ValueError(f"{name}: residual has shape {tuple(residual.shape)}, x {tuple(x.shape)}")
    if residual.device != x.device:
        raise ValueError(f"{name}: residual lies on {residual.device}, x on {x.device}")
    if residual.dtype not in _FLOATS:
        raise TypeError(f"{name}: residual must be {' or '.join(map(str, _FLOATS))}, not {residual.dtype}")
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{name}: p must lie in [0, 1); got {p}")
    check_stream(stream)
    if row_ids is not None and (row_ids.dtype != torch.int64 or row_ids.device != x.device):
        raise TypeError(f"{name}: row_ids must be torch.int64 on {x.device}; got {row_ids.dtype} on {row_ids.device}")
    if row_ids is not None and row_ids.shape != x.shape[:-1]:
        raise ValueError(f"{name}: row_ids has shape {tuple(row_ids.shape)}, the rows of x {tuple(x.shape[:-1])}")

    dtype = residual.dtype
    if dtype in _HALF and is_autocast_enabled(x.device):
        residual, dtype = residual.float(), torch.float32
    if x.dtype != residual.dtype and not _kernels_mix(x, residual):
        x, residual = (tensor.to(torch.promote_types(x.dtype, residual.dtype)) for tensor in (x, residual))
    weight, bias = _check(name, x, weight, bias, residual.dtype)
    y, _ = _dropout_add_layer_norm(
        x.contiguous(),
        residual.contiguous(),
        weight,
        bias,
        as_seed(seed, x.device) if p > 0 else None,
        row_ids.contiguous() if p > 0 and row_ids is not None else None,
        p,
        eps,
        stream,
    )
    return y if y.dtype == dtype else y.to(dtype)


def _kernels_mix(*tensors: Tensor) -> bool:
    """Whether the kernels of the device take these types in one call."""
    kernels = _backends._KERNELS[_OPERATOR]["triton" if tensors[0].is_cuda else "cpp"]
    return all(tensor.dtype in kernels for tensor in tensors)


def _check(name: str, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Raises where x, weight or bias is not as it should be; weight and bias in the type that the kernels want."""
    if x.dtype not in _FLOATS:
        raise TypeError(f"{name}: x must be {' or '.join(map(str, _FLOATS))}, not {x.dtype}")
    shape, device = x.shape, x.device
    if not shape or not 1 <= shape[-1] <= MAX_WIDTH:
        raise ValueError(f"{name}: x must have shape [..., H] with H in 1..{MAX_WIDTH}; got {tuple(shape)}")
    row = (shape[-1],)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    return _parameter(name, "weight", weight, row, device, wanted), _parameter(name, "bias", bias, row, device, wanted)


def _parameter(
    name: str, argument: str, parameter: Tensor, row: tuple[int], device: torch.device, wanted: torch.dtype
) -> Tensor:
    if parameter.shape != row:
        raise ValueError(f"{name}: {argument} has shape {tuple(parameter.shape)}, the rows of x {row}")
    if parameter.device != device:
        raise ValueError(f"{name}: {argument} lies on {parameter.device}, x on {device}")
    if parameter.dtype != wanted:
        if not parameter.is_floating_point():
            raise TypeError(f"{name}: {argument} must be floating point, not {parameter.dtype}")
        parameter = parameter.to(wanted)
    return parameter.contiguous()
