"""Writes docs/performance.md and its charts from the results of `pytest benchmarks/ --benchmark-json=FILE`.

`python -m benchmarks.report` takes the newest file of each device in benchmarks/results/, and the results of whole jobs
in benchmarks/results/jobs/; `--save FILE` first puts a file there, under a name of device, date and commit.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import charts
from benchmarks.rows import (
    FLOOR,
    SLOWER,
    Row,
    duration,
    format_table,
    markdown_table,
    missed_targets,
    ratio_cell,
    ratio_title,
    size,
    slower_rows,
    unfair_rivals,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
JOBS = RESULTS / "jobs"

# What people run, before the operators it is made of; in the order of the page.
_JOB_ROOMS = ("step", "models", "generator_head", "prepare", "loading", "exported")
_NO_JOB = ("sample_tokens",)
_GENERATOR_HEAD_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}

_INTRODUCTION = """\
# Performance

What pretraining, fine-tuning and inference cost beside the usual ways to do the same, and each fused operator beside
the PyTorch calls it replaces. One command measures all of it on your machine, in under 20 minutes on two cores, and
writes this page from the files in `benchmarks/results/`:

```sh
make bench
```

On a machine with a CUDA GPU, without network or further packages, in under nine minutes:

<!-- not run: needs a CUDA GPU -->
```sh
bash benchmarks/gpu.sh
```

