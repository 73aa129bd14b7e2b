"""The discriminator's loss: binary cross-entropy of replaced-token detection, with the counts its metrics need."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._backends import select

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


def rtd_bce_reference(logits: Tensor, is_replaced: Tensor, mask: Tensor) -> RTDLoss:
    scores = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    losses = F.binary_cross_entropy_with_logits(scores, is_replaced.to(scores.dtype), reduction="none")
    loss_sum = torch.where(mask, losses, 0).sum()

    predicted = scores.detach() > 0
    bins = (torch.nan_to_num(scores.detach()) * BINS_PER_LOGIT).floor() + HISTOGRAM_BINS // 2
    bins = bins.clamp(0, HISTOGRAM_BINS - 1).long() + is_replaced * HISTOGRAM_BINS
    histogram = torch.zeros(2 * HISTOGRAM_BINS, dtype=torch.int64, device=logits.device)
    histogram.scatter_add_(0, bins.flatten(), mask.flatten().long())
    return RTDLoss(
        loss_sum,
        mask.sum(),
        (mask & predicted & is_replaced).sum(),
        (mask & predicted & ~is_replaced).sum(),
        (mask & ~predicted & ~is_replaced).sum(),
        (mask & ~predicted & is_replaced).sum(),
        histogram.view(2, HISTOGRAM_BINS),
    )


def rtd_bce(logits: Tensor, is_replaced: Tensor, mask: Tensor) -> RTDLoss:
    """Binary cross-entropy of "was this token replaced?", summed over the real tokens.

    Args:
        logits: [T] or [B, S], float32, bfloat16 or float16 (float64 too); large means replaced.
        is_replaced: bool, same shape; the label.
        mask: bool, same shape; True for the tokens that count (everything but padding).

    Returns:
        `RTDLoss`; `loss_sum` is differentiable with respect to `logits` and computed in float32 or wider.

    Raises:
        TypeError, ValueError: a dtype or shape other than the above.

    Source: ELECTRA paper, section 2; google-research/electra, run_pretraining.py (`_get_discriminator_output`).
    """
    if not logits.is_floating_point():
        raise TypeError(f"rtd_bce: logits must be a floating-point tensor, not {logits.dtype}")
    for name, tensor in (("is_replaced", is_replaced), ("mask", mask)):
        if tensor.dtype != torch.bool:
            raise TypeError(f"rtd_bce: {name} must be bool, not {tensor.dtype}")
        if tensor.shape != logits.shape:
            raise ValueError(f"rtd_bce: {name} has shape {tuple(tensor.shape)}, logits {tuple(logits.shape)}")
    select("rtd_bce", logits)
    return rtd_bce_reference(logits, is_replaced, mask)


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
