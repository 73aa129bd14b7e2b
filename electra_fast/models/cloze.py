"""The generator's distribution at tokens other than those its loss is about."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def log_probabilities(projection: nn.Linear, hidden: Tensor, labels: Tensor, nll: Tensor, ids: Tensor) -> Tensor:
    """log p(ids) of each row, in nats, from the `nll` [M] of its labels: float32 [M], differentiable.

    Two tokens' log-probabilities differ as their logits do, so M dot products are enough: neither [M, V] logits nor
    another product with the vocabulary is needed.

    Args:
        projection: onto the vocabulary, E -> V.
        hidden: [M, E], its input. labels, ids: int64 [M]. nll: float32 [M], as `linear_cross_entropy_sample` gives it.
    """
    rows, labels_rows = F.embedding(torch.stack([ids, labels]), projection.weight).to(nll.dtype).unbind()
    bias = projection.bias.to(nll.dtype)
    return (hidden.to(nll.dtype) * (rows - labels_rows)).sum(dim=1) + bias[ids] - bias[labels] - nll
