"""What every benchmark shares: the fixtures `device`, `copies`, `forward_backward`, `liger` and `compare`."""

from __future__ import annotations

import gc
import itertools
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import inputs as benchmark_inputs
from benchmarks import timing
from benchmarks.inputs import Arguments, ForwardBackward
from benchmarks.rows import FLOOR, Row, format_table, missed_targets, slower_rows, unfair_rivals
from electra_fast.allocator import keep_freed_memory
from electra_fast.info import collect

_ROWS = pytest.StashKey[list[Row]]()
_load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


class _Clock:
    """What pytest-benchmark reads the time from: it goes on by what our own timer measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


_clock = _Clock()


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # its table of ours alone would hide that of all
    config.stash[_ROWS] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():  # benchmarks/gpu.sh may cut the run short: the pretraining step first
        items.sort(key=lambda item: item.path.stem != "bench_step")
    for item in items:
        if "compare" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=_clock))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.stash[_ROWS]:
        return
    terminalreporter.section("ours beside plain PyTorch and others")
    rows = config.stash[_ROWS]
    terminalreporter.write_line(format_table(rows, brief=True))
    for title, lines in (
        ("slower than a rival", slower_rows(rows)),
        ("missed", missed_targets(rows)),
        ("a rival slower than its own plain form is a fault of the benchmark", unfair_rivals(rows)),
    ):
        for line in lines:
            terminalreporter.write_line(f"{title}: {line}")
    if rows[0].device == "cpu" and _load_before > 1:
        terminalreporter.write_line(
            f"Others used this machine (load average {_load_before:.1f} at the start): the figures say little. Threads "
            "that spin while they wait make it worse; OMP_WAIT_POLICY=PASSIVE helps."
        )


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """What the report names; not the host's name, nor the long list of the processor's flags."""
    machine_info.pop("node", None)
    machine_info["cpu"].pop("flags", None)
    info = collect()
    machine_info["versions"], machine_info["devices"] = info.versions, info.devices
    machine_info["load"] = _load_before
    # Where threads don't spin while they wait, each parallel loop starts later, and plain PyTorch has more of them.
    machine_info["omp_wait_policy"] = os.environ.get("OMP_WAIT_POLICY")


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    for name in ("project", "branch", "author_time"):
        commit_info.pop(name, None)
    commit_info["id"] = os.environ.get("ELECTRA_FAST_COMMIT") or commit_info["id"]


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Without the time of every round, which makes a file ten times as large."""
    for each in output_json["benchmarks"]:
        each["stats"].pop("data", None)
        each.pop("options", None)


@pytest.fixture(autouse=True)
def _fixed_inputs() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _memory_is_kept() -> None:
    """As in `electra-fast pretrain`, for every contestant: else each call pays for the page faults of fresh memory."""
    keep_freed_memory()


