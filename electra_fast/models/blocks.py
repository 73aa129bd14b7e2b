"""The two halves of a layer for training on a CPU, each one autograd function around the operators.

What it saves beside a chain of operators: gradients of the layer's input are added by the products that make them, not
by passes of their own, and autograd and Python have two nodes a layer to walk through, not thirty. T tokens, H hidden,
I intermediate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from electra_fast.ops.attention import _backward_operator as attention_backward
from electra_fast.ops.attention import _varlen_attention as varlen_attention
from electra_fast.ops.gelu import _bias_gelu as bias_gelu
from electra_fast.ops.gelu import bias_gelu_backward_in_place_cpp
from electra_fast.ops.layer_norm import _dropout_add_layer_norm as dropout_add_layer_norm
from electra_fast.ops.layer_norm import _dropout_add_layer_norm_backward as dropout_add_layer_norm_backward

BACKEND = "cpp"  # of every operator here; the caller has made sure that it can run


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
    ) -> Tensor:
        q, k, v = (
            torch.addmm(bias, x, weight.T).unflatten(1, (attention.heads, -1))
            for weight, bias in ((wq, bq), (wk, bk), (wv, bv))
        )
        context, lse = varlen_attention(q, k, v, *attention.arguments(), backend=BACKEND)
        z = torch.addmm(bo, context.flatten(1), wo.T)
        y, stats = _norm(z, x, norm_weight, norm_bias, noise, eps)
        ctx.save_for_backward(x, q, k, v, context, lse, z, stats, wq, wk, wv, wo, norm_weight)
        ctx.attention, ctx.noise = attention, noise
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x, q, k, v, context, lse, z, stats, wq, wk, wv, wo, norm_weight = ctx.saved_tensors
        dz, dx, dnorm_weight, dnorm_bias = _norm_backward(dy, z, x, norm_weight, stats, ctx.noise)
        d_output = _parameter_gradients(ctx, 7, dz, context.flatten(1))
        d_context = torch.mm(dz, wo).view_as(context)
        options = ctx.attention.arguments()
        gradients = attention_backward(d_context, q, k, v, context, lse, *options, backend=BACKEND)
        gradients = [gradient.flatten(1) for gradient in gradients]
        d_projections = [
            each for i, gradient in enumerate(gradients) for each in _parameter_gradients(ctx, 1 + 2 * i, gradient, x)
        ]
        if ctx.needs_input_grad[0]:
            for gradient, weight in zip(gradients, (wq, wk, wv), strict=True):
                dx.addmm_(gradient, weight)
        return dx, *d_projections, *d_output, dnorm_weight, dnorm_bias, None, None, None


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
    ) -> Tensor:
        u = torch.mm(x, w1.T)  # [T, I]
        a = bias_gelu(u, b1, backend=BACKEND)
        z = torch.addmm(b2, a, w2.T)
        y, stats = _norm(z, x, norm_weight, norm_bias, noise, eps)
        # Not `a`, a quarter of what a layer would keep: the gradient of GELU makes it again on its way.
        ctx.save_for_backward(x, u, z, stats, w1, b1, w2, norm_weight)
        ctx.noise = noise
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x, u, z, stats, w1, b1, w2, norm_weight = ctx.saved_tensors
        dz, dx, dnorm_weight, dnorm_bias = _norm_backward(dy, z, x, norm_weight, stats, ctx.noise)
        du = torch.mm(dz, w2)
        db1, a = bias_gelu_backward_in_place_cpp(du, u, b1)
        d_second = _parameter_gradients(ctx, 3, dz, a)
        dw1 = torch.mm(du.T, x) if ctx.needs_input_grad[1] else None
        if ctx.needs_input_grad[0]:
            dx.addmm_(du, w1)
        return dx, dw1, db1, *d_second, dnorm_weight, dnorm_bias, None, None


# Without Function's own `apply`, which first asks about functorch: whoever calls these has done so.
_attention_block = super(torch.autograd.Function, _AttentionBlock).apply
_feed_forward_block = super(torch.autograd.Function, _FeedForwardBlock).apply


def attention_block(
    x: Tensor,
    layers: tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear],
    norm: nn.LayerNorm,
    attention: Attention,
    noise: Noise,
) -> Tensor:
    """LayerNorm(dropout(output(attention(x))) + x) of float32 [T, H], contiguous.

    Args:
        layers: queries, keys, values, output; all with a bias.
    """
    parameters = (each for layer in layers for each in (layer.weight, layer.bias))
    return _attention_block(x, *parameters, norm.weight, norm.bias, attention, noise, norm.eps)


def feed_forward_block(x: Tensor, up: nn.Linear, down: nn.Linear, norm: nn.LayerNorm, noise: Noise) -> Tensor:
    """LayerNorm(dropout(down(gelu(up(x)))) + x) of float32 [T, H], contiguous; both layers have a bias."""
    return _feed_forward_block(x, up.weight, up.bias, down.weight, down.bias, norm.weight, norm.bias, noise, norm.eps)


def _norm(z: Tensor, x: Tensor, weight: Tensor, bias: Tensor, noise: Noise, eps: float) -> tuple[Tensor, Tensor]:
    p, seed, stream, row_ids = noise
    return dropout_add_layer_norm(z, x, weight, bias, seed, row_ids, p, eps, stream, backend=BACKEND)


def _norm_backward(
    dy: Tensor, z: Tensor, x: Tensor, weight: Tensor, stats: Tensor, noise: Noise
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dz, dx, dweight, dbias); dz and dx are two tensors, one of which the caller will add to."""
    p, seed, stream, row_ids = noise
    return dropout_add_layer_norm_backward(
        dy.contiguous(), z, x, weight, stats, seed, row_ids, p, stream, True, True, True, backend=BACKEND
    )


def _parameter_gradients(ctx: Any, index: int, dy: Tensor, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Those of the linear layer whose weight is the block's argument `index` and whose bias is the next."""
    return (
        torch.mm(dy.T, x) if ctx.needs_input_grad[index] else None,
        dy.sum(0) if ctx.needs_input_grad[index + 1] else None,
    )


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "electra_fast's layers have no second derivative (create_graph=True) on a CPU; torch.func transforms of "
            "the models, and transformers' own classes with attn_implementation='eager', have one"
        )
