"""A run's metrics: metrics.jsonl, line by line, and the trackers that get the same."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from electra_fast.files import write_whole

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker


class MetricsLog:
    """Appends to a JSONL file, and sends the same to the run's trackers.

    A resumed run first drops the lines after the step it resumes from, and, with a warning, damaged ones.

    Args:
        path: metrics.jsonl.
        resume_step: the step the run goes on from; None for a run that starts.
        trackers: of `open_trackers`.
    """

    def __init__(self, path: Path, *, resume_step: int | None = None, trackers: Sequence[GeneralTracker] = ()) -> None:
        self.path = path
        self.trackers = list(trackers)
        kept: list[str] = []
        if resume_step is not None and path.exists():
            rows, damaged = _read_rows(path)
            if damaged:
                text = f"{path}, line {damaged[0]} is damaged" + (
                    f" ({len(damaged)} lines in all)" * (len(damaged) > 1)
                )
                warnings.warn(f"{text}: going on without it", RuntimeWarning, stacklevel=2)
            kept = [json.dumps(row) for row in rows if row["step"] <= resume_step]
        write_whole(path, "".join(line + "\n" for line in kept))

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Add a line; `kind` is "train", "eval" or "probe". It is on the disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            # JSON has no NaN, which an AUC is as long as one class is empty.
            values = {name: None if value != value else value for name, value in values.items()}
            file.write(json.dumps({"kind": kind, "step": step, **values}, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
        for tracker in list(self.trackers):
            try:
                tracker.log(numbers, step=step)
            except Exception as error:  # a week of training must not end because a picture of it can't be drawn
                self.trackers.remove(tracker)
                text = f"{tracker.name} failed and gets no more metrics; {self.path} has all: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        """End the trackers' runs."""
        for tracker in self.trackers:
            tracker.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that a killed run left unfinished is dropped.

    Raises:
        ValueError: a line is damaged; the message names it.
    """
    rows, damaged = _read_rows(path)
    if damaged:
        raise ValueError(f"{path}, line {damaged[0]} is damaged: remove that line, or the file, to go on")
    return rows


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows, and the numbers of damaged lines."""
    lines = path.read_bytes().split(b"\n")[:-1]
    rows, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and type(row.get("step")) is int and isinstance(row.get("kind"), str):
            rows.append(row)
        else:
            damaged.append(number)
    return rows, damaged
