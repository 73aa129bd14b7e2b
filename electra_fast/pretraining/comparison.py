"""`electra-fast runs`: runs beside each other, finished or not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from electra_fast.console import standard_console
from electra_fast.pretraining.curves import Rows, plot_runs
from electra_fast.pretraining.metrics import read_metrics
from electra_fast.pretraining.run_folder import flat_settings

_SHOWN = ("generator_loss", "discriminator_loss", "auc")  # by `runs list`


@dataclass(frozen=True)
class Run:
    """A run's folder, read.

    Args:
        folder: where it is.
        settings: its config.yaml by dotted keys.
        rows: of its metrics.jsonl; none where there is no such file yet.
        finished: whether its models are written.
    """

    folder: Path
    settings: dict[str, Any]
    rows: Rows
    finished: bool

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def held_out(self) -> dict[str, Any]:
        """The last evaluation, without its kind; empty where there is none."""
        rows = [row for row in self.rows if row["kind"] == "eval"]
        return {key: value for key, value in (rows[-1] if rows else {}).items() if key != "kind"}

    @property
    def state(self) -> str:
        return "finished" if self.finished else "not finished"


def read_run(folder: Path) -> Run:
    """Raises ValueError where `folder` holds no run, or a file of it is damaged."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise ValueError(f"{folder} is no run: it holds no config.yaml; `electra-fast pretrain` makes a run")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} is damaged: it holds no settings")
    log = folder / "metrics.jsonl"
    rows = read_metrics(log) if log.is_file() else []
    return Run(folder, flat_settings(settings), rows, (folder / "electra_fast.json").is_file())


def compare_runs(folders: Sequence[Path], picture: Path | None, *, overwrite: bool = False) -> None:
    """Print the runs' last held-out metrics and the settings in which they differ, and draw their curves.

    Args:
        folders: of the runs, at least two.
        picture: the PNG to draw; None: none.
        overwrite: replace `picture` if it is there.

    Raises:
        ValueError: a folder that holds no run or is given twice, or a picture that can't be written.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("a run is given twice: name different ones")
    if picture is not None:
        if picture.exists() and not (overwrite and picture.is_file()):
            raise ValueError(f"{picture} exists: choose another name with --png, or --overwrite to replace it")
        if not picture.parent.is_dir():
            raise ValueError(f"{picture.parent} is no folder: make it, or choose another one for {picture.name}")
    names, runs = _names(folders), [read_run(folder) for folder in folders]
    _print_comparison(names, runs)
    if picture is not None:
        plot_runs({name: run.rows for name, run in zip(names, runs, strict=True)}, picture)


def list_runs(folder: Path) -> None:
    """Print a line for each run in `folder` and the folders below it.

    Raises:
        ValueError: there is none, or a file of one is damaged.
    """
    from rich.table import Table

    files = [path for path in sorted(folder.rglob("config.yaml")) if (path.parent / "metrics.jsonl").is_file()]
    if not files:
        raise ValueError(f"no run in {folder}: name the folder that holds your runs, e.g. runs")
    table = Table(box=None, pad_edge=False)
    for name in ("run", "state", "step", "of", *_SHOWN, "last written"):
        table.add_column(name, justify="left" if name in ("run", "state") else "right")
    for file in files:
        run = read_run(file.parent)
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime((file.parent / "metrics.jsonl").stat().st_mtime))
        figures = [_figure(run.held_out.get(key)) for key in _SHOWN]
        name = _plain(str(file.parent.relative_to(folder)))
        steps = _figure(run.settings.get("training.steps"))
        table.add_row(name, run.state, _figure(run.step), steps, *figures, written)
    standard_console().print(table)


def _print_comparison(names: Sequence[str], runs: Sequence[Run]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(_plain(name), justify="right", overflow="fold")
    table.add_row("state", *(run.state for run in runs))
    table.add_row("last step", *(_figure(run.step) for run in runs), end_section=True)
    table.add_row("[bold]held out[/]")
    for key in dict.fromkeys(key for run in runs for key in run.held_out):
        table.add_row(f"  {key}", *(_figure(run.held_out.get(key)) for run in runs))
    table.add_row("[bold]settings that differ[/]")
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    for key in keys:
        values = [_figure(run.settings.get(key)) for run in runs]
        if key != "output" and len(set(values)) > 1:
            table.add_row(f"  {_plain(key)}", *values)
    standard_console().print(table)


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names where these tell them apart, else their paths."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else _plain(str(value))


def _plain(text: str) -> str:
    """`text` for rich, which reads [words] as styles."""
    return text.replace("[", "\\[")
