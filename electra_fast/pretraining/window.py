"""What a step computed, and sums of it between two reports, on the device: reading them is the loop's only wait."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from electra_fast.models.objectives import JointPreTrainingOutput
from electra_fast.ops.rtd_bce import auc
from electra_fast.pretraining.distributed import Ranks
from electra_fast.pretraining.throughput import peak_memory

_MEANS = ("loss", "reward")  # what names of means over the batch end with


class StepTotals:
    """Losses and counts of one update, summed over its micro-batches."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    @property
    def losses(self) -> dict[str, Tensor]:
        """Each loss of the whole batch: micro-batches are divided by its counts already."""
        return {name: value for name, value in self.sums.items() if name.endswith(_MEANS)}

    def add(self, out: JointPreTrainingOutput) -> None:
        # Copies: what a CUDA graph returns is written over by its next run.
        values = {name: value.detach().clone() for name, value in out.items() if name.endswith(_MEANS)}
        if out.masked is not None and out.sampled_ids is not None:
            weights = out.masked.weights
            values |= {"hits": (weights * (out.sampled_ids == out.masked.labels)).sum(), "masked": weights.sum()}
        if out.rtd is not None:
            counts = out.rtd._asdict()
            del counts["loss_sum"]
            values |= {f"rtd.{name}": value.clone() for name, value in counts.items()}
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value


class Window:
    """Sums of the updates since the last report."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.steps = self.tokens = 0
        self.flops: float | None = 0.0  # None once a step's are not known
        self._sums: dict[str, Tensor] = {}  # over this rank's shares
        self._known: dict[str, Tensor] = {}  # the same on all ranks
        self._seen: Counter[str] = Counter()  # of taking turns, each loss has steps of its own
        self.started = time.perf_counter()

    def add(
        self, totals: StepTotals, norm: Tensor, overflowed: Tensor, *, tokens: int, flops: float | None = None
    ) -> None:
        """Add an update: of this rank's share `totals`, of the whole batch everything else."""
        self._add(self._sums, totals.sums)
        self._add(self._known, {"norm": torch.where(overflowed, 0.0, norm), "overflowed": overflowed})
        self._seen.update(totals.sums.keys())
        self.steps += 1
        self.tokens += tokens
        self.flops = None if flops is None or self.flops is None else self.flops + flops

    @staticmethod
    def _add(sums: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            value = value.double()
            sums[name] = sums[name] + value if name in sums else value

    def skip(self, seconds: float) -> None:
        """Leave time that was not training out of the speed."""
        self.started += seconds

    def read(self, ranks: Ranks, peak_flops: float | None = None) -> dict[str, Any]:
        """The row of a report, and the window begins anew. All ranks read at once."""
        sums = dict(zip(self._sums, ranks.sum(self._sums.values()), strict=True)) | self._known
        sums = {name: value.cpu() for name, value in sums.items()}
        seconds = max(time.perf_counter() - self.started, 1e-9)
        row: dict[str, Any] = {}
        for name in sorted(sums):
            if name.endswith(_MEANS):
                row[name] = float(sums[name]) / self._seen[name]
        updates = self.steps - int(sums["overflowed"])
        row["gradient_norm"] = float(sums["norm"]) / max(updates, 1)
        if "hits" in sums:
            row["sampled_accuracy"] = float(sums["hits"] / sums["masked"].clamp(min=1))
        if "rtd.count" in sums:
            count, tp, fp, tn, fn, histogram = (value for name, value in sums.items() if name.startswith("rtd."))
            row["accuracy"] = float((tp + tn) / count.clamp(min=1))
            row["precision"] = float(tp / (tp + fp).clamp(min=1))
            row["recall"] = float(tp / (tp + fn).clamp(min=1))
            row["auc"] = float(auc(histogram))
        if updates < self.steps:
            row["skipped_updates"] = self.steps - updates
        row["tokens_per_second"] = self.tokens / seconds
        if peak_flops is not None and self.flops is not None:
            row["mfu"] = self.flops / seconds / peak_flops
        row["peak_memory_bytes"] = peak_memory(ranks.device)
        row["seconds_per_step"] = seconds / self.steps
        self._reset()
        return row


def show(bar: tqdm, row: dict[str, Any]) -> None:
    """Put a report beside the progress bar, or print it as a line where there is none."""
    names = {"generator_loss": ("gen", ".3f"), "discriminator_loss": ("disc", ".4f"), "auc": ("auc", ".3f")}
    if not names.keys() & row.keys():
        names["loss"] = ("loss", ".3f")
    names |= {"tokens_per_second": ("tok/s", ",.0f"), "mfu": ("MFU", ".1%")}
    shown = {short: format(row[name], form) for name, (short, form) in names.items() if name in row}
    bar.set_postfix(shown)
    if bar.disable:
        line = "  ".join(f"{name} {value}" for name, value in shown.items())
        eta = tqdm.format_interval(row["eta_seconds"])
        print(f"step {row['step']:,}/{bar.total:,}  {row['objective']}  {line}  ETA {eta}", flush=True)
