"""The generator's head: vocabulary projection, cross-entropy of the true tokens and a sample from the softmax."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops import _backends
from electra_fast.ops._checks import check_tensor
from electra_fast.ops._register import is_autocast_enabled, is_watched, register
from electra_fast.ops.random import as_seed, check_stream
from electra_fast.ops.sampling import contiguous, inverse_of, sample_tokens_reference

_NAME = "linear_cross_entropy_sample"

# Rows whose softmaxes are in memory at a time on CPU, by the bytes of an element. More make the products faster; above
# 32 MiB, 250 rows of the usual vocabulary, glibc asks for fresh pages each time. With bfloat16, d_weight comes on top.
_CHUNK = {4: 192, 2: 128}


class GeneratorSample(NamedTuple):
    """What `linear_cross_entropy_sample` returns for M rows."""

    loss_sum: Tensor  # float32, 0-d: sum of weights * nll
    nll: Tensor  # float32 [M]: negative log-likelihood of the labels, in nats
    sampled_ids: Tensor  # int64 [M]


class GeneratorSampleWithArgmax(NamedTuple):
    """What `linear_cross_entropy_sample_with_argmax` returns: a `GeneratorSample` and the most likely tokens."""

    loss_sum: Tensor
    nll: Tensor
    sampled_ids: Tensor
    argmax_ids: Tensor  # int64 [M]


# Who multiplies on the device, by the bytes of an element and the largest E. "fused" keeps logits on the chip and makes
# them once more for each 128 elements of E in the backward pass; "chunks" goes through PyTorch's matrix products. Above
# 256 the latter, by that count of operations: no GPU has measured it yet.
_PATHS = {2: ((256, "fused"), (math.inf, "chunks")), 4: ((256, "fused"), (math.inf, "chunks"))}

Gradients = tuple[Tensor, Tensor, Tensor]  # of hidden, weight, bias, in their dtypes


# --- reference --------------------------------------------------------------------------------------------------------


def generator_head_reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    weights: Tensor,
    seed: Tensor,
    row_ids: Tensor | None,
    temperature: float,
    disallow_correct: bool,
    stream: int,
    with_argmax: bool,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Plain PyTorch on any device, from the whole logits [M, V], which only a reference can afford to hold.

    Returns loss_sum, nll, sampled_ids, argmax_ids, lse, and the gradients of loss_sum; what isn't asked for is empty.
    lse [2, M] holds the largest logit and the logsumexp of the differences to it, whose sum would be rounded.
    """
    logits = _logits(hidden, weight, bias)
    largest = logits.amax(dim=1, keepdim=True)
    log_total = torch.logsumexp(logits - largest, dim=1)
    nll = log_total - (logits.gather(1, labels.unsqueeze(1)) - largest).squeeze(1)
    lse = torch.stack([largest.squeeze(1), log_total])
    sampled_ids = sample_tokens_reference(
        logits, seed, row_ids, labels if disallow_correct else None, temperature, stream
    )
    sampled_ids = torch.where(weights > 0, sampled_ids, labels)
    argmax_ids = logits.argmax(dim=1) if with_argmax else labels.new_empty(0)
    gradients = _no_gradients(hidden, weight, bias)
    if with_gradients:
        gradients = generator_head_backward_reference(hidden, weight, bias, labels, _used(weights), lse)
    return _loss_sum(weights, nll), nll, sampled_ids, argmax_ids, lse, *gradients


