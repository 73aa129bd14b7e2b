"""Windows and best spans beside loops over all of them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from electra_fast.finetuning.spans import Region, SpanBeam, beam_spans, best_spans
from electra_fast.finetuning.windows import cut_windows


def _core_by_the_original(windows: list[tuple[int, int]], token: int) -> int:
    """The window that shows a token best: most tokens on its poorer side, plus a hundredth of the length; the first."""
    shown = [
        min(token - start, stop - 1 - token) + 0.01 * (stop - start) if start <= token < stop else -1.0
        for start, stop in windows
    ]
    return shown.index(max(shown))


def test_windows_are_the_originals(rng_seed: int) -> None:
    rng = random.Random(rng_seed)
    for _ in range(300):
        length, width, stride = rng.randrange(1, 200), rng.randrange(1, 60), rng.randrange(1, 80)
        windows = cut_windows(length, width, stride)
        expected, start = [], 0
        while start < length:
            count = min(width, length - start)
            expected.append((start, start + count))
            if start + count == length:
                break
            start += min(count, stride)
        assert [(window.start, window.stop) for window in windows] == expected
        cores = [_core_by_the_original(expected, token) for token in range(length)]
        assert cores == [i for i, window in enumerate(windows) for _ in range(window.core_start, window.core_stop)]
        ends = [bound for window in windows for bound in (window.core_start, window.core_stop)]
        assert ends == sorted(ends) and ends[0] == 0 and ends[-1] == length
    assert [tuple(window) for window in cut_windows(0, 5, 2)] == [(0, 0, 0, 0)]


def test_a_very_long_context_is_cut_in_time_that_grows_with_its_length() -> None:
    windows = cut_windows(1_000_000, 445, 128)
    assert windows[-1].stop == windows[-1].core_stop == 1_000_000
    assert sum(window.core_stop - window.core_start for window in windows) == 1_000_000


def _region(rng: random.Random, length: int) -> Region:
    first = rng.randrange(length)
    last = rng.randrange(first, length)
    return Region(first, rng.randrange(first - 1, last + 1), last)


def test_best_spans_beside_all_spans(rng_seed: int) -> None:
    rng = random.Random(rng_seed)
    numpy_rng = np.random.default_rng(rng_seed)
    for _ in range(300):
        length, max_tokens, count = rng.randrange(1, 40), rng.randrange(1, 45), rng.randrange(1, 30)
        start, end = numpy_rng.permutation(2 * length * 1000)[: 2 * length].astype(np.float32).reshape(2, length)
        region = _region(rng, length)
        every = [
            (float(start[i]) + float(end[j]), i, j)
            for i in range(region.first_start, region.last_start + 1)
            for j in range(i, min(region.last, i + max_tokens - 1) + 1)
        ]
        scores = sorted((score for score, _, _ in every), reverse=True)
        found = best_spans(start, end, region, max_tokens=max_tokens, count=count)
        assert [span.score for span in found] == scores[:count]
        assert {(score, i, j) for i, j, score in found} <= set(every)
        assert len({(span.start, span.end) for span in found}) == len(found)


def test_spans_of_a_beam_beside_all_of_it(rng_seed: int) -> None:
    rng = random.Random(rng_seed)
    numpy_rng = np.random.default_rng(rng_seed)
    for _ in range(200):
        length, width = rng.randrange(1, 40), rng.randrange(1, 8)
        max_tokens, count = rng.randrange(1, 20), rng.randrange(1, 30)
        beam = SpanBeam(
            numpy_rng.integers(0, length, width),
            numpy_rng.standard_normal(width, dtype=np.float32),
            numpy_rng.integers(0, length, (width, width)),
            numpy_rng.standard_normal((width, width), dtype=np.float32),
            0.0,
        )
        region = _region(rng, length)
        scores = [
            float(beam.start_log_probs[k]) + float(beam.end_log_probs[k, j])
            for k, start in enumerate(beam.starts)
            for j, end in enumerate(beam.ends[k])
            if region.first_start <= start <= region.last_start
            and start <= end <= min(region.last, start + max_tokens - 1)
        ]
        found = beam_spans(beam, region, max_tokens=max_tokens, count=count)
        assert [span.score for span in found] == pytest.approx(sorted(scores, reverse=True)[:count], abs=1e-12)
