"""The original's examples of two segments, `[CLS] A [SEP] B [SEP]`, as a function of the text and its name."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from electra_fast.data.streams import draws
from electra_fast.ops.random import threshold

ONE_SEGMENT = 0.1  # the probability of an example of one segment, as in classification tasks
SHORTER = 0.05  # the probability of a random, shorter length
SHORTEST = 5  # of these lengths, special tokens included
SENTENCE_ENDS = (".", "!", "?", "。", "！", "？")  # noqa: RUF001

_DOMAIN = 3  # beside the masking seed's 1 and the step seed's 2


class Drawn(NamedTuple):
    """What is random about n sequences: longest length (special tokens included); a coin; whether it is one segment."""

    targets: np.ndarray  # int64 [n]
    over_half: np.ndarray  # bool [n]: the sentence that reaches half belongs to A
    one_segment: np.ndarray  # bool [n]


class TwoSegments:
    """Draws where examples are cut, from (seed, epoch, sequence id).

    A piece is cut to a random length (SHORTEST .. max_length, special tokens included) with probability SHORTER. With
    probability ONE_SEGMENT it is one segment. Else A takes sentences while it stays shorter than half; the one that
    reaches half goes to A or B with equal probability, unless it is the first, which is always A's. Where B gets
    nothing, as with the short rest of a document, the example is of one segment. Sentences end after one of the tokens
    `ends`, with a [SEP] between joined documents, and with the piece.

    Source: google-research/electra, build_pretraining_dataset.py (`ExampleBuilder`). There, a sentence is a line of the
    text, and a short one may go to A after a longer one went to B; text beyond the length is dropped for good, here for
    this epoch.
    """

    def __init__(self, *, max_length: int, seed: int, ends: np.ndarray) -> None:
        self.max_length = max_length
        self.seed = seed
        self.is_end = np.zeros(int(ends.max(initial=0)) + 2, bool)  # [ids], the last entry for all ids above
        self.is_end[ends] = True

    def draw(self, epochs: np.ndarray, sequence_ids: np.ndarray) -> Drawn:
        """What is random about sequences, named by int64 [n] twice."""
        words = draws(_DOMAIN, self.seed, epochs, sequence_ids)
        shorter = SHORTEST + (words(1) * (self.max_length - SHORTEST + 1) >> 32)
        return Drawn(
            targets=np.where(words(0) < threshold(SHORTER), shorter, self.max_length),
            over_half=words(2) & 1 == 1,
            one_segment=words(3) < threshold(ONE_SEGMENT),
        )

    def cuts(self, ids: np.ndarray, lengths: np.ndarray, drawn: Drawn) -> np.ndarray:
        """The length of A in each piece, int64 [n]; all of it where there is no B. `ids` [tokens]: their text."""
        begins = np.cumsum(lengths) - lengths
        is_end = self.is_end.take(ids, mode="clip")
        is_end[begins + lengths - 1] = True
        ends = 1 + np.flatnonzero(is_end)  # places after a sentence, over all pieces

        half = (drawn.targets - 3) // 2
        last = np.searchsorted(ends, begins + lengths)
        reaching = np.minimum(np.searchsorted(ends, begins + half), last)  # the sentence that reaches half, or the last
        over = ends[reaching] - begins
        under = np.where(reaching > 0, ends[reaching - 1], 0) - begins
        takes = (under <= 0) | (over < half) | drawn.over_half
        return np.where(drawn.one_segment, lengths, np.where(takes, over, under))


def sentence_end_ids(vocabulary: dict[str, int]) -> np.ndarray:
    """The ids of the tokens that end a sentence, int64."""
    return np.array([vocabulary[token] for token in SENTENCE_ENDS if token in vocabulary], np.int64)
