"""What a run knows of its ranks: processes started by torchrun or Slurm, each with a share of every batch.

What the ranks tell each other about the run (signals, metrics, that they live) goes through gloo on the CPU, whatever
carries the gradients: a rank that is lost is noticed there at once.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from electra_fast.pretraining.config import ConfigError, TrainingConfig
from electra_fast.pretraining.runtime import find_device

Value = TypeVar("Value")
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class RankLost(RuntimeError):
    """Another rank does not answer any more: its process or machine is gone, or hangs."""


class RankStopped(RuntimeError):
    """This rank ends because the run does, and another rank says why."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; by itself, one without a process group, whose methods cost nothing."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on its machine
    is_grouped: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all ranks are here."""
        if self.is_grouped:
            dist.all_reduce(torch.zeros(1))

    def agree(self, received: Sequence[str]) -> str | None:
        """The name of a signal that any rank has received, the same on all; None where none has."""
        if not self.is_grouped:
            return received[0] if received else None
        number = torch.tensor(signal.Signals[received[0]].value if received else 0)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return signal.Signals(int(number)).name if number else None

    def most(self, count: int) -> int:
        """The largest of the ranks' counts."""
        if not self.is_grouped:
            return count
        number = torch.tensor(count)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def sum(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Each tensor summed over the ranks, in one message; all have one dtype, and the same shapes on each rank."""
        tensors = list(tensors)
        if not self.is_grouped or not tensors:
            return tensors
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank what rank 0 has in the tensors, in place."""
        if self.is_grouped:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make`, called by rank 0 alone, gives: told to all as JSON."""
        if not self.is_grouped:
            return make()
        made, text = None, b""
        if self.is_first:
            made = make()
            text = json.dumps(made).encode()
        length = torch.tensor(len(text))
        dist.broadcast(length, 0)
        data = torch.frombuffer(bytearray(text or bytes(int(length))), dtype=torch.uint8)
        dist.broadcast(data, 0)
        return made if self.is_first else json.loads(data.numpy().tobytes())

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Raises ConfigError on a rank where one of the facts, which JSON can hold, is not as on rank 0."""
        if not self.is_grouped:
            return
        for name, theirs in self.from_first(lambda: facts).items():
            if facts[name] != theirs:
                raise ConfigError(
                    f"{name} is {facts[name]!r} on rank {self.rank} and {theirs!r} on rank 0: start all ranks alike"
                )


@contextmanager
def open_ranks(settings: TrainingConfig) -> Iterator[Ranks]:
    """This process among the ranks of a run; within the block those of several can talk to each other.

    There are several where RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT say so, as torchrun sets them.

    Raises:
        ConfigError: some of these variables are missing, or there is no GPU for this rank. RankLost: a rank does not
            come, or does not answer, within `training.timeout_seconds`. RankStopped: instead of an error in the block
            where another rank has told of one already, so that each is told once.
    """
    place = _place(os.environ, settings)
    if place is None:
        yield Ranks(find_device(settings.device))
        return
    rank, world_size, local_rank = place
    device = _device(settings.device, local_rank)
    timeout = timedelta(seconds=settings.timeout_seconds)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        store, told = _open_stores(rank, timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    except (RuntimeError, ValueError, OSError) as error:
        raise RankLost(
            f"rank {rank} of {world_size} can't join the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} (waiting at most {settings.timeout_seconds} s): {_line(error)}"
        ) from error
    ranks = Ranks(device, rank, world_size, local_rank, is_grouped=True)
    ends_well = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # which nobody writes into
            yield ranks
            ranks.wait()
        ends_well = True
    except Exception as error:
        if not _is_first_to_tell(told):
            raise RankStopped(f"rank {rank} ends with the run: another rank says why") from error
        if not _is_about_ranks(error):
            raise
        raise RankLost(
            f"rank {rank} lost another rank, which ended or did not answer within {settings.timeout_seconds} s "
            f"({_line(error)}): start all ranks again with --resume, and the run goes on from its newest checkpoint"
        ) from error
    finally:
        # NCCL would wait for what a lost rank can't finish any more; gloo lets the others know that this one has ended.
        if ends_well or device.type == "cpu":
            dist.destroy_process_group()


def _place(environment: Mapping[str, str], settings: TrainingConfig) -> tuple[int, int, int] | None:
    """(rank, world_size, local_rank); None for a process by itself."""
    world_size = environment.get("WORLD_SIZE", "1")
    missing = [name for name in _VARIABLES if name not in environment]
    if missing and world_size == "1":
        return None
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {world_size}, but {missing[0]} is not set: start the ranks with torchrun, or unset it"
        )
    if world_size == "1" and settings.parallel == "auto":
        return None
    try:
        return int(environment["RANK"]), int(world_size), int(environment["LOCAL_RANK"])
    except ValueError as error:
        raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers: {error}") from error


def _open_stores(rank: int, timeout: timedelta) -> tuple[dist.Store, dist.Store]:
    """Where the ranks find each other, and where they note which one has told of an error.

    torchrun's agent has a store that outlives the ranks, with what lost ranks have left in it: after a restart, new
    ones would look for those. So rank 0 opens one of its own and tells its port through the agent's. Where that is
    still the port of a rank 0 that is gone, nobody answers there. (The number of restarts names an attempt too, but
    agents of several machines count it differently.)
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # rank 0 has opened it just now
        return store, store
    host, key = os.environ["MASTER_ADDR"], "electra_fast/port"
    if rank == 0:
        own = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        store.set(key, str(own.port))
        return own, dist.PrefixStore(f"electra_fast/{own.port}", store)
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        port = int(store.get(key))
        try:
            socket.create_connection((host, port), timeout=1).close()
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    own = dist.TCPStore(host, port, is_master=False, timeout=timeout)
    return own, dist.PrefixStore(f"electra_fast/{port}", store)


def _device(name: str, local_rank: int) -> torch.device:
    """The CPU, or the GPU of a local rank."""
    if ":" in name:
        raise ConfigError(
            f"training.device is {name}, but each rank takes the GPU of its LOCAL_RANK: give cuda or auto"
        )
    device = find_device(name)
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"LOCAL_RANK is {local_rank}, but there are {torch.cuda.device_count()} GPUs here: start one process "
                "for each (torchrun --nproc-per-node)"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    return device


def _is_first_to_tell(store: dist.Store) -> bool:
    """Whether no other rank has failed before this one. Where nobody can say, each tells."""
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:
        return True


_ABOUT_RANKS = ("gloo", "nccl", "closed by peer", "connection", "timed out", "timeout", "socket")


def _is_about_ranks(error: BaseException) -> bool:
    """Whether torch.distributed says that it could not reach another rank."""
    words = str(error).lower()
    is_theirs = type(error) is RuntimeError or isinstance(error, dist.DistError)  # ours have classes of their own
    return is_theirs and any(word in words for word in _ABOUT_RANKS)


def _line(error: BaseException) -> str:
    """What a library says went wrong, without where in its source and without advice."""
    words = " ".join(str(error).split()).rpartition("RuntimeError: ")[2]
    return re.sub(r"\[\S+:\d+\] *|\. .*", "", words)[:200]
