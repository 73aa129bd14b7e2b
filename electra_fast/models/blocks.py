"""The two halves of a layer on a CPU, each one function around the operators, for training an autograd function.

What it saves beside a chain of operators: biases are added, and their gradients summed, by the kernels that read or
write these numbers anyway; gradients of the layer's input are added by the products that make them; of a layer's twelve
[T, H] one is made again instead of kept; and autograd and Python have two nodes a layer to walk through, not thirty.
Without gradients nothing is kept, and of what is [T, I] there is never more than a part.
T tokens, H hidden, I intermediate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from electra_fast.models.weight_gradient import weight_gradient
from electra_fast.ops.attention import check_sequences, varlen_attention_backward_cpp, varlen_attention_cpp
from electra_fast.ops.gelu import bias_gelu_backward_in_place_cpp, bias_gelu_cpp
from electra_fast.ops.layer_norm import (
    dropout_add_layer_norm_backward_of_sum_cpp,
    dropout_add_layer_norm_cpp,
    layer_norm,
)

BACKEND = "cpp"  # of every operator here; the caller has made sure that it can run
# Numbers of [T, I] that are there at once beside what is kept: 8 MiB. Fewer would make the products slower.
_NUMBERS_AT_ONCE = 2**21


class Noise(NamedTuple):
    """A dropout: see `electra_fast.ops.dropout_add_layer_norm`. Without seed and row_ids where p is 0."""

    p: float
    seed: Tensor | None
    stream: int
    row_ids: Tensor | None


class Attention(NamedTuple):
    """What `electra_fast.ops.varlen_attention` takes beside queries, keys and values."""

    heads: int
    cu_seqlens: Tensor
    max_seqlen: int
    scale: float
    noise: Noise

    def arguments(self) -> tuple[Any, ...]:
        p, seed, stream, row_ids = self.noise
        return self.cu_seqlens, seed, row_ids, self.max_seqlen, p, stream, self.scale


class Normed(NamedTuple):
    """A result of LayerNorm and, where it can be made again, what it was made from."""

    y: Tensor  # [T, H]
    total: Tensor | None = None  # [T, H], what was normalised
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0


class _AttentionBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [T, H]
        wq: Tensor,
        bq: Tensor,
        wk: Tensor,
        bk: Tensor,
        wv: Tensor,
        bv: Tensor,
        wo: Tensor,
        bo: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        attention: Attention,
        noise: Noise,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        q, k, v, biases, context, lse = _attend(x, (wq, wk, wv), (bq, bk, bv), attention)
        z = torch.mm(context.flatten(1), wo.T)
        y, stats = _norm(z, bo, x, norm_weight, norm_bias, noise, eps)
        ctx.save_for_backward(x, q, k, v, biases, context, lse, z, stats, wq, wk, wv, wo, norm_weight)
        ctx.attention, ctx.noise = attention, noise
        ctx.mark_non_differentiable(z)
        ctx.set_materialize_grads(False)
        return y, z

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 14
        _refuse_second_derivative()
        x, q, k, v, biases, context, lse, total, stats, wq, wk, wv, wo, norm_weight = ctx.saved_tensors
        dz, dx, dbo, dnorm_weight, dnorm_bias = _norm_backward(dy, total, norm_weight, stats, ctx.noise)
        dwo = weight_gradient(dz, context.flatten(1)) if ctx.needs_input_grad[7] else None
        d_context = torch.mm(dz, wo).view_as(context)
        d_biases = torch.empty_like(biases)
        gradients = varlen_attention_backward_cpp(
            d_context, q, k, v, context, lse, *ctx.attention.arguments(), bias=biases, dbias=d_biases
        )
        gradients = [gradient.flatten(1) for gradient in gradients]
        d_projections: list[Tensor | None] = []
        for i, (gradient, d_bias) in enumerate(zip(gradients, d_biases.view(3, -1), strict=True)):
            d_projections += [weight_gradient(gradient, x) if ctx.needs_input_grad[1 + 2 * i] else None, d_bias]
        if ctx.needs_input_grad[0]:
            for gradient, weight in zip(gradients, (wq, wk, wv), strict=True):
                dx.addmm_(gradient, weight)
        return dx, *d_projections, dwo, dbo, dnorm_weight, dnorm_bias, None, None, None


class _FeedForwardBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [T, H]
        w1: Tensor,  # [I, H]
        b1: Tensor,
        w2: Tensor,  # [H, I]
        b2: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        noise: Noise,
        eps: float,
        made_from: tuple[Tensor, Tensor, Tensor] | None,
        made_with_eps: float,
    ) -> Tensor:
        u, z = x.new_empty(x.shape[0], w1.shape[0]), torch.empty_like(x)
        parts = _parts(*u.shape)
        buffer = torch.empty_like(u[parts[0]])
        for part in parts:
            torch.mm(x[part], w1.T, out=u[part])
            a = bias_gelu_cpp(u[part], b1, buffer[: len(u[part])])
            torch.mm(a, w2.T, out=z[part])
        y, stats = _norm(z, b2, x, norm_weight, norm_bias, noise, eps)
        # Not `a`, a quarter of what a layer would keep: the gradient of GELU makes it again on its way. Nor x, if the
        # sum that it was normalised from is kept anyway.
        ctx.save_for_backward(u, z, stats, w1, b1, w2, norm_weight, *(made_from or (x,)))
        ctx.noise, ctx.made_with_eps = noise, made_with_eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        u, total, stats, w1, b1, w2, norm_weight, x, *made_with = ctx.saved_tensors
        dz, dx, db2, dnorm_weight, dnorm_bias = _norm_backward(dy, total, norm_weight, stats, ctx.noise)
        dw1 = db1 = dw2 = None
        parts = _parts(*u.shape)
        buffers = torch.empty_like(u[parts[0]]), torch.empty_like(u[parts[0]])
        for part in parts:
            du, a = (buffer[: len(u[part])] for buffer in buffers)
            torch.mm(dz[part], w2, out=du)
            db1 = _add(db1, bias_gelu_backward_in_place_cpp(du, u[part], b1, a))
            if ctx.needs_input_grad[3]:
                dw2 = weight_gradient(dz[part], a, dw2)
            if ctx.needs_input_grad[1]:
                x_part = layer_norm(x[part], *made_with, eps=ctx.made_with_eps) if made_with else x[part]
                dw1 = weight_gradient(du, x_part, dw1)
            if ctx.needs_input_grad[0]:
                dx[part].addmm_(du, w1)
        return dx, dw1, db1, dw2, db2, dnorm_weight, dnorm_bias, None, None, None, None


# Without Function's own `apply`, which first asks about functorch: whoever calls these has done so.
_attention_block = super(torch.autograd.Function, _AttentionBlock).apply
_feed_forward_block = super(torch.autograd.Function, _FeedForwardBlock).apply


def attention_block(
    x: Tensor,
    layers: tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear],
    norm: nn.LayerNorm,
    attention: Attention,
    noise: Noise,
) -> Normed:
    """LayerNorm(dropout(output(attention(x))) + x) of float32 [T, H], contiguous.

    Args:
        layers: queries, keys, values, output; all with a bias.
    """
    if torch.is_grad_enabled():
        parameters = (each for layer in layers for each in (layer.weight, layer.bias))
        y, total = _attention_block(x, *parameters, norm.weight, norm.bias, attention, noise, norm.eps)
        return Normed(y, total, norm.weight, norm.bias, norm.eps)
    *projections, output = layers
    context = _attend(x, [layer.weight for layer in projections], [layer.bias for layer in projections], attention)[4]
    z = torch.mm(context.flatten(1), output.weight.T)
    return Normed(_norm(z, output.bias, x, norm.weight, norm.bias, noise, norm.eps)[0])


def feed_forward_block(x: Normed, up: nn.Linear, down: nn.Linear, norm: nn.LayerNorm, noise: Noise) -> Tensor:
    """LayerNorm(dropout(down(gelu(up(x)))) + x) of float32 [T, H], contiguous; both layers have a bias."""
    if torch.is_grad_enabled():
        parameters = up.weight, up.bias, down.weight, down.bias, norm.weight, norm.bias
        made_from = None if x.total is None else (x.total, x.weight.detach(), x.bias.detach())
        return _feed_forward_block(x.y, *parameters, noise, norm.eps, made_from, x.eps)
    z = torch.empty_like(x.y)
    parts = _parts(x.y.shape[0], up.weight.shape[0])
    buffer = x.y.new_empty(len(x.y[parts[0]]), up.weight.shape[0])
    for part in parts:
        u = torch.mm(x.y[part], up.weight.T, out=buffer[: len(x.y[part])])
        torch.mm(bias_gelu_cpp(u, up.bias, u), down.weight.T, out=z[part])
    return _norm(z, down.bias, x.y, norm.weight, norm.bias, noise, norm.eps)[0]


def _attend(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], attention: Attention
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values [T, heads, D] without their biases, these [3 * H], what attention gives, and its lse."""
    q, k, v = (torch.mm(x, weight.T).unflatten(1, (attention.heads, -1)) for weight in weights)
    bias, options = torch.cat(tuple(biases)), attention.arguments()
    check_sequences(q, k, v, *options)
    return q, k, v, bias, *varlen_attention_cpp(q, k, v, *options, bias=bias)


