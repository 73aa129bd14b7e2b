"""Between padded [B, S] tensors, the currency of transformers, and flat [T] tokens, the currency inside."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Packing(NamedTuple):
    """Where each of T flat tokens belongs. T may exceed the real tokens: the tail then belongs to no sequence."""

    cu_seqlens: Tensor  # int32 [B + 1]
    is_real: Tensor  # bool [T], False for the tail
    padded_index: Tensor  # int64 [T] into [B * S]; B * S for the tail
    padding_mask: Tensor | None  # bool [B, S], True for tokens; None where there is no padding at all
    batch_size: int
    max_seqlen: int  # S: the width of a padded batch, the longest sequence of a packed one
    is_packed: bool = False

    def unpad(self, padded: Tensor) -> Tensor:
        """[B, S, ...] -> [T, ...]; tail tokens get zeros."""
        flat = padded.flatten(0, 1)
        if self.padding_mask is None:
            return flat
        # One zero row more than there are positions serves the tail, so that no shape depends on the data.
        return F.pad(flat, (0, 0) * (flat.dim() - 1) + (0, 1)).index_select(0, self.padded_index)

    def pad(self, flat: Tensor, fill: int = 0) -> Tensor:
        """[T, ...] -> [B, S, ...], with `fill` at padding."""
        shape = (self.batch_size, self.max_seqlen, *flat.shape[1:])
        if self.padding_mask is None:
            return flat.view(shape)
        slots = self.batch_size * self.max_seqlen
        padded = flat.new_full((slots + 1, *flat.shape[1:]), fill).index_copy(0, self.padded_index, flat)
        return padded[:slots].view(shape)


def packing_of_lengths(cu_seqlens: Tensor, num_tokens: int, max_seqlen: int) -> Packing:
    """The packing of flat tokens [T] with sequence boundaries `cu_seqlens` [B + 1], none longer than `max_seqlen`."""
    batch_size = cu_seqlens.shape[0] - 1
    index = torch.arange(num_tokens, device=cu_seqlens.device)
    sequences = torch.searchsorted(cu_seqlens[1:].long(), index, right=True)
    is_real = sequences < batch_size
    positions = index - cu_seqlens.long()[sequences]
    padded_index = torch.where(is_real, sequences * max_seqlen + positions, batch_size * max_seqlen)
    padding_mask = torch.arange(max_seqlen, device=cu_seqlens.device) < cu_seqlens.diff().unsqueeze(1)
    return Packing(cu_seqlens, is_real, padded_index, padding_mask, batch_size, max_seqlen, is_packed=True)


def packing_of_mask(attention_mask: Tensor) -> Packing:
    """The packing of padded tokens [B, S] with a mask that is nonzero at real tokens (padding left, right or between).

    T = B * S whatever the mask says, so that nothing waits for the device: real tokens first, in row order, then the
    tail.
    """
    batch_size, max_seqlen = attention_mask.shape
    slots = batch_size * max_seqlen
    padding_mask = attention_mask != 0
    is_padding, order = torch.sort((~padding_mask).flatten().to(torch.uint8), stable=True)
    is_real = is_padding == 0
    cu_seqlens = F.pad(padding_mask.sum(dim=1).cumsum(0), (1, 0)).to(torch.int32)
    return Packing(cu_seqlens, is_real, torch.where(is_real, order, slots), padding_mask, batch_size, max_seqlen)


def packing_without_padding(attention_mask: Tensor, refuse: Tensor | bool = False) -> Packing | None:
    """Like `packing_of_mask`, but T is the number of real tokens, for which this waits for the device, once.

    None if a row is all padding, or if `refuse` (bool, 0-d) holds.
    """
    batch_size, max_seqlen = attention_mask.shape
    padding_mask = attention_mask != 0
    lengths = padding_mask.sum(dim=1)
    refuse = torch.as_tensor(refuse, device=lengths.device)
    num_tokens, shortest, refused = torch.stack([lengths.sum(), lengths.amin(), refuse.long()]).tolist()
    if refused or shortest == 0:
        return None
    if num_tokens == batch_size * max_seqlen:
        return packing_of_full(batch_size, max_seqlen, attention_mask.device)
    index = torch.nonzero_static(padding_mask.flatten(), size=num_tokens).squeeze(1)
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return Packing(cu_seqlens, torch.ones_like(index, dtype=torch.bool), index, padding_mask, batch_size, max_seqlen)


def packing_of_full(batch_size: int, max_seqlen: int, device: torch.device) -> Packing:
    """The packing of padded tokens [B, S] without any padding."""
    slots = batch_size * max_seqlen
    index = torch.arange(slots, device=device)
    cu_seqlens = torch.arange(batch_size + 1, device=device, dtype=torch.int32) * max_seqlen
    return Packing(cu_seqlens, torch.ones_like(index, dtype=torch.bool), index, None, batch_size, max_seqlen)
