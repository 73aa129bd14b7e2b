"""Runs of several ranks: forks of one process that has imported everything, with what torchrun would tell them.

`torchrun` itself takes ten seconds to start two ranks; test_torchrun.py does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.pretraining.faults import Ended, Machine

IMPORTS = ("torch.distributed.fsdp", "torch.nn.parallel", "torch._dynamo")
RECORD = "from tests.pretraining.ranks import record; record({!r})\n"


class RankMachine:
    """Starts runs of so many ranks on `machine`, and lets none of them outlast its limit."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def start(
        self, arguments: list[str], ranks: int, *, setup: str = "", of: Mapping[int, str] | None = None
    ) -> Started:
        """Start the ranks of a command line.

        Args:
            arguments: after `electra-fast`.
            ranks: how many.
            setup: Python code that each rank's process runs first.
            of: further such code of single ranks.
        """
        store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # torchrun's agent has one
        pids = []
        try:
            for rank in range(ranks):
                code = setup + (of or {}).get(rank, "")
                environment = _environment(rank, ranks, store.port) if ranks > 1 else {}
                pids.append(self.machine.start(arguments, f" of rank {rank}", setup=code, environment=environment))
        except BaseException:
            Started(self.machine, pids, store).kill()
            raise
        return Started(self.machine, pids, store)

    def run(self, arguments: list[str], ranks: int, *, seconds: float = 200, **options: Any) -> list[Ended]:
        """Start the ranks and wait for them; how each ended."""
        return self.start(arguments, ranks, **options).wait(seconds)


class Started:
    """Ranks that are under way; `pids` by rank."""

    def __init__(self, machine: Machine, pids: list[int], store: dist.TCPStore) -> None:
        self.machine, self.pids = machine, pids
        self._store = store  # lives as long as they need it

    def wait(self, seconds: float = 200) -> list[Ended]:
        """How each rank ended. Raises TimeoutError, and leaves none behind, where one takes longer."""
        ended = []
        try:
            for rank, pid in enumerate(self.pids):
                ended.append(self.machine.wait(pid, f" of rank {rank}", seconds))
        except TimeoutError as error:
            raise TimeoutError(f"rank {len(ended)} hangs; {self.kill(len(ended) + 1)}; before it {ended}") from error
        return ended

    def kill(self, first: int = 0) -> list[str]:
        """Kill the ranks from `first` on; what each has printed."""
        printed = []
        for rank in range(first, len(self.pids)):
            try:
                printed.append(str(self.machine.wait(self.pids[rank], f" of rank {rank}", 0)))
            except TimeoutError as error:
                printed.append(str(error))
        return printed


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    values = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    values |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    values |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": 0}
    return {name: str(value) for name, value in values.items()}


def record(path: str) -> None:
    """From now on write what each training forward pass of this process is given and masks to `path`.RANK."""
    import os

    from electra_fast import ElectraForJointPreTraining

    forward = ElectraForJointPreTraining.forward
    file = Path(f"{path}.{os.environ.get('RANK', 0)}").open("w", encoding="utf-8")  # noqa: SIM115

    @wraps(forward)
    def recorded(self: ElectraForJointPreTraining, **inputs: Any) -> Any:
        out = forward(self, **inputs)
        if self.training and torch.is_grad_enabled():
            print(json.dumps(_facts(inputs, out)), file=file, flush=True)
        return out

    ElectraForJointPreTraining.forward = recorded


def _facts(inputs: dict[str, Any], out: Any) -> dict[str, Any]:
    """Seeds and counts of a pass, and of each sequence its name, tokens, masked positions and samples."""
    starts = inputs["cu_seqlens"].tolist()
    masked = out.masked
    slots = [] if masked is None else (masked.weights > 0).nonzero().flatten().tolist()
    masks: list[list[list[int]]] = [[] for _ in starts[1:]]
    for slot in slots:
        position = int(masked.positions[slot])
        sequence = int(torch.searchsorted(inputs["cu_seqlens"], position, right=True)) - 1
        sampled = None if out.sampled_ids is None else int(out.sampled_ids[slot])
        masks[sequence].append([position - starts[sequence], int(masked.input_ids[position]), sampled])
    ids = inputs["input_ids"].tolist()
    sequences = [
        {"id": name, "tokens": ids[first:last], "masks": of_it}
        for name, first, last, of_it in zip(
            inputs["sequence_ids"].tolist(), starts[:-1], starts[1:], masks, strict=True
        )
        if last > first  # the rest is padding
    ]
    counts = {
        name: None if inputs.get(name) is None else float(inputs[name]) for name in ("masked_count", "token_count")
    }
    return {"seed": int(inputs["seed"]), "mask_seed": int(inputs["mask_seed"]), **counts, "sequences": sequences}


def read_passes(path: Path, ranks: int) -> list[list[list[dict[str, Any]]]]:
    """What `record` wrote: of each step, of each rank, the passes, one for each micro-batch."""
    by_step: dict[int, list[list[dict[str, Any]]]] = {}
    for rank in range(ranks):
        for line in Path(f"{path}.{rank}").read_text(encoding="utf-8").splitlines():
            facts = json.loads(line)
            by_step.setdefault(facts["seed"], [[] for _ in range(ranks)])[rank].append(facts)
    return list(by_step.values())  # rank 0 has a pass in each step, so they are in order


def sequences(step: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The sequences of a step of all ranks, in their order."""
    return [sequence for passes in step for facts in counted(passes) for sequence in facts["sequences"]]


def counted(passes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without repetitions of the last pass: with FSDP a rank that has fewer micro-batches keeps the others company."""
    return [facts for index, facts in enumerate(passes) if index == 0 or facts != passes[index - 1]]
