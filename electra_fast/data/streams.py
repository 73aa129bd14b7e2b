"""The order of sequences: endless streams of a corpus's pieces, and mixtures of them. All is a function of the place.

A **place** counts the sequences of a stream from 0; a stream's **tokens** are counted by nominal lengths: those of the
pieces with all their special tokens, before anything random shortens them, so that they are the same in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from electra_fast.data.pieces import DocumentPieces, JoinedPieces
from electra_fast.ops.random import splitmix64

WINDOW = 1 << 16  # pieces; the order is a permutation of windows, and of the pieces within each
BLOCK = 1 << 16  # places of a mixture; each block holds the same number of sequences of each corpus
_BLOCK_KEY = 1 << 63  # beside the keys 0 (windows) and 1 + w (pieces of window w)


class Sequences(NamedTuple):
    """Which text stands at places of a stream: int64 [n] each."""

    sources: np.ndarray  # the corpus, by its number in the mixture
    epochs: np.ndarray  # how many times all of that corpus came before
    pieces: np.ndarray  # by their order in the corpus


class Stream(Protocol):
    """What a loader takes its sequences from."""

    num_sequences: int  # an epoch's: the pieces of all corpora
    mean_length: float  # tokens a sequence, nominal

    def take(self, first: int, stop: int) -> Sequences:
        """The sequences at places first..stop."""

    def tokens_before(self, place: int) -> int:
        """The tokens of all sequences before a place."""

    def place_at(self, token: int) -> int:
        """The first place whose sequence starts at `token` or later."""


class CorpusStream:
    """Epoch after epoch of one corpus, in each every piece once.

    With `shuffle`, an epoch's order is a permutation of windows of WINDOW pieces and of the pieces in each, keyed
    by (seed, epoch); without, the order of the corpus. `specials` tokens are added to each piece. Memory: the
    permutations of the windows in use.
    """

    def __init__(self, pieces: DocumentPieces | JoinedPieces, *, specials: int, seed: int, shuffle: bool) -> None:
        self.pieces = pieces
        self.specials = specials
        self.seed = seed
        self.shuffle = shuffle
        self.num_sequences = pieces.count
        self._bounds = np.append(np.arange(0, pieces.count, WINDOW), pieces.count)  # of the windows
        # Caches that threads may share; the two windows in use are a batch's, which runs over from one into the next.
        self._windows = lru_cache(2)(self._draw_windows)
        self._within = lru_cache(2)(self._draw_within)
        self._starts = lru_cache(2)(self._sum_lengths)

    @property
    def mean_length(self) -> float:
        return self.num_tokens / self.num_sequences

    @property
    def num_tokens(self) -> int:
        """Of an epoch."""
        return int(self._window_tokens.sum())

    def take(self, first: int, stop: int) -> Sequences:
        epochs, pieces = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while first < stop:
            epoch, place = divmod(first, self.num_sequences)
            order, places = self._windows(epoch)
            slot = int(np.searchsorted(places, place, side="right")) - 1
            begin, end = place - places[slot], min(places[slot + 1], place + stop - first) - places[slot]
            pieces.append(self._within(epoch, int(order[slot]))[begin:end])
            epochs.append(np.full(end - begin, epoch))
            first += int(end - begin)
        epoch, piece = np.concatenate(epochs), np.concatenate(pieces)
        return Sequences(np.zeros_like(piece), epoch, piece)

    def lengths(self, first: int, stop: int) -> np.ndarray:
        """Tokens of each of the sequences at places first..stop."""
        return self.pieces.spans(self.take(first, stop).pieces)[1] + self.specials

    def tokens_before(self, place: int) -> int:
        epoch, place = divmod(place, self.num_sequences)
        order, places = self._windows(epoch)
        slot = int(np.searchsorted(places, place, side="right")) - 1
        before = self._window_tokens[order[:slot]].sum()
        return epoch * self.num_tokens + int(before + self._starts(epoch, int(order[slot]))[place - places[slot]])

    def place_at(self, token: int) -> int:
        epoch, token = divmod(token, self.num_tokens)
        order, places = self._windows(epoch)
        before = np.concatenate([[0], np.cumsum(self._window_tokens[order])])
        slot = max(int(np.searchsorted(before, token)) - 1, 0)
        within = np.searchsorted(self._starts(epoch, int(order[slot])), token - before[slot])
        return epoch * self.num_sequences + int(places[slot] + within)

    @cached_property
    def _window_tokens(self) -> np.ndarray:
        return np.diff(self.pieces.tokens_before(self._bounds)) + self.specials * np.diff(self._bounds)

    def _draw_windows(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The windows in an epoch's order [windows], and the places where they start in it, and the end."""
        order = np.arange(len(self._bounds) - 1)
        if self.shuffle:
            order = permutation(self.seed, epoch, 0, len(order))
        return order, np.concatenate([[0], np.cumsum(np.diff(self._bounds)[order])])

    def _draw_within(self, epoch: int, window: int) -> np.ndarray:
        """The pieces of a window in an epoch's order."""
        first, stop = self._bounds[window : window + 2].tolist()
        self.pieces.will_need(first, stop)
        if not self.shuffle:
            return np.arange(first, stop)
        return first + permutation(self.seed, epoch, 1 + window, stop - first)

    def _sum_lengths(self, epoch: int, window: int) -> np.ndarray:
        """Where each sequence of a window starts among its tokens in an epoch's order, and the end."""
        lengths = self.pieces.spans(self._within(epoch, window))[1] + self.specials
        return np.concatenate([[0], np.cumsum(lengths)])


