"""A batch in micro-batches, and what must be known of the whole of it for their gradients to add up to its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from electra_fast.data.loader import Batch
from electra_fast.data.prefetch import Loader
from electra_fast.models import ElectraForJointPreTraining
from electra_fast.ops.random import as_seed


@dataclass(frozen=True)
class Share:
    """A rank's part of a step's batch, and what its losses are divided by: counts of the whole batch."""

    batch: Batch
    num_tokens: int
    predicted: Mapping[str, Tensor]  # `count_predicted` by objective; empty where the batch is the whole

    def pin_memory(self) -> Share:
        return replace(self, batch=self.batch.pin_memory())


class SharedLoader:
    """Shares of the batches of `loader`.

    Each rank reads the whole batch to count in it, which is a prefetching thread's work, instead of waiting for what
    the others have counted. `count(batch, objective)` is `count_predicted`, for one of `objectives`.
    """

    def __init__(self, loader: Loader, count: Callable[[Batch, str], Tensor], objectives: Collection[str]) -> None:
        self.loader, self.count, self.objectives = loader, count, objectives

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Share:
        part = self.loader.batch(step, rank, world_size)
        if world_size == 1:
            return Share(part, part.num_tokens, {})
        whole = self.loader.batch(step)
        return Share(part, whole.num_tokens, {name: self.count(whole, name) for name in self.objectives})


def micro_batches(batch: Batch, max_tokens: int | None) -> list[Batch]:
    """`batch`, on the CPU, cut between sequences into runs of at most `max_tokens` tokens, each as long as can be.

    Padding of fixed shapes is left out where a batch is cut.

    Masks, samples and dropout follow the names of the sequences, so they are those of the whole batch.

    Raises:
        ValueError: a sequence is longer than `max_tokens`.
    """
    if max_tokens is None or batch.num_tokens <= max_tokens:
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
    changed = {
        "cu_seqlens": starts[first : last + 1] - starts[first],
        "sequence_ids": batch.sequence_ids[first:last],
        "num_tokens": tokens.stop - tokens.start,
    }
    for field in fields(batch):
        value = getattr(batch, field.name)
        if field.name not in changed and isinstance(value, Tensor):  # [T]: ids, token types, units
            changed[field.name] = value[tokens]
    return replace(batch, **changed)


def model_inputs(batch: Batch, *, seed: int, mask_seed: int) -> dict[str, Any]:
    """What the joint model's `forward` takes, from a batch on the model's device."""
    device = batch.input_ids.device
    return {
        "input_ids": batch.input_ids,
        "cu_seqlens": batch.cu_seqlens,
        "max_seqlen": batch.max_seqlen,
        "token_type_ids": batch.token_type_ids,
        "unit_starts": batch.unit_starts,
        "sequence_ids": batch.sequence_ids,
        "seed": as_seed(seed, device),
        "mask_seed": as_seed(mask_seed, device),
    }


def count_predicted(model: ElectraForJointPreTraining, batch: Batch, objective: str, mask_seed: int) -> Tensor:
    """How many tokens of `batch` the generator's loss is over: float32, 0-d, on the batch's device, at least 1.

    For "electric" all but those that are never masked, else the masked ones: masking is done for it once.
    """
    packing = model.packing(batch.input_ids, None, batch.cu_seqlens, batch.max_seqlen)
    if objective == "electric":
        never_masked = torch.tensor(model.never_mask_ids, device=batch.input_ids.device)
        return (packing.is_real & ~torch.isin(batch.input_ids, never_masked)).sum().float().clamp(min=1)
    options = {"sequence_ids": batch.sequence_ids, "seed": 0, "mask_seed": mask_seed, "unit_starts": batch.unit_starts}
    return model.mask(batch.input_ids, packing, **options).masked.weights.sum().clamp(min=1)
