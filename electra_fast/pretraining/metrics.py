"""What a run leaves to look at: metrics.jsonl, line by line, and curves.png at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from electra_fast.files import write_whole


class MetricsLog:
    """Appends to a JSONL file; a resumed run first drops the lines after the step it resumes from."""

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        self.path = path
        kept: list[str] = []
        if resume_step is not None and path.exists():
            kept = [json.dumps(row) for row in read_metrics(path) if row["step"] <= resume_step]
        write_whole(path, "".join(line + "\n" for line in kept))

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Add a line; `kind` is "train" or "eval"."""
        with self.path.open("a", encoding="utf-8") as file:
            # JSON has no NaN, which an AUC is as long as one class is empty.
            values = {name: None if value != value else value for name, value in values.items()}
            file.write(json.dumps({"kind": kind, "step": step, **values}, allow_nan=False) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that a killed run left unfinished is dropped."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is damaged: remove that line, or the file, to go on") from error
    return rows


def plot_curves(metrics: Path, picture: Path) -> None:
    """Draw both losses, the RTD AUC and the generator's accuracy over the steps, from metrics.jsonl to a PNG."""
    # The object interface draws without a display and leaves pyplot's global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    train = [row for row in rows if row["kind"] == "train"]
    held_out = [row for row in rows if row["kind"] == "eval"]
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {
        "generator_loss": "Generator loss (nats per masked token)",
        "discriminator_loss": "Discriminator loss (nats per token)",
        "auc": "RTD AUC",
        "generator_accuracy": "Generator accuracy (masked tokens)",
    }
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for name, points, style in (
            ("training", train, {"color": "C0", "alpha": 0.6}),
            ("held out", held_out, {"color": "C1", "marker": "o"}),
        ):
            points = [(row["step"], row[key]) for row in points if row.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, **style)
        if key == "generator_loss" and held_out:
            axes.axhline(held_out[-1]["unigram_loss"], color="gray", linestyle="--", label="token frequencies")
        if key == "auc":
            axes.axhline(0.5, color="gray", linestyle="--", label="chance")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.savefig(picture, dpi=110)
