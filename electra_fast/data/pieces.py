"""How documents are cut into pieces: each by itself, or joined into one long row."""

from __future__ import annotations

import numpy as np

from electra_fast.data.corpus import Corpus

MIN_PIECE = 8  # tokens; a remainder shorter than this is not trained on


class DocumentPieces:
    """Pieces of `size` tokens, none reaching over the end of its document.

    What is left of a document after its full pieces is a piece of its own from MIN_PIECE tokens on, and dropped below;
    a document shorter than `size` is one piece, however short. Memory: 8 bytes a document.
    """

    def __init__(self, corpus: Corpus, size: int) -> None:
        self.corpus = corpus
        self.size = size
        full, rest = np.divmod(np.diff(corpus.offsets), size)
        self._ends = np.cumsum(full + ((rest >= MIN_PIECE) | (full == 0)))  # [documents], the first piece after each
        self.count = int(self._ends[-1])

    def spans(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each of `pieces` (int64 [n]) starts, and its tokens: twice int64 [n]."""
        documents = np.searchsorted(self._ends, pieces, side="right")
        first_pieces = np.where(documents > 0, self._ends[documents - 1], 0)
        starts = self.corpus.offsets[documents] + (pieces - first_pieces) * self.size
        return starts, np.minimum(self.size, self.corpus.offsets[documents + 1] - starts)

    def in_corpus(self, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
        """The spans themselves; and None: no token is added to those of the corpus."""
        return starts, lengths, None

    def tokens_before(self, pieces: np.ndarray) -> np.ndarray:
        """How many tokens the pieces before each of `pieces` hold together; up to `count`, where that is all."""
        lengths = np.diff(self.corpus.offsets)
        full, rest = np.divmod(lengths, self.size)
        kept = np.concatenate([[0], np.cumsum(np.where((rest >= MIN_PIECE) | (full == 0), lengths, full * self.size))])
        documents = np.searchsorted(self._ends, pieces, side="right")
        first_pieces = np.where(documents > 0, self._ends[documents - 1], 0)
        return kept[documents] + (pieces - first_pieces) * self.size

    def will_need(self, first: int, stop: int) -> None:
        """Have the system read pieces first..stop ahead."""
        starts, lengths = self.spans(np.array([first, stop - 1]))
        self.corpus.will_need(int(starts[0]), int(starts[1] + lengths[1]))


class JoinedPieces:
    """Pieces of `size` tokens of one row: all documents, with one [SEP] between each two.

    The last piece is kept from MIN_PIECE tokens on, or where it is the only one. Places count in that row. Memory: 8
    bytes a document.
    """

    def __init__(self, corpus: Corpus, size: int) -> None:
        self.corpus = corpus
        self.size = size
        self._starts = corpus.offsets[:-1] + np.arange(corpus.num_documents)  # of the documents in the row
        self._total = corpus.num_tokens + corpus.num_documents - 1
        full, rest = divmod(self._total, size)
        self.count = full + (rest >= MIN_PIECE or full == 0)

    def spans(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each of `pieces` (int64 [n]) starts, and its tokens: twice int64 [n]."""
        starts = pieces * self.size
        return starts, np.minimum(self.size, self._total - starts)

    def in_corpus(self, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where spans of the row start in the corpus; their tokens but [SEP]; and bool: which tokens are a [SEP]."""
        first = np.searchsorted(
            self._starts, starts, side="right"
        )  # the first document that starts after the span does
        after = np.searchsorted(self._starts, starts + lengths, side="right")
        begun = aranges(first, after - first)  # documents; before each of them stands a [SEP]
        offsets = np.repeat(np.cumsum(lengths) - lengths - starts, after - first)
        separators = np.zeros(int(lengths.sum()), bool)
        separators[self._starts[begun] - 1 + offsets] = True
        return starts - (first - 1), lengths - (after - first), separators

    def tokens_before(self, pieces: np.ndarray) -> np.ndarray:
        """How many tokens the pieces before each of `pieces` hold together; up to `count`, where that is all."""
        return np.minimum(pieces * self.size, self._total)

    def will_need(self, first: int, stop: int) -> None:
        """Have the system read pieces first..stop ahead."""
        places = np.array([first * self.size, min(stop * self.size, self._total)])
        begun = np.searchsorted(self._starts, places, side="right")
        start, end = (places - begun + 1).tolist()
        self.corpus.will_need(max(start, 0), min(end, self.corpus.num_tokens))


def aranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... lengths[0] numbers; then those from starts[1]; and so on."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
