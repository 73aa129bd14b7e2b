"""A context that is longer than the model reads: windows of its tokens, one step after another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """Tokens [start, stop) of a context; among them [core_start, core_stop) are those it shows best.

    Of the windows with a token, the one that shows it best has the most tokens on the side where it has fewer; answers
    are taken from there. Source: google-research/electra, finetune/qa/qa_tasks.py (`_check_is_max_context`).
    """

    start: int
    stop: int
    core_start: int
    core_stop: int


def cut_windows(num_tokens: int, width: int, stride: int) -> list[Window]:
    """Windows of at most `width` tokens that begin `stride` tokens apart, or less where that would leave a gap.

    No tokens at all: one empty window.
    """
    starts = [0]
    while starts[-1] + width < num_tokens:
        starts.append(starts[-1] + min(width, stride))
    stops = [min(start + width, num_tokens) for start in starts]
    if len(starts) == 1:
        return [Window(0, num_tokens, 0, num_tokens)]
    owners = np.zeros(num_tokens, dtype=np.int64)
    best = np.full(num_tokens, -np.inf)
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        left = np.arange(stop - start)
        shown = np.minimum(left, left[::-1]) + 0.01 * (stop - start)  # of two windows that show it alike, the longer
        is_better = shown > best[start:stop]
        owners[start:stop][is_better] = index
        best[start:stop][is_better] = shown[is_better]
    # A later window shows a token better the further right the token is, so the owners ascend.
    cores = np.searchsorted(owners, np.arange(len(starts) + 1)).tolist()
    return [Window(*bounds) for bounds in zip(starts, stops, cores[:-1], cores[1:], strict=True)]
