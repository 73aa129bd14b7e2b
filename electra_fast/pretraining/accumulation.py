"""A batch in micro-batches, and what must be known of the whole of it for their gradients to add up to its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from electra_fast.data.loader import Batch
from electra_fast.models import ElectraForJointPreTraining
from electra_fast.ops import mask_tokens
from electra_fast.ops.random import row_ids_for


def micro_batches(batch: Batch, max_tokens: int | None) -> list[Batch]:
    """`batch`, on the CPU, cut between sequences into runs of at most `max_tokens` tokens, each as long as can be.

    Masks, samples and dropout follow the names of the sequences, so they are those of the whole batch.

    Raises:
        ValueError: a sequence is longer than `max_tokens`.
    """
    if max_tokens is None or batch.input_ids.shape[0] <= max_tokens:
        return [batch]
    starts = batch.cu_seqlens.numpy()
    longest = int(np.diff(starts).max())
    if longest > max_tokens:
        raise ValueError(f"a sequence has {longest} tokens, more than the {max_tokens} of a micro-batch")
    return [_part(batch, first, last) for first, last in _runs(starts, max_tokens)]


def _runs(starts: np.ndarray, max_tokens: int) -> Iterator[tuple[int, int]]:
    """First sequence of each run, and the one after its last."""
    first = 0
    while first < len(starts) - 1:
        last = int(np.searchsorted(starts, starts[first] + max_tokens, side="right")) - 1
        yield first, last
        first = last


def _part(batch: Batch, first: int, last: int) -> Batch:
    starts = batch.cu_seqlens
    tokens = slice(int(starts[first]), int(starts[last]))
    changed = {"cu_seqlens": starts[first : last + 1] - starts[first], "sequence_ids": batch.sequence_ids[first:last]}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if field.name not in changed and isinstance(value, Tensor):  # [T]: ids, token types, units
            changed[field.name] = value[tokens]
    return replace(batch, **changed)


def count_masked(model: ElectraForJointPreTraining, batch: Batch, mask_seed: int) -> Tensor:
    """How many tokens of `batch` the model masks: float32, 0-d, on the batch's device. Masking is done for it once."""
    num_tokens = batch.input_ids.shape[0]
    masked = mask_tokens(
        batch.input_ids,
        batch.cu_seqlens,
        mask_token_id=model.mask_token_id,
        never_mask_ids=model.never_mask_ids,
        num_masked=num_tokens,
        mask_prob=model.mask_prob,
        replace_prob=model.replace_prob,
        max_per_sequence=model.max_per_sequence,
        seed=torch.full((), mask_seed, dtype=torch.int64, device=batch.input_ids.device),
        row_ids=row_ids_for(batch.sequence_ids, batch.cu_seqlens, num_tokens),
        unit_starts=getattr(batch, "unit_starts", None),
    )
    return masked.weights.sum()
