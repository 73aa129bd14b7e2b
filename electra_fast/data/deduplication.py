"""Which documents were there before? By a hash of their text: exact copies, apart from spacing."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from electra_fast.data.encoding import Chunk

KEY_DTYPE = np.dtype("S16")


def document_key(text: str) -> bytes:
    """16 bytes that two documents share if they are the same text, and else (by chance) never.

    The same means: equal in Unicode's composed form (NFC) once each run of white space is one space. Case counts.
    """
    normalized = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(normalized.encode(), digest_size=KEY_DTYPE.itemsize).digest()


class SeenKeys:
    """A growing set of keys: 16 bytes for each, 32 while it is being tidied.

    Sorted arrays, each at least twice as long as the next (a Python set would take about 100 bytes a key).
    """

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def add(self, keys: np.ndarray) -> np.ndarray:
        """Adds keys ([documents], KEY_DTYPE) and says of each whether it is new, here and among those before it."""
        unique, first = np.unique(keys, return_index=True)
        new = np.ones(len(unique), bool)
        for array in self._arrays:
            places = np.searchsorted(array, unique)
            new &= array[np.minimum(places, len(array) - 1)] != unique
        is_new = np.zeros(len(keys), bool)
        is_new[first[new]] = True
        if new.any():
            self._arrays.append(unique[new])
        while len(self._arrays) > 1 and len(self._arrays[-2]) < 2 * len(self._arrays[-1]):
            last = self._arrays.pop()
            merged = np.concatenate([self._arrays.pop(), last])
            merged.sort(kind="stable")  # two sorted runs: a merge
            self._arrays.append(merged)
        return is_new

    def __len__(self) -> int:
        return sum(map(len, self._arrays))


class Duplicates:
    """Drops documents whose key was there before, and counts them."""

    def __init__(self) -> None:
        self.documents = 0
        self.tokens = 0
        self._seen = SeenKeys()

    def drop(self, chunk: Chunk) -> Chunk:
        kept = self._seen.add(chunk.keys)
        self.documents += int((~kept).sum())
        self.tokens += int(chunk.lengths[~kept].sum())
        return chunk if kept.all() else chunk.select(kept)
