"""Writes docs/performance.md and its charts from the results of `pytest benchmarks/ --benchmark-json=FILE`.

`python -m benchmarks.report` takes the newest file of each device in benchmarks/results/; `--save FILE` first puts a
file there, under a name of device, date and commit.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, format_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

_INTRODUCTION = """\
# Performance

What the models cost beside stock transformers, and each fused operator beside the PyTorch calls it replaces.
`python -m benchmarks.report` writes this page from the files in `benchmarks/results/`. To measure your own machine and
write it anew:

```sh
make bench
```

On a machine with a CUDA GPU, without network or further packages, in under nine minutes:

<!-- not run: needs a CUDA GPU -->
```sh
bash benchmarks/gpu.sh
```

How the figures are taken:

- *Times as fast* is the median time of plain PyTorch over ours. Both are timed in turn in one run, on fresh inputs that
  are rotated through more memory than the caches hold (CPU: twice the last-level cache, at most 128 MB, since a virtual
  machine shares its last level with others; CUDA: four times the L2). *±* is the interquartile range over the median.
- *Forward + backward* is `torch.autograd.grad` with random upstream gradients, nothing accumulated.
- *GB/s* counts the fewest bytes that one call must read and write. *Of copy* compares it with a tensor copy on the same
  machine, bytes read and written. Results that stay in the cache can exceed it.
- On Linux malloc keeps freed memory, as in `electra-fast pretrain` (`electra_fast.allocator`), for every contestant.
- *Memory* is what one call takes at its peak beside its arguments: on CUDA by PyTorch's allocator, on the CPU by the
  resident set of the process.
- On CUDA times are between events on the device. Calls under a millisecond are replayed from a CUDA *graph*, without
  the time it takes to launch them from Python; where a contestant waits for the device, which no graph can hold, the
  events stand around the *launches* of all.
- For *models*, plain is stock transformers in eager mode. A call takes two batches of random sentences as long as those
  of SST-2, padded, or one batch of full length. A training step is forward, backward and AdamW, with dropout.
  `electra-fast bench` times a checkpoint of your own in the same way.
