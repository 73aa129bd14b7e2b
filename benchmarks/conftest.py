"""What every benchmark shares: the fixtures `device`, `copies`, `forward_backward`, `liger` and `compare`."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

# Threads that spin while they wait slow whoever shares the machine; read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from benchmarks import inputs as benchmark_inputs
from benchmarks import timing
from benchmarks.inputs import Arguments, ForwardBackward


class _Clock:
    """What pytest-benchmark reads the time from: it goes on by what our own timer measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


_clock = _Clock()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "compare" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=_clock))


@pytest.fixture(autouse=True)
def _fixed_inputs() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def device() -> str:
    """Where the benchmarks run: "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def copies(device: str) -> Callable[..., list[Arguments]]:
    """`copies(make_inputs, num_bytes=None)`: argument tuples, more than the caches hold; see `inputs.copies`."""
    return partial(benchmark_inputs.copies, device)


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
def compare(request: pytest.FixtureRequest, benchmark: Any, device: str) -> Callable[..., Comparison]:
    def compare(
        name: str,
        *,
        ours: Callable[..., Any],
        plain: Callable[..., Any],
        inputs: list[Arguments],
        bytes_moved: int | None = None,
        rivals: Mapping[str, Callable[..., Any]] | None = None,
        target: float | None = None,
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
            target: the ratio to plain that is asked for. Missing it fails only under ELECTRA_FAST_ENFORCE_TARGETS=1.
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

        def time_the_others() -> None:
            for key, measure in timer.measure.items():
                if key != "ours":
                    seconds[key].append(measure())

        def time_ours() -> None:
            seconds["ours"].append(timer.measure["ours"]())
            _clock.now += seconds["ours"][-1]

        benchmark.pedantic(time_ours, setup=time_the_others, rounds=timing.choose_rounds(timer))
        comparison = Comparison({key: statistics.median(times) for key, times in seconds.items()})
        first = inputs[0][0]
        benchmark.extra_info.update(
            room=request.path.stem.removeprefix("bench_"),
            operator=name,
            shape=shape or str(list(first.shape)),
            dtype=dtype or str(first.dtype).removeprefix("torch."),
            direction=direction or getattr(ours, "direction", "forward"),
            device=device,
            threads=torch.get_num_threads(),
            method=timer.method,
            median=comparison.medians,
            spread={key: timing.spread(times) for key, times in seconds.items()},
            ratio={key: median / comparison.median for key, median in comparison.medians.items() if key != "ours"},
            target=target,
            copy_bandwidth=timing.copy_bandwidth(device),
            bandwidth=None if bytes_moved is None else bytes_moved / comparison.median,
            peak_memory={key: timing.peak_memory(device, thunks[0]) for key, thunks in contestants.items()},
        )
        if target is not None and os.environ.get("ELECTRA_FAST_ENFORCE_TARGETS") == "1":
            assert comparison.ratio >= target, f"{comparison.ratio:.2f} times as fast as plain, target {target}"
        return comparison

    return compare