class MixtureStream:
    """Several streams mixed: each BLOCK places hold the same number of each, in an order keyed by (seed, block).

    Stream i has a share of about shares[i], to within 2^-16 and at least 2^-16. Each goes through its own epochs.
    """

    def __init__(self, streams: Sequence[CorpusStream], shares: Sequence[float], *, seed: int) -> None:
        self.streams = streams
        self.seed = seed
        self.counts = quotas(shares, BLOCK)
        self.num_sequences = sum(stream.num_sequences for stream in streams)
        self._block = lru_cache(2)(self._draw_block)
        self._tokens_before = lru_cache(4096)(self._sum_blocks)
        self._starts = lru_cache(2)(self._sum_lengths)

    @property
    def mean_length(self) -> float:
        lengths = (stream.mean_length for stream in self.streams)
        return sum(count * length for count, length in zip(self.counts, lengths, strict=True)) / BLOCK

    def take(self, first: int, stop: int) -> Sequences:
        taken = Sequences(*np.empty((3, stop - first), np.int64))
        at = first
        while at < stop:
            block, begin = divmod(at, BLOCK)
            end = min(BLOCK, begin + stop - at)
            for source, (stream, count, places) in enumerate(
                zip(self.streams, self.counts, self._block(block), strict=True)
            ):
                low, high = np.searchsorted(places, (begin, end)).tolist()
                here = places[low:high] + (at - first - begin)
                _, taken.epochs[here], taken.pieces[here] = stream.take(block * count + low, block * count + high)
                taken.sources[here] = source
            at += end - begin
        return taken

    def tokens_before(self, place: int) -> int:
        block, within = divmod(place, BLOCK)
        return self._tokens_before(block) + (int(self._starts(block)[within]) if within else 0)

    def place_at(self, token: int) -> int:
        block = int(token / (BLOCK * self.mean_length))  # nearly
        while block and self._tokens_before(block) >= token:
            block -= 1
        while self._tokens_before(block + 1) < token:
            block += 1
        return block * BLOCK + int(np.searchsorted(self._starts(block), token - self._tokens_before(block)))

    def _draw_block(self, block: int) -> list[np.ndarray]:
        """The places of each stream in a block, ascending."""
        order = permutation(self.seed, block, _BLOCK_KEY, BLOCK)
        return [np.sort(part) for part in np.split(order, np.cumsum(self.counts)[:-1])]

    def _sum_blocks(self, block: int) -> int:
        counted = zip(self.streams, self.counts, strict=True)
        return sum(stream.tokens_before(block * count) for stream, count in counted)

    def _sum_lengths(self, block: int) -> np.ndarray:
        """Where each sequence of a block starts among its tokens, and the end."""
        lengths = np.zeros(1 + BLOCK, np.int64)
        for stream, count, places in zip(self.streams, self.counts, self._block(block), strict=True):
            lengths[1 + places] = stream.lengths(block * count, (block + 1) * count)
        return np.cumsum(lengths)


def shares_by_size(sizes: Sequence[int], alpha: float) -> list[float]:
    """p_i ~ n_i^alpha: 1 is in proportion, 0 the same for all. Source: XLM (Lample and Conneau, 2019), section 3.1."""
    return [(size / max(sizes)) ** alpha for size in sizes]


def quotas(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to `shares`, at least 1 each, that sum to `total` (by largest remainders)."""
    exact = [total * share / sum(shares) for share in shares]
    counts = [max(1, int(part)) for part in exact]
    while (lacking := total - sum(counts)) != 0:
        gaps = [part - count for part, count in zip(exact, counts, strict=True)]
        if lacking > 0:
            counts[gaps.index(max(gaps))] += 1
        else:
            counts[counts.index(max(counts))] -= 1
    return counts


def permutation(seed: int, epoch: int, key: int, size: int) -> np.ndarray:
    """A permutation of 0 .. size - 1, keyed by three numbers below 2^64."""
    # Sorting PCG64's raw words, which NumPy keeps the same for ever (its Generator.permutation may change). Every part
    # of the key is two 32-bit words: SeedSequence runs integers of varying length together.
    words = [half for part in (seed, epoch, key) for half in (part & 0xFFFFFFFF, part >> 32)]
    generator = np.random.PCG64(np.random.SeedSequence(words))
    return np.argsort(generator.random_raw(size), kind="stable")


def draws(
    domain: int, seed: int, epochs: np.ndarray, sequence_ids: np.ndarray
) -> Callable[[np.ndarray | int], np.ndarray]:
    """Random numbers of sequences: a function that takes counters, int64 [n] or one, and gives 32-bit words, int64 [n].

    A word depends on (domain, seed, epoch, sequence id, counter) alone. Source: `ops.random.splitmix64`, chained.
    """
    signed = (seed + 2**63) % 2**64 - 2**63
    keys = splitmix64(splitmix64(splitmix64(splitmix64(domain) ^ signed) ^ epochs) ^ sequence_ids)
    return lambda counters: (splitmix64(keys ^ counters) >> 32) & 0xFFFFFFFF