The same as one table in the terminal: `pytest benchmarks/ --benchmark-only`. What the figures mean is
[below](#how-the-figures-are-taken).
"""

_METHOD = f"""\
## How the figures are taken

- *Times as fast* is the median time of a rival over ours. All are timed in turn in one run, on fresh inputs that
  are rotated through more memory than the caches hold (CPU: twice the last-level cache, at most 128 MB, since a virtual
  machine shares its last level with others; CUDA: four times the L2). *±* is the interquartile range over the median,
  *rounds* how often ours was timed: calls of seconds as often as ten seconds allow, at least three times.
- *Plain* is plain PyTorch: for the pretraining step `benchmarks/plain.py`, for models and the exported one stock
  transformers in eager mode, padding and all. *Strong* is plain with the vocabulary projection at masked positions
  only, compiled by `torch.compile`. *Stock compiled* is `torch.compile` of transformers' class; in training of each
  layer, since the whole takes minutes to compile. Compiling is not counted.
- *The floor* is a job's matrix products alone, of real tokens, into memory that is there already: what remains if
  everything else were free.
- *Asked* is what we hold ourselves to on two CPU cores, a least ratio or, of the floor, a largest one. {SLOWER} marks a
  rival that is faster than ours. [The log](log.md) says why a ratio is missed.
- *Forward + backward* of an operator is `torch.autograd.grad` with random upstream gradients, nothing accumulated; a
  pretraining step makes fresh gradients of all parameters, without the optimizer; a training step of a model is
  forward, backward and AdamW. All with dropout.
- Sentences are random tokens, as long as the sentences of SST-2, two batches a call. `electra-fast bench` times a
  checkpoint of your own in the same way.
- *GB/s* counts the fewest bytes that one call must read and write. *Of copy* compares it with a tensor copy on the same
  machine, bytes read and written. Results that stay in the cache can exceed it. *GFLOP/s* counts the fewest operations;
  of jobs, those of the floor.
- On Linux malloc keeps freed memory, as in `electra-fast pretrain` (`electra_fast.allocator`), for every contestant.
- *Memory* is what one call takes at its peak beside its arguments: on CUDA by PyTorch's allocator, on the CPU by the
  resident set of the process.
- On CUDA times are between events on the device. Calls under a millisecond are replayed from a CUDA *graph*, without
  the time it takes to launch them from Python; where a contestant waits for the device, which no graph can hold, the
  events stand around the *launches* of all.
"""


@dataclass(frozen=True)
class Result:
    """One file of results: where and when it was measured, and the rows."""

    machine: dict[str, Any]
    commit: dict[str, Any]
    datetime: str
    rows: list[Row]
    memory: dict[str, dict[str, int]]  # model and batch -> contestant -> bytes at a step's peak in a process of its own

    @classmethod
    def read(cls, path: Path) -> Result:
        content = json.loads(path.read_text(encoding="utf-8"))
        infos = [each["extra_info"] for each in content["benchmarks"]]
        rows = [row for row in map(Row.of, infos) if row is not None]
        # The first files don't say the shape.
        memory = {
            info.get("shape", "ELECTRA-small, 64 x 128"): info["peak_memory"]
            for info in infos
            if Row.of(info) is None and "peak_memory" in info
        }
        if not rows:
            raise ValueError(f"{path} holds no row of the benchmarks: make it by pytest benchmarks/ --benchmark-only")
        return cls(content["machine_info"], content["commit_info"], content["datetime"], rows, memory)

    @property
    def kind(self) -> str:
        return self.rows[0].device  # "cpu" or "cuda"

    @property
    def device(self) -> str:
        """The device in words, as `electra-fast info` says it."""
        return next(line for line in self.machine["devices"] if line.startswith(self.kind)).partition(": ")[2]

    @property
    def jobs(self) -> list[Row]:
        """The rows of what people run."""
        rows = [row for row in self.rows if row.room in _JOB_ROOMS and row.operator not in _NO_JOB]
        rows = [row for row in rows if row.room != "generator_head" or row.dtype == _GENERATOR_HEAD_DTYPE[self.kind]]
        return sorted(rows, key=lambda row: _JOB_ROOMS.index(row.room))

    @property
    def operators(self) -> list[Row]:
        return [row for row in self.rows if row.room not in _JOB_ROOMS or row.operator in _NO_JOB]

    @property
    def hardware(self) -> str:
        threads = f", {self.rows[0].threads} threads" if self.kind == "cpu" else ""
        return self.device.partition(",")[0] + threads

    @property
    def footer(self) -> str:
        """For a chart: hardware, version, commit, date."""
        torch = f"torch {self.machine['versions']['torch']}"
        return f"{self.hardware}; {torch}; commit {self.revision}; {self.date}"

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


def page(results: list[Result], jobs: Path = JOBS) -> str:
    parts = [_INTRODUCTION, *map(_section, results)]
    operators = dict.fromkeys(row.operator for result in results for row in result.rows)
    for kind, title in (("cpu", "CPU"), ("cuda", "GPU")):
        if all(result.kind != kind for result in results):
            lines = [["operator", "ours", "plain", "times as fast", "launches"]]
            lines += [[name, *["not measured"] * 4] for name in operators]
            table = markdown_table(lines, texts=["operator"]) + "\n" if operators else ""
            parts.append(f"## {title}\n\nNo {title} has been measured yet.\n\n{table}".rstrip() + "\n")
    whole = sorted(jobs.glob("*.json"))
    if whole:
        lines = [["job", "ours", "beside", "theirs", "times as fast", "measured"], *map(_whole_job, whole)]
        text = "Whole runs of a command, measured one by one (`benchmarks/results/jobs/`)."
        parts.append(f"## Whole jobs\n\n{text}\n\n{markdown_table(lines, texts=['job', 'beside', 'measured'])}\n")
    parts += [_METHOD, *map(_details, results)]
    return "\n".join(parts)


def _section(result: Result) -> str:
    """The summary and the charts of a device."""
    policy = result.machine.get("omp_wait_policy")
    versions = ", ".join(f"{name} {version}" for name, version in result.machine["versions"].items() if version)
    versions += f"; OMP_WAIT_POLICY={policy}" if policy else ""
    rates = {row.dtype: row.gemm_rate for row in result.rows if row.gemm_rate}
    products = "".join(f", a large product in {name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items())
    load = result.machine.get("load")
    busy = f" Load average before: {load:.1f}." if load is not None else ""
    lines = [
        f"## {result.hardware}",
        "",
        f"{result.device}. {versions}. A copy moves {result.rows[0].copy_bandwidth / 1e9:.3g} GB/s{products}. "
        f"Measured {result.date} at commit {result.revision}.{busy}",
        "",
        _summary(result.jobs),
        "",
    ]
    for title, notes in (
        ("Asked for and not reached", missed_targets(result.rows)),
        ("Rivals that are faster than ours", slower_rows(result.rows)),
        ("Rivals that are slower than their own plain form, a fault of the benchmark", unfair_rivals(result.rows)),
    ):
        if notes:
            lines += [f"{title} ([the log](log.md) says why):", "", *(f"- {note}" for note in notes), ""]
    for name in charts.names(result):
        title = charts.CHARTS[name][0]
        lines += [f"### {title}", "", f"![{title}](images/{charts.image_name(result, name)})", ""]
    return "\n".join(lines)


def _summary(rows: list[Row]) -> str:
    """Ratios of the jobs, and in brackets what is asked."""
    usual = ("plain", "strong", "stock compiled", FLOOR)
    titles = [
        "job",
        "size",
        "ours",
        "tokens/s",
        "as fast as plain or stock",
        *map(ratio_title, usual[1:]),
        "others",
        "launches",
    ]
    lines = [titles]
    for row in rows:
        others = [f"{ratio_cell(row, rival)} {rival}" for rival in row.rivals if rival not in usual]
        direction = "" if row.direction.startswith("forward") else f", {row.direction}"
        tokens = f"{row.tokens / row.median['ours']:,.0f}" if row.tokens else ""
        launches = str(row.launches["ours"]) if row.launches else "not measured" if row.room == "step" else ""
        ratios = [ratio_cell(row, rival) for rival in usual]
        lines.append(
            [
                row.operator + direction,
                row.shape,
                duration(row.median["ours"]),
                tokens,
                *ratios,
                "; ".join(others),
                launches,
            ]
        )
    return markdown_table(lines, texts=["job", "size", "others"])


def _details(result: Result) -> str:
    lines = [f"## Details: {result.hardware}", ""]
    for room in dict.fromkeys(row.room for row in result.rows):
        rows = [row for row in result.rows if row.room == room]
        lines += [f"### {room.replace('_', ' ').capitalize()}", "", format_table(rows, markdown=True), ""]
    broken_down = next((row for row in result.rows if row.breakdown), None)
    if broken_down is not None:
        lines += [f"### Time by operator: {broken_down.operator}, {broken_down.shape}", ""]
        lines += [_breakdown_table(broken_down), ""]
    for shape, peaks in result.memory.items():
        sizes = {name: size(count) for name, count in peaks.items()}
        lines += [f"### Memory: a pretraining step of {shape}", ""]
        lines += [markdown_table([list(sizes), list(sizes.values())], texts=[]), ""]
    return "\n".join(lines)


def _breakdown_table(row: Row) -> str:
    """Seconds by group; a step and its optimizer under PyTorch's profiler, which takes time of its own."""
    groups = dict.fromkeys(group for seconds in row.breakdown.values() for group in seconds)
    lines = [["group", *row.breakdown]]
    for group in groups:
        taken = [seconds.get(group) for seconds in row.breakdown.values()]
        lines.append([group, *("" if each is None else duration(each) for each in taken)])
    lines.append(["all", *(duration(sum(seconds.values())) for seconds in row.breakdown.values())])
    return markdown_table(lines, texts=["group"])


def _whole_job(path: Path) -> list[str]:
    """The cells of a file that `jobs.write_result` wrote."""
    result = json.loads(path.read_text(encoding="utf-8"))
    device = result["devices"][0].partition(": ")[2]
    measured = f"{result['date']}, commit {(result['commit'] or 'unknown')[:10]}, {device}, `{path.name}`"
    if result["name"] == "serving":
        ours, theirs = (statistics.median(each["throughput"] for each in result[name]) for name in ("ours", "naive"))
        cells = [f"`serve`, {result['clients']} clients", f"{ours:.0f} requests/s", "a naive service"]
        return [*cells, f"{theirs:.3g} requests/s", f"{ours / theirs:.2f}", measured]
    if result["name"] == "finetuning":
        job, rival = f"`finetune`, {result['steps']} steps, {result['model']}", "transformers' Trainer, padded"
        seconds, keys = result["seconds"], ("ours", "stock")
    elif result["name"].startswith("exported"):
        job, rival = f"`export`, {result['package']}, {result['texts']} texts, {result['model']}", "stock in float32"
        seconds, keys = result["wall_seconds"], ("package", "stock")
    else:  # nothing is known of its figures but where they are
        return [f"`{result['command']}`", "", "", "", "", measured]
    ours, theirs = (seconds[key] for key in keys)
    return [job, duration(ours), rival, duration(theirs), f"{theirs / ours:.2f}", measured]


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
            print(f"\n{result.device}, {result.date}, commit {result.revision}")
            print(format_table(result.rows, brief=True))
            print(*missed_targets(result.rows), *slower_rows(result.rows), *unfair_rivals(result.rows), sep="\n")
        return 0
    for result in results:
        charts.draw_all(result, options.docs / "images")
    (options.docs / "performance.md").write_text(page(results, options.results / "jobs"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
