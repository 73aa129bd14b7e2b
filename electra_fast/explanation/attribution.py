"""Integrated gradients (Sundararajan et al., 2017) by Captum, with as many steps as completeness needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from electra_fast.extras import require

TOLERANCE = 0.01  # of the score's difference: how far the sum of the attributions may be from it
_STEPS = (16, 32, 64, 128, 256, 512, 1024)
_ROWS_AT_ONCE = 64


class Attribution(NamedTuple):
    """What each token adds to a score.

    Attributes:
        values: float64 [S]; they sum to `score - baseline_score` but for `error`.
        score, baseline_score: of the input and of the baseline.
        error: what the sum is off by.
        steps: points of the path at which gradients were taken.
    """

    values: Tensor
    score: float
    baseline_score: float
    error: float
    steps: int

    @property
    def is_complete(self) -> bool:
        """Whether the sum is the score's difference within `TOLERANCE`."""
        return abs(self.error) <= TOLERANCE * abs(self.score - self.baseline_score)


def integrated_gradients(score: Callable[[Tensor], Tensor], inputs: Tensor, baseline: Tensor) -> Attribution:
    """What each row of `inputs` adds to its score, against the same rows of `baseline`.

    Gradients along the straight line between them, by Gauss and Legendre's points, twice as many until the attributions
    sum to the difference within 1%, 1,024 at most: see `Attribution.is_complete`.

    Args:
        score: [N, S, E] -> [N], rows independent of each other.
        inputs, baseline: [S, E], floats.
    """
    captum = require("captum.attr", extra="explain", purpose="Explanations")
    method = captum.IntegratedGradients(score, multiply_by_inputs=True)
    inputs, baseline = inputs.detach().unsqueeze(0), baseline.detach().unsqueeze(0)
    with torch.no_grad():
        after, before = score(torch.cat([inputs, baseline])).double().tolist()
    for steps in _STEPS:
        values = method.attribute(
            inputs, baselines=baseline, n_steps=steps, method="gausslegendre", internal_batch_size=_ROWS_AT_ONCE
        )
        tokens = values.detach().double().sum(-1).squeeze(0).cpu()
        result = Attribution(tokens, after, before, float(tokens.sum()) - (after - before), steps)
        if result.is_complete:
            break
    return result
