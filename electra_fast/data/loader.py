"""Batches of a prepared corpus: stateless, so that resuming is one integer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np
import torch

from electra_fast.data.corpus import Corpus

WINDOW = 1 << 16  # pieces; the order is a permutation of windows, and of the pieces within each
MIN_PIECE = 8  # tokens; a document's remainder shorter than this is not trained on


@dataclass(frozen=True)
class Batch:
    """Sequences `[CLS] content [SEP]`, one after another, without padding.

    input_ids: int64 [T]. cu_seqlens: int32 [B + 1], where each sequence starts in input_ids, and T. sequence_ids: int64
    [B], the index of each piece in the corpus, the same in every epoch. epoch: the first sequence's, from 0.
    max_seqlen: no sequence is longer.
    """

    input_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    sequence_ids: torch.Tensor
    epoch: int
    max_seqlen: int

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            sequence_ids=self.sequence_ids.to(device, non_blocking=True),
        )


class BatchLoader:
    """`batch(step)` as a pure function of (corpus, batch_size, max_length, seed, shuffle).

    Documents are cut into pieces of `max_length - 2` tokens and never joined. What is left of a document after its
    full pieces is a piece of its own from MIN_PIECE tokens on, and dropped below; a document shorter than that is one
    piece. Every epoch holds every piece once. With `shuffle`, its order is a permutation of windows of WINDOW pieces
    and of the pieces within each, keyed by (seed, epoch); without, the order of the corpus (for evaluation).

    Memory: 8 bytes a document, and the permutations of the two windows in use.
    """

    def __init__(
        self, corpus: Corpus, *, batch_size: int, max_length: int, seed: int = 0, shuffle: bool = True
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if max_length < 3:
            raise ValueError(f"max_length must be at least 3 ([CLS], a token, [SEP]), got {max_length}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must lie in 0 .. 2**64 - 1, got {seed}")
        self.corpus = corpus
        self.batch_size = batch_size
        self.max_length = max_length
        self.seed = seed
        self.shuffle = shuffle
        self._content = max_length - 2
        full, rest = np.divmod(np.diff(corpus.offsets), self._content)
        pieces = full + ((rest >= MIN_PIECE) | (full == 0))
        self._piece_ends = np.cumsum(pieces)  # [documents], the first piece after each document
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    @property
    def num_sequences(self) -> int:
        """Pieces of the corpus, the sequences of an epoch."""
        return int(self._piece_ends[-1])

    @property
    def steps_per_epoch(self) -> float:
        """num_sequences / batch_size, not rounded: batches run over from one epoch into the next."""
        return self.num_sequences / self.batch_size

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Sequences step * batch_size and following of the endless stream of epochs; rank's contiguous part of them.

        The parts of all ranks, in order, are the batch of world_size=1; their sizes differ by one at most.
        Raises ValueError for a negative step, a rank outside the world, or fewer sequences than ranks.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0 .. world_size - 1, got {rank} of {world_size}")
        if world_size > self.batch_size:
            raise ValueError(f"batch_size={self.batch_size} is less than one sequence for each of {world_size} ranks")
        first = step * self.batch_size + self.batch_size * rank // world_size
        stop = step * self.batch_size + self.batch_size * (rank + 1) // world_size
        pieces = np.array([self._piece(index) for index in range(first, stop)], np.int64)
        starts, stops = self._spans(pieces)

        cu_seqlens = np.zeros(len(pieces) + 1, np.int32)
        np.cumsum(stops - starts + 2, out=cu_seqlens[1:])
        input_ids = np.empty(cu_seqlens[-1], np.int64)
        input_ids[cu_seqlens[:-1]] = self.corpus.meta.cls_token_id
        input_ids[cu_seqlens[1:] - 1] = self.corpus.meta.sep_token_id
        for start, stop, at in zip(starts.tolist(), stops.tolist(), cu_seqlens.tolist(), strict=False):
            input_ids[at + 1 : at + 1 + stop - start] = self.corpus.read(start, stop)
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            cu_seqlens=torch.from_numpy(cu_seqlens),
            sequence_ids=torch.from_numpy(pieces),
            epoch=first // self.num_sequences,
            max_seqlen=self.max_length,
        )

    def _spans(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each piece starts and stops in the corpus's tokens."""
        documents = np.searchsorted(self._piece_ends, pieces, side="right")
        first_pieces = np.where(documents > 0, self._piece_ends[documents - 1], 0)
        starts = self.corpus.offsets[documents] + (pieces - first_pieces) * self._content
        return starts, np.minimum(starts + self._content, self.corpus.offsets[documents + 1])

    def _piece(self, index: int) -> int:
        """The piece at a place of the endless stream."""
        epoch, place = divmod(index, self.num_sequences)
        if not self.shuffle:
            return place
        # Only the corpus's last window may be short: places after it shift by what it lacks.
        windows = -(-self.num_sequences // WINDOW)
        order = self._permutation(epoch, 0, windows)
        lacking = windows * WINDOW - self.num_sequences
        last = int(np.flatnonzero(order == windows - 1)[0])
        if place >= (last + 1) * WINDOW - lacking:
            place += lacking
        slot, within = divmod(place, WINDOW)
        window = int(order[slot])
        size = WINDOW - lacking if window == windows - 1 else WINDOW
        return window * WINDOW + int(self._permutation(epoch, 1 + window, size)[within])

    def _permutation(self, epoch: int, key: int, size: int) -> np.ndarray:
        """Key 0: of the windows; key 1 + w: of the pieces of window w. The two last used of each are kept."""
        permutation = self._cache.get((epoch, key))
        if permutation is None:
            # Sorting PCG64's raw words, which NumPy keeps the same for ever (its Generator.permutation may change).
            # Every part of the key is two 32-bit words: SeedSequence runs integers of varying length together.
            words = [half for part in (self.seed, epoch, key) for half in (part & 0xFFFFFFFF, part >> 32)]
            generator = np.random.PCG64(np.random.SeedSequence(words))
            permutation = np.argsort(generator.random_raw(size), kind="stable")
            self._cache[epoch, key] = permutation
            if len(self._cache) > 4:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end((epoch, key))
        return permutation