def generator_head_backward_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, coefficients: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of sum(coefficients * nll)."""
    d_logits = torch.exp(_logits(hidden, weight, bias) - lse[0].unsqueeze(1) - lse[1].unsqueeze(1))
    d_logits.scatter_add_(1, labels.unsqueeze(1), d_logits.new_full((), -1.0).expand(labels.shape[0], 1))
    d_logits *= coefficients.to(d_logits.dtype).unsqueeze(1)
    # A row without a coefficient may hold anything, and 0 * NaN is no 0.
    unused = (coefficients == 0).unsqueeze(1)
    d_logits.masked_fill_(unused, 0.0)
    used_hidden = hidden.to(d_logits.dtype).masked_fill(unused, 0.0)
    d_hidden, d_weight = d_logits @ weight.to(d_logits.dtype), d_logits.t() @ used_hidden
    return d_hidden.to(hidden.dtype), d_weight.to(weight.dtype), d_logits.sum(dim=0).to(bias.dtype)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return F.linear(hidden.to(dtype), weight.to(dtype), bias.to(dtype))


def _used(weights: Tensor) -> Tensor:
    return torch.where(weights > 0, weights, 0)


def _loss_sum(weights: Tensor, nll: Tensor) -> Tensor:
    # Unused slots may hold a label of probability zero: where() keeps 0 * inf out of the sum.
    return (weights.double() * torch.where(weights > 0, nll, 0).double()).sum().to(nll.dtype)


def _no_gradients(hidden: Tensor, weight: Tensor, bias: Tensor) -> Gradients:
    return hidden.new_empty(0), weight.new_empty(0), bias.new_empty(0)


# --- cpp --------------------------------------------------------------------------------------------------------------


def _forward_cpp(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    weights: Tensor,
    seed: Tensor,
    row_ids: Tensor | None,
    temperature: float,
    disallow_correct: bool,
    stream: int,
    with_argmax: bool,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = hidden.shape[0]
    results = {
        "nll": hidden.new_empty(rows, dtype=torch.float32),
        "largest": hidden.new_empty(rows, dtype=torch.float32),
        "log_total": hidden.new_empty(rows, dtype=torch.float32),
        "sampled_ids": labels.new_empty(rows),
        "argmax_ids": labels.new_empty(rows if with_argmax else 0),
        "row_ids": contiguous(row_ids),
    }
    sampling = {
        "seed": seed.item(),
        "stream": stream,
        "inverse_temperature": inverse_of(temperature),
        "disallow_correct": disallow_correct,
    }
    gradients = _run_cpp(hidden, weight, bias, labels, _used(weights) if with_gradients else None, results, sampling)
    nll, sampled_ids = results["nll"], torch.where(weights > 0, results["sampled_ids"], labels)
    lse = torch.stack([results["largest"], results["log_total"]])
    return _loss_sum(weights, nll), nll, sampled_ids, results["argmax_ids"], lse, *gradients


def _backward_cpp(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, coefficients: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _run_cpp(hidden, weight, bias, labels, coefficients, {}, {})


def _run_cpp(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    coefficients: Tensor | None,
    results: dict[str, Tensor | None],
    sampling: dict[str, Any],
) -> Gradients:
    """Fills `results`, tensors by the names that the kernel knows them by, and makes gradients if it has coefficients.

    These are the gradients of sum(coefficients * nll).
    """
    rows, width = hidden.shape
    inputs = {"hidden": hidden, "weight": weight, "bias": bias.float(), "labels": labels}
    inputs = {name: tensor.contiguous() for name, tensor in inputs.items()}
    outputs = {}
    if coefficients is not None:
        inputs["coefficients"] = coefficients.float().contiguous()
        stride = _backends.extension().head_stride(width)
        make = torch.empty if rows else torch.zeros
        outputs = {
            "d_hidden": make((rows, stride), dtype=torch.float32),
            "d_weight": make((weight.shape[0], stride), dtype=torch.float32),
            "d_bias": make(bias.shape, dtype=torch.float32),
        }
    tensors = inputs | outputs | results
    _backends.extension().generator_head(
        bfloat16=hidden.dtype == torch.bfloat16,
        num_rows=rows,
        vocab_size=weight.shape[0],
        width=width,
        chunk=math.ceil(rows / math.ceil(rows / _CHUNK[hidden.element_size()])) if rows else 1,  # as even as they get
        threads=torch.get_num_threads(),
        **{name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None},
        **sampling,
    )
    if coefficients is None:
        return _no_gradients(hidden, weight, bias)
    d_hidden, d_weight = (outputs[name][:, :width].to(hidden.dtype).contiguous() for name in ("d_hidden", "d_weight"))
    return d_hidden, d_weight, outputs["d_bias"].to(bias.dtype)


# --- triton -----------------------------------------------------------------------------------------------------------


def _forward_triton(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    weights: Tensor,
    seed: Tensor,
    row_ids: Tensor | None,
    temperature: float,
    disallow_correct: bool,
    stream: int,
    with_argmax: bool,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    kernels = _kernels(hidden)
    tensors = tuple(tensor.contiguous() for tensor in (*_multipliable(hidden, weight), bias, labels))
    if hidden.shape[0] == 0:
        nll, lse = hidden.new_empty(0, dtype=torch.float32), hidden.new_empty((2, 0), dtype=torch.float32)
        sampled_ids, argmax_ids = labels.new_empty(0), labels.new_empty(0)
    else:
        nll, lse, sampled_ids, argmax_ids = kernels.forward(
            *tensors,
            seed,
            contiguous(row_ids),
            inverse_of(temperature),
            disallow_correct,
            stream,
            with_argmax,
        )
    gradients = _no_gradients(hidden, weight, bias)
    if with_gradients:
        gradients = _backward_triton(hidden, weight, bias, labels, _used(weights), lse)
    sampled_ids = torch.where(weights > 0, sampled_ids, labels)
    return _loss_sum(weights, nll), nll, sampled_ids, argmax_ids, lse, *gradients


def _backward_triton(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, coefficients: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _kernels(hidden)
    if hidden.shape[0] == 0:
        return torch.zeros_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias)
    tensors = (*_multipliable(hidden, weight), bias, labels, coefficients.float(), lse)
    d_hidden, d_weight, d_bias = kernels.backward(*(tensor.contiguous() for tensor in tensors))
    return d_hidden.to(hidden.dtype), d_weight.to(weight.dtype), d_bias


def _kernels(hidden: Tensor) -> Any:
    from electra_fast.kernels import generator_head, generator_head_chunks

    path = next(path for width, path in _PATHS[hidden.element_size()] if hidden.shape[1] <= width)
    return generator_head if path == "fused" else generator_head_chunks


def _multipliable(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Triton's interpreter (3.7) multiplies the bits of bfloat16 matrices as integers; a GPU knows better."""
    if hidden.device.type == "cpu" and hidden.dtype == torch.bfloat16:
        return hidden.float(), weight.float()
    return hidden, weight


