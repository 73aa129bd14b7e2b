"""The best answer spans of one window, from a head's output; token positions count within the feature."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray


class Span(NamedTuple):
    """Tokens `start` to `end`, both in it, and the span's score: a sum of logits or of log probabilities."""

    start: int
    end: int
    score: float


class SpanBeam(NamedTuple):
    """The original head's output for a window: K starts, and for each the K best ends. See `original_span_head`.

    Attributes:
        starts, start_log_probs: [K].
        ends, end_log_probs: [K, K], of each start.
        impossible: logit of the question having no answer.
    """

    starts: NDArray[np.int64]
    start_log_probs: NDArray[np.float32]
    ends: NDArray[np.int64]
    end_log_probs: NDArray[np.float32]
    impossible: float


class Region(NamedTuple):
    """Where an answer may be: it starts in [first_start, last_start] and ends at `last` or before."""

    first_start: int
    last_start: int
    last: int


def best_spans(
    start_logits: NDArray[np.float32], end_logits: NDArray[np.float32], region: Region, *, max_tokens: int, count: int
) -> list[Span]:
    """The `count` spans of at most `max_tokens` with the highest start + end logit, best first; fewer if there are.

    Exact: every span of the region is looked at. Logits are [n].
    """
    first, last_start, last = region
    if last_start < first:
        return []
    starts = start_logits[first : last_start + 1].astype(np.float64)
    ends = np.full(len(starts) + max_tokens - 1, -np.inf)  # the ends that a start may have, row by row
    known = end_logits[first : min(last, last_start + max_tokens - 1) + 1]
    ends[: len(known)] = known
    scores = (starts[:, None] + sliding_window_view(ends, max_tokens)).ravel()  # [starts * max_tokens]
    picked = np.argpartition(-scores, count)[:count] if count < len(scores) else np.arange(len(scores))
    picked = picked[np.argsort(-scores[picked], kind="stable")]
    rows, lengths = np.divmod(picked, max_tokens)
    return [
        Span(first + row, first + row + length, score)
        for row, length, score in zip(rows.tolist(), lengths.tolist(), scores[picked].tolist(), strict=True)
        if score > -np.inf
    ]


def beam_spans(beam: SpanBeam, region: Region, *, max_tokens: int, count: int) -> list[Span]:
    """The same from a beam, whose spans outside the region, or too long, are left out."""
    starts = np.broadcast_to(beam.starts[:, None], beam.ends.shape)
    scores = beam.start_log_probs[:, None].astype(np.float64) + beam.end_log_probs
    allowed = (starts >= region.first_start) & (starts <= region.last_start) & (beam.ends <= region.last)
    allowed &= (beam.ends >= starts) & (beam.ends < starts + max_tokens)
    spans = [Span(*values) for values in zip(starts[allowed], beam.ends[allowed], scores[allowed], strict=True)]
    best = sorted(spans, key=lambda span: -span.score)[:count]
    return [Span(int(start), int(end), float(score)) for start, end, score in best]
