"""Spans of words for masking, as a function of the text's words and name."""

from __future__ import annotations

import numpy as np

from electra_fast.data.streams import draws

SPAN_P = 0.2  # of the geometric distribution of spans' lengths
LONGEST_SPAN = 10  # words

_DOMAIN = 4


def span_starts(
    word_starts: np.ndarray, lengths: np.ndarray, *, seed: int, epochs: np.ndarray, sequence_ids: np.ndarray
) -> np.ndarray:
    """Parts sequences into spans of whole words: bool [tokens], where a span begins.

    A span has l words with probability ~ SPAN_P * (1 - SPAN_P)^(l - 1), l = 1 .. LONGEST_SPAN (3.8 on average); a
    sequence's last span ends with it. Drawn from (seed, epoch, sequence id). `mask_tokens` then picks spans uniformly.

    Args:
        word_starts: bool [tokens], of sequences one after another; the first token of each begins a word in any case.
        lengths: int64 [n], tokens of each sequence, at least 1.
        epochs, sequence_ids: int64 [n].

    Source: SpanBERT (Joshi et al., 2020), section 3.1, which draws a start for each span; here they fill the sequence.
    """
    word_starts = word_starts.copy()
    word_starts[np.cumsum(lengths) - lengths] = True
    word_at = np.flatnonzero(word_starts)  # [words], the token
    ends = np.searchsorted(word_at, np.cumsum(lengths))  # [n], the word after each sequence
    begins = np.concatenate([[0], ends[:-1]])
    owners = np.repeat(np.arange(len(lengths)), ends - begins)  # [words]
    # One draw a word, more than are needed; a draw's span begins where those before it, of its sequence, end.
    numbers = np.arange(len(word_at)) - begins[owners]
    words = draws(_DOMAIN, seed, epochs[owners], sequence_ids[owners])(numbers)
    sizes = 1 + np.searchsorted(_length_thresholds(), words, side="right")
    before = np.cumsum(sizes) - sizes
    firsts = before - before[begins][owners] + begins[owners]  # the word at which each drawn span begins
    starts = np.zeros(len(word_starts), bool)
    starts[word_at[firsts[firsts < ends[owners]]]] = True
    return starts


def span_length_probabilities() -> np.ndarray:
    """Of 1 .. LONGEST_SPAN words, float64."""
    weights = (1 - SPAN_P) ** np.arange(LONGEST_SPAN)
    return weights / weights.sum()


def _length_thresholds() -> np.ndarray:
    """32-bit words below the first are one word, below the second two, and so on: int64 [LONGEST_SPAN - 1]."""
    return np.rint(np.cumsum(span_length_probabilities())[:-1] * 2**32).astype(np.int64)
