"""Draws runs from their metrics.jsonl: curves.png of one, and several on one picture."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from electra_fast.pretraining.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, Any]]  # of metrics.jsonl

PANELS = {
    "generator_loss": "Generator loss (nats per masked token)",
    "discriminator_loss": "Discriminator loss (nats per token)",
    "auc": "RTD AUC",
    "recall": "RTD recall",
    "generator_accuracy": "Generator accuracy (masked tokens)",
    "lr": "Learning rate",
    "gradient_norm": "Gradient norm before clipping",
    "tokens_per_second": "Tokens per second",
}


def plot_curves(metrics: Path, picture: Path) -> None:
    """Draw a run's metrics.jsonl over the steps, training and held out, to a PNG; dotted lines part its phases."""
    plot_runs({"": read_metrics(metrics)}, picture)


def plot_runs(runs: Mapping[str, Rows], picture: Path) -> None:
    """Draw the metrics of runs over the steps to a PNG, a colour a run: a line for training, dots for held-out text.

    Args:
        runs: the rows of each run's metrics.jsonl by its name in the legend.
        picture: the file, which is whole or as before.
    """
    # The object interface draws without a display and leaves pyplot's global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    panels = [key for key in PANELS if any(_points(rows, key) for rows in runs.values())]
    columns = 2 if len(panels) <= 4 else 4
    lines = max(1, -(-len(panels) // columns))
    width, height = 4.6 * columns, 3.4 * lines + 0.4
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False)
    # A layout fitted to the labels ("constrained") would draw everything twice.
    edges = {"left": 0.6 / width, "right": 1 - 0.2 / width, "bottom": 0.5 / height, "top": 1 - 0.7 / height}
    figure.subplots_adjust(**edges, wspace=0.2, hspace=0.35)
    last = max((row["step"] for rows in runs.values() for row in rows), default=1)
    for axes, key in zip(grid.flat, panels, strict=False):
        for index, rows in enumerate(runs.values()):
            _draw(axes, key, rows, f"C{index % 10}", alone=len(runs) == 1)
        axes.set_title(PANELS[key], fontsize="medium")
        axes.grid(alpha=0.3)
        axes.set_xlabel("step")
        axes.set_xlim(0, last)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 500k
        if key == "gradient_norm" and any(value > 0 for rows in runs.values() for _, value in _points(rows, key)):
            axes.set_yscale("log")
        elif key == "lr":
            axes.yaxis.set_major_formatter(lambda value, _: format(value, ".2g"))
        elif key == "tokens_per_second":
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    _legend(figure, grid.flat[0], list(runs))
    aside = picture.with_name(f".{picture.name}.partial")
    aside.unlink(missing_ok=True)  # were it a link, we would write where it leads
    try:
        figure.savefig(aside, dpi=110, format="png")
        os.replace(aside, picture)
    finally:
        aside.unlink(missing_ok=True)


def _points(rows: Rows, key: str, kind: str | None = None) -> list[tuple[int, float]]:
    return [
        (row["step"], row[key])
        for row in rows
        if kind in (None, row["kind"]) and isinstance(row.get(key), (int, float)) and abs(row[key]) < 1e300
    ]


def _draw(axes: Axes, key: str, rows: Rows, color: str, *, alone: bool) -> None:
    train, held_out = _points(rows, key, "train"), _points(rows, key, "eval")
    if train:
        axes.plot(*zip(*train, strict=True), color=color, alpha=0.6, linewidth=1.2)
    if held_out:
        marker = {"marker": "o", "markersize": 4, "linewidth": 1.2 if alone else 0.8}
        axes.plot(*zip(*held_out, strict=True), color="C1" if alone else color, **marker)
    if not alone:
        return
    unigram = _points(rows, "unigram_loss", "eval")
    if key == "generator_loss" and unigram:
        axes.axhline(unigram[-1][1], color="gray", linestyle="--")
        axes.annotate("token frequencies", (1, unigram[-1][1]), **_NOTE)
    if key == "auc":
        axes.axhline(0.5, color="gray", linestyle="--")
        axes.annotate("chance", (1, 0.5), **_NOTE)
    phases = [row for row in rows if row["kind"] == "train" and "phase" in row]
    for before, row in pairwise(phases):
        if row["phase"] != before["phase"]:
            axes.axvline(before["step"], color="gray", linestyle=":")


_NOTE = {
    "xycoords": ("axes fraction", "data"),
    "xytext": (-4, 3),
    "textcoords": "offset points",
    "ha": "right",
    "color": "gray",
    "fontsize": "small",
}


def _legend(figure: Any, axes: Axes, names: list[str]) -> None:
    from matplotlib.lines import Line2D

    if len(names) == 1:
        handles = [Line2D([], [], color="C0", alpha=0.6), Line2D([], [], color="C1", marker="o", markersize=4)]
        labels = ["training", "held out"]
        if phases := axes.get_lines() and [line for line in axes.get_lines() if line.get_linestyle() == ":"]:
            handles, labels = [*handles, phases[0]], [*labels, "next phase"]
    else:
        handles = [Line2D([], [], color=f"C{i % 10}") for i in range(len(names))]
        handles += [Line2D([], [], color="gray", marker="o", markersize=4, linewidth=0.8)]
        labels = [*names, "held out"]
    figure.legend(handles, labels, loc="upper center", ncols=min(len(labels), 4), frameon=False)
