"""How the rows of a table over one vocabulary become those of a table over another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.data.vocabulary import VocabularyMatch


class VocabularyRows:
    """Makes tables over the new vocabulary of tables over the old one.

    Args:
        match: None: rows stay as they are, those beyond `size`, which pad, are dropped.
        size: rows of the new table.
        new_tokens: as in `InitConfig`.
        seed: of what is drawn.
    """

    def __init__(self, match: VocabularyMatch | None, size: int, new_tokens: str, seed: int) -> None:
        self.size, self.new_tokens, self.seed = size, new_tokens, seed
        self._old_ids = None
        if match is not None:
            self._old_ids = [*match.old_ids, *[()] * (size - len(match.old_ids))]

    def __call__(self, table: Tensor, *, new_tokens: str | None = None) -> Tensor:
        """[old, ...] -> [size, ...]. Of a row without an old one: see `new_tokens`; random is normal, with mean and
        deviation of the old table's columns."""
        if self._old_ids is None:
            return table[: self.size].clone()
        rows = table.reshape(table.shape[0], -1)
        counts = torch.tensor([len(ids) for ids in self._old_ids])
        flat = torch.tensor([index for ids in self._old_ids for index in ids], dtype=torch.long)
        result = F.embedding_bag(flat, rows, counts.cumsum(0) - counts, mode="mean")
        once = counts == 1
        result[once] = rows[flat[(counts.cumsum(0) - counts)[once]]]  # to the bit
        missing = counts == 0
        if (new_tokens or self.new_tokens) == "random":
            generator = torch.Generator().manual_seed(self.seed)
            noise = torch.randn((int(missing.sum()), rows.shape[1]), generator=generator)
            result[missing] = rows.mean(dim=0) + noise * rows.std(dim=0)
        else:
            result[missing] = rows.mean(dim=0)
        return result.reshape(self.size, *table.shape[1:])