def _norm(
    z: Tensor, z_bias: Tensor, x: Tensor, weight: Tensor, bias: Tensor, noise: Noise, eps: float
) -> tuple[Tensor, Tensor]:
    """y and its statistics; z becomes the sum that is normalised."""
    p, seed, stream, row_ids = noise
    return dropout_add_layer_norm_cpp(z, x, weight, bias, seed, row_ids, p, eps, stream, x_bias=z_bias)


def _norm_backward(
    dy: Tensor, total: Tensor, weight: Tensor, stats: Tensor, noise: Noise
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dz, dx, dz_bias, dweight and dbias; dz and dx are two tensors, one of which the caller will add to."""
    p, seed, stream, row_ids = noise
    return dropout_add_layer_norm_backward_of_sum_cpp(dy.contiguous(), total, weight, stats, seed, row_ids, p, stream)


def _parts(num_rows: int, width: int) -> list[slice]:
    """Rows of [T, I], of which what is needed for some at once is small; at least one part, the first the largest."""
    rows = max(_NUMBERS_AT_ONCE // max(width, 1), 1)
    return [slice(start, start + rows) for start in range(0, max(num_rows, 1), rows)]


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "electra_fast's layers have no second derivative (create_graph=True) on a CPU; torch.func transforms of "
            "the models, and transformers' own classes with attn_implementation='eager', have one"
        )