@pytest.fixture(scope="session")
def device() -> str:
    """Where the benchmarks run: "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def copies(device: str, benchmark: Any) -> Callable[..., list[Arguments]]:
    """`copies(make_inputs, num_bytes=None)`: argument tuples, more than the caches hold; see `inputs.copies`.

    Under --benchmark-disable two are enough.
    """
    return partial(benchmark_inputs.copies, device if benchmark.enabled else None)


@pytest.fixture
def forward_backward() -> type[ForwardBackward]:
    """`forward_backward(call, wrt)`: forward, then gradients of the arguments at positions `wrt`.

    `ours=forward_backward(ours, (0, 2))` where ours(x, seed, weight) returns a tensor or a tuple: each result that
    requires a gradient gets a random upstream one, made before timing.
    """
    return ForwardBackward


@pytest.fixture
def liger() -> ModuleType | None:
    """The module `liger_kernel.ops`, or None where Liger is not installed or the device is no GPU."""
    return benchmark_inputs.liger() if torch.cuda.is_available() else None


@dataclass(frozen=True)
class Comparison:
    """The times of one row: seconds a call by contestant, "ours" and "plain" among them; NaN where none were taken."""

    medians: dict[str, float]

    @property
    def median(self) -> float:
        """Seconds a call of ours."""
        return self.medians["ours"]

    @property
    def ratio(self) -> float:
        """How many times as fast as plain ours is."""
        return self.medians["plain"] / self.medians["ours"]


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: Any, device: str) -> Iterator[Callable[..., Comparison]]:
    def compare(
        name: str,
        *,
        ours: Callable[..., Any],
        plain: Callable[..., Any],
        inputs: list[Arguments],
        bytes_moved: int | None = None,
        rivals: Mapping[str, Callable[..., Any]] | None = None,
        flops: float | None = None,
        tokens: int | None = None,
        target: float | Mapping[str, float] | None = None,
        shape: str | None = None,
        dtype: str | None = None,
        direction: str | None = None,
    ) -> Comparison:
        """Time `ours` beside `plain` and the rivals, in alternating rounds over the inputs in turn: a row of the table.

        Args:
            name: the operator, as the table shows it.
            ours, plain: take one of `inputs` as arguments; `plain` is the usual PyTorch for the same.
            inputs: argument tuples, from `copies`.
            bytes_moved: the fewest bytes one call reads and writes, for GB/s.
            rivals: more to compare with, by name.
            flops: floating-point operations of one call.
            tokens: real ones that one call goes through, for tokens/s.
            target: the ratio to plain that is asked for, or ratios by rival. Missing one fails only under
                ELECTRA_FAST_ENFORCE_TARGETS=1.
            shape, dtype: as the table shows them; default those of the first argument.
            direction: default "forward + backward" for what `forward_backward` made, else "forward".
        """
        calls = {"ours": ours, "plain": plain, **(rivals or {})}
        contestants = {key: benchmark_inputs.bind(call, inputs) for key, call in calls.items()}
        if not benchmark.enabled:
            benchmark.pedantic(contestants["ours"][0])
            for thunks in contestants.values():
                thunks[0]()
            return Comparison(dict.fromkeys(contestants, float("nan")))

        timer = timing.make_timer(device, contestants)
        seconds: dict[str, list[float]] = {key: [] for key in contestants}

        rounds = timing.choose_rounds(device, timer)
        turns = itertools.count()

        def time_the_others() -> None:
            turn = next(turns)
            for key, measure in timer.measure.items():
                # Spread evenly over the rounds.
                if key != "ours" and (turn + 1) * rounds[key] // rounds["ours"] > turn * rounds[key] // rounds["ours"]:
                    seconds[key].append(measure())

        def time_ours() -> None:
            seconds["ours"].append(timer.measure["ours"]())
            _clock.now += seconds["ours"][-1]

        benchmark.pedantic(time_ours, setup=time_the_others, rounds=rounds["ours"])
        first = inputs[0][0]
        dtype_name = dtype or str(first.dtype).removeprefix("torch.")
        row = Row(
            room=request.path.stem.removeprefix("bench_"),
            operator=name,
            shape=shape or str(list(first.shape)),
            dtype=dtype_name,
            direction=direction or getattr(ours, "direction", "forward"),
            device=device,
            threads=torch.get_num_threads(),
            method=timer.method,
            median={key: statistics.median(times) for key, times in seconds.items()},
            spread={key: timing.spread(times) for key, times in seconds.items()},
            peak_memory={
                key: timing.peak_memory(device, thunks[0]) for key, thunks in contestants.items() if key != FLOOR
            },
            bandwidth=None if bytes_moved is None else bytes_moved / statistics.median(seconds["ours"]),
            copy_bandwidth=timing.copy_bandwidth(device),
            targets={"plain": target} if isinstance(target, (int, float)) else dict(target or {}),
            rounds={key: len(times) for key, times in seconds.items()},
            flops=flops,
            gemm_rate=None if flops is None else timing.gemm_rate(device, getattr(torch, dtype_name)),
            tokens=tokens,
        )
        request.config.stash[_ROWS].append(row)
        ratios = {key: row.ratio(key) for key in ("plain", *row.rivals)}
        benchmark.extra_info.update(asdict(row), ratio=ratios, fraction_of_copy=row.fraction_of_copy)
        if os.environ.get("ELECTRA_FAST_ENFORCE_TARGETS") == "1":
            assert not missed_targets([row]), missed_targets([row])
        return Comparison(row.median)

    yield compare
    if device == "cuda":  # graphs hold their memory as long as they live
        gc.collect()
        torch.cuda.empty_cache()
