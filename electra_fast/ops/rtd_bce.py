"""The discriminator's loss: binary cross-entropy of replaced-token detection, with the counts its metrics need."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops import _backends
from electra_fast.ops._register import register

HISTOGRAM_BINS = 1024
BINS_PER_LOGIT = 32


class RTDLoss(NamedTuple):
    """Sums over the tokens where `mask` is set; "positive" means predicted as replaced (logit > 0).

    `score_histogram` is int64 [2, 1024]: row 0 the original tokens, row 1 the replaced ones, by
    bin = clamp(floor(32 * logit) + 512, 0, 1023); `auc` reads the area under the ROC curve from it.
    """

    loss_sum: Tensor  # float32, 0-d
    count: Tensor  # int64, 0-d, as are the four below
    true_positives: Tensor
    false_positives: Tensor
    true_negatives: Tensor
    false_negatives: Tensor
    score_histogram: Tensor


def rtd_bce_reference(
    logits: Tensor, is_replaced: Tensor, mask: Tensor, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`loss_sum`, the five counts [5], the histogram, and the gradient of `loss_sum` ([0] where it isn't needed)."""
    scores = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    # How far a logit lies on the wrong side. By its sign alone, so that infinities have the loss they tend to.
    wrong = torch.where(is_replaced, -scores, scores)
    loss_sum = torch.where(mask, -F.logsigmoid(-wrong), 0).sum()

    predicted = scores > 0
    counts = torch.stack(
        [
            mask.sum(),
            (mask & predicted & is_replaced).sum(),
            (mask & predicted & ~is_replaced).sum(),
            (mask & ~predicted & ~is_replaced).sum(),
            (mask & ~predicted & is_replaced).sum(),
        ]
    )
    bins = (torch.nan_to_num(scores) * BINS_PER_LOGIT).floor() + HISTOGRAM_BINS // 2
    bins = bins.clamp(0, HISTOGRAM_BINS - 1).long() + is_replaced * HISTOGRAM_BINS
    histogram = torch.zeros(2 * HISTOGRAM_BINS, dtype=torch.int64, device=logits.device)
    histogram.scatter_add_(0, bins.flatten(), mask.flatten().long())

    gradient = logits.new_empty(0)
    if needs_gradient:
        probability = wrong.sigmoid()
        gradient = torch.where(mask, torch.where(is_replaced, -probability, probability), 0).to(logits.dtype)
    return loss_sum, counts, histogram.view(2, HISTOGRAM_BINS), gradient


def _rtd_bce_cpp(
    logits: Tensor, is_replaced: Tensor, mask: Tensor, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = loss_sum, counts, histogram, gradient = _rtd_bce_shapes(logits, is_replaced, mask, needs_gradient)
    extension = _backends.extension()
    run = extension.rtd_bce_float32 if logits.dtype == torch.float32 else extension.rtd_bce_bfloat16
    run(
        logits=logits.data_ptr(),
        is_replaced=is_replaced.data_ptr(),
        mask=mask.data_ptr(),
        num_tokens=logits.numel(),
        loss_sum=loss_sum.data_ptr(),
        counts=counts.data_ptr(),
        histogram=histogram.data_ptr(),
        gradient=gradient.data_ptr() if needs_gradient else 0,
        threads=torch.get_num_threads(),
    )
    return outputs


def _rtd_bce_triton(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from electra_fast.kernels.rtd_bce import rtd_bce_triton

    return rtd_bce_triton(*args)


def _rtd_bce_shapes(
    logits: Tensor, is_replaced: Tensor, mask: Tensor, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        logits.new_empty((), dtype=torch.promote_types(logits.dtype, torch.float32)),
        logits.new_empty(5, dtype=torch.int64),
        logits.new_empty((2, HISTOGRAM_BINS), dtype=torch.int64),
        torch.empty_like(logits) if needs_gradient else logits.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    _, counts, histogram, gradient = output
    ctx.save_for_backward(gradient)
    ctx.mark_non_differentiable(counts, histogram, gradient)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, loss_sum_gradient: Tensor | None, *_: None) -> tuple[Tensor | None, None, None, None]:
    if loss_sum_gradient is None:
        return None, None, None, None
    (gradient,) = ctx.saved_tensors
    # One dimension, so that it keeps its float32: a 0-d factor would be rounded to the logits' dtype.
    return (gradient * loss_sum_gradient.view(1)).to(gradient.dtype), None, None, None


_rtd_bce = register(
    "rtd_bce",
    {"reference": rtd_bce_reference, "cpp": _rtd_bce_cpp, "triton": _rtd_bce_triton},
    operator="rtd_bce",
    shapes=_rtd_bce_shapes,
    setup_context=_setup_context,
    backward=_backward,
)


def rtd_bce(logits: Tensor, is_replaced: Tensor, mask: Tensor) -> RTDLoss:
    """Binary cross-entropy of "was this token replaced?", summed over the real tokens.

    Args:
        logits: [T] or [B, S], float32, bfloat16 or float16 (float64 too); large means replaced.
        is_replaced: bool, same shape; the label.
        mask: bool, same shape; True for the tokens that count (everything but padding).

    Returns:
        `RTDLoss`; `loss_sum` is differentiable with respect to `logits` and computed in float32 or wider. A NaN logit
        makes the loss NaN, counts as predicted "original" and falls in the bin of 0. Tokens outside `mask` contribute
        nothing, whatever their logit.

    Raises:
        TypeError, ValueError: a dtype, shape or device other than the above.

    The gradient is made in the forward pass, and only scaled in the backward pass.

    Source: ELECTRA paper, section 2; google-research/electra, run_pretraining.py (`_get_discriminator_output`).
    """
    if not logits.is_floating_point():
        raise TypeError(f"rtd_bce: logits must be a floating-point tensor, not {logits.dtype}")
    for name, tensor in (("is_replaced", is_replaced), ("mask", mask)):
        if tensor.dtype != torch.bool:
            raise TypeError(f"rtd_bce: {name} must be bool, not {tensor.dtype}")
        if tensor.shape != logits.shape:
            raise ValueError(f"rtd_bce: {name} has shape {tuple(tensor.shape)}, logits {tuple(logits.shape)}")
        if tensor.device != logits.device:
            raise ValueError(f"rtd_bce: {name} lies on {tensor.device}, logits on {logits.device}")
    needs_gradient = logits.requires_grad and torch.is_grad_enabled()
    loss_sum, counts, histogram, _ = _rtd_bce(
        logits.contiguous(), is_replaced.contiguous(), mask.contiguous(), needs_gradient
    )
    return RTDLoss(loss_sum, *counts.unbind(), histogram)


def auc(score_histogram: Tensor) -> Tensor:
    """Area under the ROC curve from `RTDLoss.score_histogram` [2, bins].

    To 1e-3 where the logits' deviation is at least 0.1.

    Within a bin the densities are taken as linear, with the slopes of the neighbouring bins: a pair of one bin is in
    order with probability 1/2 + (slope of the replaced - slope of the originals) / 12.

    Returns a float64 0-d tensor, NaN where one of the two classes is empty.
    """
    original, replaced = score_histogram.double()
    below = original.cumsum(0) - original
    in_order = (replaced * (below + 0.5 * original)).sum()
    in_order = in_order + (original[:-1] * replaced[1:] - original[1:] * replaced[:-1]).sum() / 12
    return in_order / (original.sum() * replaced.sum())
