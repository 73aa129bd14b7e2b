"""Attention over packed sequences: tokens of one sequence see each other and nothing else."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops import _backends
from electra_fast.ops._checks import check_tensor
from electra_fast.ops._register import is_autocast_enabled, register
from electra_fast.ops.random import ROW_BITS, as_seed, check_stream, philox, sequence_of_tokens, threshold

# --- The reference ----------------------------------------------------------------------------------------------------


class _Padded(NamedTuple):
    """Where flat tokens lie in [B, S], without a shape that depends on data."""

    tokens: Tensor  # int64 [B, S]: the flat token, T where there is none
    is_real: Tensor  # bool [B, S]
    slots: Tensor  # int64 [T] into [B * S]; B * S for the tail

    def pad(self, flat: Tensor) -> Tensor:
        """[T, heads, D] -> [B, heads, S, D] in at least float32; zeros where there is no token."""
        wide = flat if flat.dtype == torch.float64 else flat.float()
        return F.pad(wide, (0, 0, 0, 0, 0, 1))[self.tokens].transpose(1, 2)

    def flatten(self, padded: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, heads, S, D] -> [T, heads, D]; zeros for the tail."""
        rows = padded.transpose(1, 2).flatten(0, 1)
        return F.pad(rows, (0, 0, 0, 0, 0, 1))[self.slots].to(dtype)


def _padded(cu_seqlens: Tensor, num_tokens: int, max_seqlen: int) -> _Padded:
    starts, num_sequences = cu_seqlens.long(), cu_seqlens.shape[0] - 1
    positions = torch.arange(max_seqlen, device=cu_seqlens.device)
    is_real = positions < starts.diff().unsqueeze(1)
    tokens = torch.where(is_real, starts[:-1].unsqueeze(1) + positions, num_tokens)
    index = torch.arange(num_tokens, device=cu_seqlens.device)
    sequences = sequence_of_tokens(cu_seqlens, index)
    places = index - starts[sequences]
    fits = (sequences < num_sequences) & (places < max_seqlen)
    return _Padded(tokens, is_real, torch.where(fits, sequences * max_seqlen + places, num_sequences * max_seqlen))


