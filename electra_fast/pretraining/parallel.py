"""What several ranks do together in training: sum the gradients of their copies of the model (DDP), load a checkpoint.

See `electra_fast.pretraining.sharding` for a model in parts (FSDP2).
"""

# Annotations are objects in this file: DistributedDataParallel looks into those of its hook.

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from electra_fast.pretraining.checkpoint import checkpoint_tensors, load_newest
from electra_fast.pretraining.distributed import Ranks
from electra_fast.pretraining.precision import MasterWeights
from electra_fast.pretraining.sharding import ShardedWeights


class Plain:
    """The interface of `Replicas` where there is nothing to do: one process, or FSDP, which does it by itself."""

    def __init__(self, forward: Callable[..., Any], masters: MasterWeights | ShardedWeights) -> None:
        self.forward = forward
        self.take_gradients = masters.take_gradients

    def exchanging(self, is_last: bool) -> AbstractContextManager[Any]:
        return nullcontext()


class Replicas:
    """The whole model on each rank. Gradients are summed while the last micro-batch's backward pass still runs.

    Summed, not averaged: each rank's losses are divided by the counts of the global batch already. In 16 bits the sum
    is over float32: what the masters hold of earlier micro-batches, and the last one's.

    Args:
        model: with its parameters in the run's precision, the same on all ranks.
        forward: what computes it: the model itself, or compiled.
        uses_all: whether each backward pass reaches every parameter.
    """

    def __init__(
        self, model: nn.Module, forward: Callable[..., Any], masters: MasterWeights, ranks: Ranks, *, uses_all: bool
    ) -> None:
        self._masters = masters
        self._sums: dict[nn.Parameter, Tensor] = {}  # float32, of 16-bit parameters
        self.forward = DistributedDataParallel(
            _Called(model, forward),
            device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
            find_unused_parameters=not uses_all,
        )
        self.forward.broadcast_buffers = False  # none ever changes; as an argument its name depends on the version
        self.forward.register_comm_hook(None, self._sum)

    def exchanging(self, is_last: bool) -> AbstractContextManager[Any]:
        """Forward and backward pass of a micro-batch belong in it; those of the last one give the sums."""
        return nullcontext() if is_last else self.forward.no_sync()

    def take_gradients(self) -> None:
        """After each micro-batch: let the masters have what is in the model."""
        self._masters.take_gradients(self._sums)
        self._sums.clear()

    def _sum(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        if buffer.dtype == torch.float32:
            return dist.all_reduce(buffer, async_op=True).get_future().then(lambda future: future.value()[0])
        total = buffer.float()
        parameters = bucket.parameters()
        for parameter, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
            earlier = self._masters.of(parameter).grad
            self._sums[parameter] = part.view_as(parameter)
            if earlier is not None:
                self._sums[parameter].add_(earlier)
        return dist.all_reduce(total, async_op=True).get_future().then(lambda _: buffer)


class _Called(nn.Module):
    """`model`, computed by `forward`: DistributedDataParallel takes modules only."""

    def __init__(self, model: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self._call = forward

    def forward(self, **inputs: Any) -> Any:
        return self._call(**inputs)


def load_for_all(
    folder: Path,
    weights: MasterWeights | ShardedWeights,
    optimizer: torch.optim.Optimizer,
    check: Callable[[Path, dict[str, Any]], None],
    ranks: Ranks,
) -> tuple[str, dict[str, Any]] | None:
    """`load_newest` by rank 0, which gives the others what they need of it."""
    whole = weights.whole_state(optimizer)

    def read() -> tuple[str, dict[str, Any]] | None:
        found = load_newest(folder, *whole, check)
        return found and (str(found[0]), found[1])

    found = ranks.from_first(read)
    if found and isinstance(weights, ShardedWeights):
        weights.load_state(whole, optimizer)
    elif found:
        ranks.spread(checkpoint_tensors(weights, optimizer))
    return found