# --- registration -----------------------------------------------------------------------------------------------------


def _shapes(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    weights: Tensor,
    seed: Tensor,
    row_ids: Tensor | None,
    temperature: float,
    disallow_correct: bool,
    stream: int,
    with_argmax: bool,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = hidden.shape[0]
    nll = hidden.new_empty(rows, dtype=torch.promote_types(hidden.dtype, torch.float32))
    gradients = _no_gradients(hidden, weight, bias)
    if with_gradients:
        gradients = _backward_shapes(hidden, weight, bias)
    argmax_ids = labels.new_empty(rows if with_argmax else 0)
    return nll.new_empty(()), nll, labels.new_empty(rows), argmax_ids, nll.new_empty((2, rows)), *gradients


def _backward_shapes(hidden: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> Gradients:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _check_labels(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, *_: Any) -> None:
    if labels.numel() == 0:
        return
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= weight.shape[0]:
        raise ValueError(f"{_NAME}: labels must lie in [0, V = {weight.shape[0]}); got {low} to {high}")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    hidden, weight, bias, labels, weights, *_ = inputs
    _, _, sampled_ids, argmax_ids, lse, *gradients = output
    ctx.mark_non_differentiable(sampled_ids, argmax_ids, lse, *gradients)
    ctx.set_materialize_grads(False)
    if ctx.backend is not None:  # eager mode, where backward gives these tensors away
        ctx.gradients, gradients = gradients, []
    ctx.save_for_backward(hidden, weight, bias, labels, weights, lse, *gradients)


def _backward(ctx: Any, d_loss_sum: Tensor | None, d_nll: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, labels, weights, lse, *gradients = ctx.saved_tensors
    others = (None,) * 9
    if d_loss_sum is None and d_nll is None:
        return None, None, None, *others
    if d_nll is None and gradients and gradients[1].numel() > 0:
        return *(gradient * d_loss_sum for gradient in gradients), *others
    # In eager mode the first pass through the graph takes the gradients and scales them in place, since a copy of the
    # weight's costs a tenth of the forward pass at 300 rows. Nothing else holds them then, so that whoever gets them
    # may write to them; a second pass (retain_graph) makes them again.
    taken = vars(ctx).pop("gradients", None)
    if d_nll is None and taken is not None and taken[1].numel() > 0 and not is_watched():
        return *(gradient if d_loss_sum == 1 else gradient.mul_(d_loss_sum) for gradient in taken), *others
    coefficients = torch.zeros_like(weights) if d_loss_sum is None else _used(weights) * d_loss_sum
    if d_nll is not None:
        coefficients = coefficients + d_nll
    gradients = _generator_head_backward(hidden, weight, bias, labels, coefficients, lse, backend=ctx.backend)
    return *gradients, *others


_generator_head_backward = register(
    f"{_NAME}_backward",
    {"reference": generator_head_backward_reference, "cpp": _backward_cpp, "triton": _backward_triton},
    operator=_NAME,
    shapes=_backward_shapes,
)

_generator_head = register(
    _NAME,
    {"reference": generator_head_reference, "cpp": _forward_cpp, "triton": _forward_triton},
    operator=_NAME,
    shapes=_shapes,
    check_values=_check_labels,
    setup_context=_setup_context,
    backward=_backward,
)


# --- public -----------------------------------------------------------------------------------------------------------


def linear_cross_entropy_sample(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    temperature: float = 1.0,
    disallow_correct: bool = False,
    seed: Tensor | int | None = None,
    stream: int = 0,
    row_ids: Tensor | None = None,
) -> GeneratorSample:
    """Cross-entropy of `labels` under softmax(hidden @ weight.T + bias), and one token drawn from it for each row.

    Never holds the logits [M, V]. On CPU the gradients of `loss_sum` are made in the forward pass, where the logits
    are at hand, so that it takes three matrix products in all; a gradient through `nll` takes three more.

    Args:
        hidden: [M, E], the transformed hidden states at the masked positions. Under autocast it and `weight` are cast,
            as for a linear layer.
        weight: [V, E], the (tied) word embeddings, of hidden's dtype. bias: [V], of any floating dtype.
        labels: int64 [M], the true tokens, in [0, V). On CUDA the range is checked under ELECTRA_FAST_DEBUG=1 only; a
            label outside counts as the nearest token.
        weights: float32 [M]; 0 for unused slots, whose sample is their own label. No gradient flows to them.
        temperature: divides the logits of the sample; the loss never sees it.
        disallow_correct: never sample the true token (the original's option); the loss never sees it.
        seed, stream, row_ids: which random numbers to draw, see `electra_fast.ops.random`.

    Returns:
        `(loss_sum, nll, sampled_ids)`; the first two are differentiable with respect to hidden, weight and bias.

    Raises:
        TypeError, ValueError: a dtype, shape or device other than the above, or a temperature that is not positive.

    Source: ELECTRA paper, section 2 and appendix A; google-research/electra, run_pretraining.py
    (`_get_masked_lm_output`) and pretrain/pretrain_helpers.py (`sample_from_softmax`). Tokens are drawn as
    `sample_tokens` draws them.
    """
    tensors = (hidden, weight, bias, labels, weights)
    return GeneratorSample(*_call(tensors, temperature, disallow_correct, seed, stream, row_ids, False)[:3])


def linear_cross_entropy_sample_with_argmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    temperature: float = 1.0,
    disallow_correct: bool = False,
    seed: Tensor | int | None = None,
    stream: int = 0,
    row_ids: Tensor | None = None,
) -> GeneratorSampleWithArgmax:
    """`linear_cross_entropy_sample` that also returns the most likely token of each row, the first of equals."""
    tensors = (hidden, weight, bias, labels, weights)
    return GeneratorSampleWithArgmax(*_call(tensors, temperature, disallow_correct, seed, stream, row_ids, True)[:4])


def _call(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    temperature: float,
    disallow_correct: bool,
    seed: Tensor | int | None,
    stream: int,
    row_ids: Tensor | None,
    with_argmax: bool,
) -> tuple[Tensor, ...]:
    hidden, weight, bias, labels, weights = tensors
    device_type = hidden.device.type
    if is_autocast_enabled(hidden.device):
        dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            tensors = (hidden.to(dtype), weight.to(dtype), bias.float(), labels, weights)
            return _call(tensors, temperature, disallow_correct, seed, stream, row_ids, with_argmax)
    _check(hidden, weight, bias, labels, weights, row_ids)
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"{_NAME}: temperature must be positive and finite; got {temperature}")
    if disallow_correct and weight.shape[0] < 2:
        raise ValueError(f"{_NAME}: weight has {weight.shape[0]} rows, and disallow_correct leaves no token to draw")
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad or bias.requires_grad)
    return _generator_head(
        hidden,
        weight,
        bias,
        labels,
        weights.detach(),
        as_seed(seed, hidden.device),
        row_ids,
        temperature,
        disallow_correct,
        check_stream(stream),
        with_argmax,
        wanted and device_type == "cpu",  # elsewhere the logits are made again in the backward pass
    )


def _check(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, weights: Tensor, row_ids: Tensor | None
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or weight.shape[0] == 0:
        raise ValueError(
            f"{_NAME}: hidden must be [M, E] and weight [V, E], V >= 1; got {tuple(hidden.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if not hidden.is_floating_point() or weight.dtype != hidden.dtype:
        raise TypeError(
            f"{_NAME}: hidden and weight must be of one floating dtype; got {hidden.dtype} and {weight.dtype}"
        )
    floats = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    rows, vocab_size = hidden.shape[0], weight.shape[0]
    for argument, tensor, dtypes, size in (
        ("bias", bias, floats, vocab_size),
        ("labels", labels, (torch.int64,), rows),
        ("weights", weights, floats, rows),
        ("row_ids", row_ids, (torch.int64,), rows),
    ):
        if tensor is None:
            continue
        check_tensor(_NAME, argument, tensor, 1, dtypes, hidden.device)
        if tensor.shape[0] != size:
            raise ValueError(f"{_NAME}: {argument} must have shape ({size},); got {tuple(tensor.shape)}")
    if weight.device != hidden.device:
        raise ValueError(f"{_NAME}: weight lies on {weight.device}, hidden on {hidden.device}")