def _kept(padded: _Padded, heads: int, seed: Tensor | None, row_ids: Tensor | None, p: float, stream: int) -> Tensor:
    """What dropout multiplies the probabilities by: 0 or 1 / (1 - p), [B, heads, S, S]."""
    rows = padded.tokens if row_ids is None else F.pad(row_ids, (0, 1))[padded.tokens]
    length = rows.shape[1]
    blocks = torch.arange(-(-length // 4), device=rows.device)
    columns = torch.arange(heads, device=rows.device).unsqueeze(1) * 2 ** (ROW_BITS - 2) + blocks  # [heads, S / 4]
    words = torch.stack(philox(seed, rows[:, None, :, None], columns[:, None], stream), dim=-1)
    return (words.flatten(-2)[..., :length] >= threshold(p)).to(torch.float64) * _keep_scale(p)


def _keep_scale(p: float) -> float:
    return 1.0 / (1.0 - p) if p < 1.0 else 0.0


def _probabilities(q: Tensor, k: Tensor, lse: Tensor, is_key: Tensor, scale: float) -> Tensor:
    # A sequence without keys has an lse of -infinity, and its queries no probabilities.
    return torch.where(is_key, torch.exp(q @ k.mT * scale - lse.unsqueeze(-1)), 0)


def varlen_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    max_seqlen: int,
    p: float,
    stream: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch on any device, in float32 or float64: [T, heads, D], and the log-sum-exp [heads, T]."""
    padded = _padded(cu_seqlens, q.shape[0], max_seqlen)
    query, key, value = padded.pad(q), padded.pad(k), padded.pad(v)
    is_key = padded.is_real[:, None, None]
    lse = torch.where(is_key, query @ key.mT * scale, -math.inf).logsumexp(-1)  # [B, heads, S]
    probabilities = _probabilities(query, key, lse, is_key, scale)
    if p > 0:
        probabilities *= _kept(padded, q.shape[1], seed, row_ids, p, stream)
    out = padded.flatten(probabilities @ value, q.dtype)
    return out, padded.flatten(lse.unsqueeze(-1), lse.dtype).squeeze(-1).T.contiguous()


def varlen_attention_backward_reference(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    max_seqlen: int,
    p: float,
    stream: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to q, k and v in closed form; probabilities and dropout are made again."""
    padded = _padded(cu_seqlens, q.shape[0], max_seqlen)
    query, key, value, gradient = padded.pad(q), padded.pad(k), padded.pad(v), padded.pad(d_out)
    is_key = padded.is_real[:, None, None]
    padded_lse = padded.pad(lse.T.unsqueeze(-1)).squeeze(-1)
    probabilities = _probabilities(query, key, padded_lse, is_key, scale)
    d_probabilities = gradient @ value.mT
    dropped = probabilities
    if p > 0:
        kept = _kept(padded, q.shape[1], seed, row_ids, p, stream).to(probabilities.dtype)
        dropped, d_probabilities = probabilities * kept, d_probabilities * kept
    # Probabilities share the rounding of lse, so their sum is not quite 1; where it counts it is divided out.
    total = probabilities.sum(-1, keepdim=True).clamp(min=torch.finfo(lse.dtype).tiny)
    expected = (probabilities * d_probabilities).sum(-1, keepdim=True) / total
    d_scores = probabilities * (d_probabilities - expected) * scale
    return (
        padded.flatten(d_scores @ key, q.dtype),
        padded.flatten(d_scores.mT @ query, k.dtype),
        padded.flatten(dropped.mT @ gradient, v.dtype),
    )


# --- Kernels ----------------------------------------------------------------------------------------------------------


def _address(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1)


def _rows(tensor: Tensor) -> Tensor:
    """The tensor itself where its last dimension is contiguous, as in a view of fused projections; else a copy."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    p: float,
    stream: int,
    scale: float,
    bias: Tensor | None,
) -> Any:
    """What forward and backward have in common. The caller keeps the tensors alive."""
    return _backends.extension().Attention(
        q=_address(q),
        k=_address(k),
        v=_address(v),
        cu_seqlens=starts.data_ptr(),
        row_ids=0 if row_ids is None else row_ids.data_ptr(),
        num_tokens=q.shape[0],
        num_sequences=starts.shape[0] - 1,
        heads=q.shape[1],
        head_dim=q.shape[2],
        scale=scale,
        drop_below=threshold(p),
        keep_scale=_keep_scale(p),
        seed=seed.item() if seed is not None else 0,
        stream=stream,
        bias=0 if bias is None else bias.data_ptr(),
    )


def varlen_attention_cpp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    max_seqlen: int,
    p: float,
    stream: int,
    scale: float,
    *,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The results of `varlen_attention_reference`.

    bias: float32 [3, heads * D], added to q, k and v; whoever gives it has checked the sequences.
    """
    q, k, v, starts = _rows(q), _rows(k), _rows(v), cu_seqlens.long()
    out = q.new_empty(q.shape)
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    _backends.extension().attention(
        _arguments(q, k, v, starts, seed, row_ids, p, stream, scale, bias),
        out=_address(out),
        lse=lse.data_ptr(),
        is_bfloat16=q.dtype == torch.bfloat16,
        threads=torch.get_num_threads(),
    )
    return out, lse


def varlen_attention_backward_cpp(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    max_seqlen: int,
    p: float,
    stream: int,
    scale: float,
    *,
    bias: Tensor | None = None,
    dbias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of `varlen_attention_backward_reference`; fills dbias [3, heads * D] with their sums over tokens."""
    d_out, q, k, v, starts = _rows(d_out), _rows(q), _rows(k), _rows(v), cu_seqlens.long()
    dq, dk, dv = (q.new_empty(q.shape) for _ in range(3))
    _backends.extension().attention_backward(
        _arguments(q, k, v, starts, seed, row_ids, p, stream, scale, bias),
        lse=lse.data_ptr(),
        d_out=_address(d_out),
        dq=_address(dq),
        dk=_address(dk),
        dv=_address(dv),
        dbias=0 if dbias is None else dbias.data_ptr(),
        is_bfloat16=q.dtype == torch.bfloat16,
        threads=torch.get_num_threads(),
    )
    return dq, dk, dv


def _varlen_attention_triton(*args: Any) -> tuple[Tensor, Tensor]:
    from electra_fast.kernels.attention import varlen_attention_triton

    return varlen_attention_triton(*args)


def _varlen_attention_backward_triton(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from electra_fast.kernels.attention import varlen_attention_backward_triton

    return varlen_attention_backward_triton(*args)


# --- Registration -----------------------------------------------------------------------------------------------------


def _shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    max_seqlen: int,
    p: float,
    stream: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=wide)


def _backward_shapes(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    max_seqlen: int,
    p: float,
    stream: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def check_sequences(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *args: Any) -> None:
    num_tokens, max_seqlen = q.shape[0], args[2]
    bounds = cu_seqlens.cpu().numpy()  # NumPy's calls cost a fifth of PyTorch's
    lengths = bounds[1:] - bounds[:-1]
    longest = lengths.max(initial=0)
    if bounds[0] != 0 or lengths.min(initial=0) < 0 or bounds[-1] > num_tokens:
        raise ValueError(
            f"varlen_attention: cu_seqlens must begin with 0, never decrease and end at most at T = {num_tokens}; "
            f"got {bounds.tolist()}"
        )
    if longest > max_seqlen:
        raise ValueError(f"varlen_attention: a sequence in cu_seqlens has {longest} tokens, max_seqlen is {max_seqlen}")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, seed, row_ids, max_seqlen, p, stream, scale = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse, cu_seqlens, seed, row_ids)
    ctx.options = max_seqlen, p, stream, scale
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if d_out is None:
        return (None,) * 10
    gradients = _backward_operator(d_out, *ctx.saved_tensors, *ctx.options, backend=ctx.backend)
    return *gradients, *(None,) * 7


_backward_operator = register(
    "varlen_attention_backward",
    {
        "reference": varlen_attention_backward_reference,
        "cpp": varlen_attention_backward_cpp,
        "triton": _varlen_attention_backward_triton,
    },
    operator="varlen_attention",
    shapes=_backward_shapes,
)

_varlen_attention = register(
    "varlen_attention",
    {
        "reference": varlen_attention_reference,
        "cpp": varlen_attention_cpp,
        "triton": _varlen_attention_triton,
    },
    operator="varlen_attention",
    shapes=_shapes,
    check_values=check_sequences,
    setup_context=_setup_context,
    backward=_backward,
)


def varlen_attention(
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
) -> Tensor:
    """softmax(scale * q k^T) v within each sequence of a packed batch, in both directions, with dropout.

    Dropout follows the softmax: each probability is dropped with probability p, kept ones are multiplied by
    1 / (1 - p). The probability of key position j for a query in head h is decided by column h * 2^16 + j of the
    query's row id (see `electra_fast.ops.random`), so it does not depend on how sequences are batched.

    Args:
        q, k, v: [T, heads, D], of one dtype: float32, bfloat16, float16 (float64 on the reference). Views with any
            strides but a contiguous last dimension, such as thirds of a fused projection, are not copied.
        cu_seqlens: int32 or int64 [B + 1], where each sequence starts, from 0; equal neighbours are empty sequences.
        max_seqlen: at least the longest sequence, at most 65,536. On CUDA it is not compared with `cu_seqlens` unless
            ELECTRA_FAST_DEBUG=1; sequences that are longer then have undefined results past it.
        p: the probability of dropping.
        seed: int64 0-d tensor on the device of the data, or an int; None draws one from torch's default generator.
        stream: int in [0, 2^31), separates uses of one seed.
        row_ids: int64 [T], names of the tokens for the random numbers; None is 0..T-1.
        scale: None is 1 / sqrt(D).

    Returns:
        [T, heads, D]. Tokens after `cu_seqlens[-1]` get zeros, and no gradient flows to them.

    Raises:
        TypeError, ValueError: a dtype, shape, device or range other than the above.

    Under autocast the inputs are cast as those of `torch.nn.functional.scaled_dot_product_attention` are.

    Source: "Attention is all you need", section 3.2.1; the recomputing backward of "FlashAttention".
    """
    name = "varlen_attention"
    device = q.device
    if is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device.type)
        q, k, v = (x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in (q, k, v))
    floats = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    check_tensor(name, "q", q, 3, floats, device)
    for argument, tensor in (("k", k), ("v", v)):
        check_tensor(name, argument, tensor, 3, (q.dtype,), device)
        if tensor.shape != q.shape:
            raise ValueError(f"{name}: {argument} has shape {tuple(tensor.shape)}, q {tuple(q.shape)}")
    if q.shape[1] < 1 or q.shape[2] < 1:
        raise ValueError(f"{name}: q must have at least one head and one dimension; got shape {tuple(q.shape)}")
    check_tensor(name, "cu_seqlens", cu_seqlens, 1, (torch.int32, torch.int64), device)
    if cu_seqlens.shape[0] < 1:
        raise ValueError(f"{name}: cu_seqlens must have B + 1 entries, the first 0; got none")
    if row_ids is not None:
        check_tensor(name, "row_ids", row_ids, 1, (torch.int64,), device)
        if row_ids.shape[0] != q.shape[0]:
            raise ValueError(f"{name}: row_ids has {row_ids.shape[0]} entries, q {q.shape[0]} rows")
        row_ids = row_ids.contiguous()
    if not 0 <= max_seqlen <= 2**ROW_BITS:
        raise ValueError(f"{name}: max_seqlen must lie in [0, {2**ROW_BITS}]; got {max_seqlen}")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name}: p must lie in [0, 1]; got {p}")
    scale = 1.0 / math.sqrt(q.shape[2]) if scale is None else float(scale)
    return _varlen_attention(
        q,
        k,
        v,
        cu_seqlens.contiguous(),
        as_seed(seed, device) if p > 0 else None,
        row_ids,
        max_seqlen,
        p,
        check_stream(stream),
        scale,
    )[0]