- *Asked* is the least ratio we hold ourselves to on two CPU cores; where it is missed, [the log](log.md) says why.
"""


@dataclass(frozen=True)
class Result:
    """One file of results: where and when it was measured, and the rows."""

    machine: dict[str, Any]
    commit: dict[str, Any]
    datetime: str
    rows: list[Row]

    @classmethod
    def read(cls, path: Path) -> Result:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row.of(each["extra_info"]) for each in content["benchmarks"]]
        rows = [row for row in rows if row is not None]
        if not rows:
            raise ValueError(f"{path} holds no row of the benchmarks: make it by pytest benchmarks/ --benchmark-only")
        return cls(content["machine_info"], content["commit_info"], content["datetime"], rows)

    @property
    def kind(self) -> str:
        return self.rows[0].device  # "cpu" or "cuda"

    @property
    def device(self) -> str:
        """The device in words, as `electra-fast info` says it."""
        return next(line for line in self.machine["devices"] if line.startswith(self.kind)).partition(": ")[2]

    @property
    def date(self) -> str:
        return self.datetime[:10]

    @property
    def slug(self) -> str:
        words = re.sub(r"\((?:R|TM)\)", "", self.device.partition(",")[0])
        return f"{self.kind}-" + re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")

    @property
    def revision(self) -> str:
        return self.commit["id"][:10] + (", with changes" if self.commit.get("dirty") else "")


def save(path: Path, folder: Path) -> Path:
    result = Result.read(path)
    target = folder / f"{result.slug}-{result.date}-{result.commit['id'][:10]}.json"
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    return target


def newest(folder: Path) -> list[Result]:
    """The newest result of each device, CPUs first."""
    results = {}
    for result in sorted((Result.read(path) for path in folder.glob("*.json")), key=lambda result: result.datetime):
        results[result.slug] = result
    return sorted(results.values(), key=lambda result: result.slug)


def page(results: list[Result]) -> str:
    parts = [_INTRODUCTION, *map(_section, results)]
    operators = dict.fromkeys(row.operator for result in results for row in result.rows)
    for kind, title in (("cpu", "CPU"), ("cuda", "GPU")):
        if all(result.kind != kind for result in results):
            lines = ["| operator | ours | plain | times as fast |", "| --- | ---: | ---: | ---: |"]
            lines += [f"| {name} | not measured | not measured | not measured |" for name in operators]
            table = "\n".join(lines) + "\n" if operators else ""
            parts.append(f"## {title}\n\nNo {title} has been measured yet.\n\n{table}".rstrip() + "\n")
    return "\n".join(parts)


def _section(result: Result) -> str:
    policy = result.machine.get("omp_wait_policy")
    versions = ", ".join(f"{name} {version}" for name, version in result.machine["versions"].items() if version)
    versions += f"; OMP_WAIT_POLICY={policy}" if policy else ""
    threads = f", {result.rows[0].threads} threads" if result.kind == "cpu" else ""
    lines = [
        f"## {result.device.partition(',')[0]}{threads}",
        "",
        f"{result.device}. {versions}. A copy moves {result.rows[0].copy_bandwidth / 1e9:.3g} GB/s. "
        f"Measured {result.date} at commit {result.revision}.",
        "",
        f"![Times as fast as plain PyTorch, by operator](images/performance-{result.slug}.png)",
        "",
    ]
    for room in dict.fromkeys(row.room for row in result.rows):
        rows = [row for row in result.rows if row.room == room]
        lines += [f"### {room.replace('_', ' ')}", "", format_table(rows, markdown=True), ""]
    return "\n".join(lines)


def draw(result: Result, path: Path) -> None:
    """A bar for each row, how many times as fast as plain; a tick where a ratio is asked for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    # Middle tones on no background: readable on light and dark pages.
    grey, colours = "#808080", {"float32": "#1f9e8f", "bfloat16": "#d98032", "float16": "#8f7fd1"}
    rows = result.rows[::-1]
    figure = Figure(figsize=(8, 0.9 + 0.24 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ratios = [row.ratio() for row in rows]
    # From 1 outwards, so that what is slower than plain points the other way.
    axes.barh(
        range(len(rows)),
        [ratio - 1 for ratio in ratios],
        left=1,
        color=[colours.get(row.dtype, "#5b8fd6") for row in rows],
        height=0.7,
    )
    axes.set_xscale("log")
    axes.set_xlim(min(0.5, *(ratio / 1.5 for ratio in ratios)), max(2, *(ratio * 1.5 for ratio in ratios)))
    for height, row in enumerate(rows):
        axes.annotate(
            f"{row.ratio():.3g}",
            (row.ratio(), height),
            xytext=(4 if row.ratio() >= 1 else -4, 0),
            textcoords="offset points",
            va="center",
            ha="left" if row.ratio() >= 1 else "right",
            color=grey,
            fontsize=7,
        )
        if "plain" in row.targets:
            axes.plot([row.targets["plain"]] * 2, [height - 0.5, height + 0.5], color=grey, linewidth=2)
    axes.axvline(1, color=grey, linewidth=1)
    labels = [f"{row.operator} {row.shape} {row.dtype}" + _direction(row) for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if low <= tick <= high])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("times as fast as plain PyTorch (| asked)", color=grey, fontsize=8)
    axes.tick_params(colors=grey, labelsize=7, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, transparent=True, metadata={"Software": None})


def _direction(row: Row) -> str:
    return "" if row.direction == "forward + backward" else f", {row.direction}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="result files; default the newest of each")
    parser.add_argument(
        "--save", action="store_true", help="put the files under --results first, by a name of their own"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", metavar="FOLDER", help="where the page goes")
    parser.add_argument("--print", action="store_true", help="print the tables instead of writing the page")
    options = parser.parse_args(arguments)
    try:
        if options.save:
            options.files = [save(path, options.results) for path in options.files]
            print(*options.files, sep="\n")
        # What is printed is what was named; the page always shows all devices.
        every = not options.files or (options.save and not options.print)
        results = newest(options.results) if every else [Result.read(path) for path in options.files]
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{type(error).__name__}: {error}")
    if options.print:
        for result in results:
            print(
                f"\n{result.device}, {result.date}, commit {result.revision}\n{format_table(result.rows, brief=True)}"
            )
        return 0
    for result in results:
        draw(result, options.docs / "images" / f"performance-{result.slug}.png")
    (options.docs / "performance.md").write_text(page(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
