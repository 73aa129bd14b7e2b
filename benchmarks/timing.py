"""Times contestants in alternating rounds of one run, and measures what the times are compared with."""

from __future__ import annotations

import ctypes
import itertools
import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

Thunk = Callable[[], Any]

# Seconds of timing a row, shared out evenly; a GPU that nobody shares is steady.
_BUDGET = {"cpu": 1.2, "cuda": 0.3}
_FEWEST_ROUNDS, _MOST_ROUNDS = 7, 200
# Calls of seconds vary little from one to the next, and a suite of minutes has no time for seven: as many as fit.
_FEWEST_SLOW_ROUNDS, _SECONDS_FOR_SLOW = 3, 10.0
_SLOW = 1.0  # one call warms up enough, and tells how long the next will take
_LAUNCH_BOUND = 1e-3  # seconds; below it, Python may take longer to launch than the device to run: replay a CUDA graph


class Timer(NamedTuple):
    """How the contestants are timed: `measure[name]()` takes one round and returns seconds a call."""

    method: str  # "calls" by the host's clock; events around "launches" or around replays of a CUDA "graph"
    measure: dict[str, Callable[[], float]]


def make_timer(device: str, contestants: dict[str, list[Thunk]]) -> Timer:
    for thunks in contestants.values():
        for thunk in thunks[:2]:  # compiles, allocates, starts the threads
            start = time.perf_counter()
            thunk()
            if device == "cpu" and time.perf_counter() - start > _SLOW:
                break
    return _on_cuda(contestants) if device == "cuda" else _on_cpu(contestants)


def _on_cpu(contestants: dict[str, list[Thunk]]) -> Timer:
    # One counter for all, so that none finds in the cache what another has just read.
    turns = itertools.count()

    def measure(thunks: list[Thunk]) -> float:
        thunk = thunks[next(turns) % len(thunks)]
        start = time.perf_counter()
        result = thunk()
        seconds = time.perf_counter() - start
        del result  # freed outside
        return seconds

    return Timer("calls", {name: _bound(measure, thunks) for name, thunks in contestants.items()})


def _on_cuda(contestants: dict[str, list[Thunk]]) -> Timer:
    def run_all(thunks: list[Thunk]) -> None:
        for thunk in thunks:
            thunk()

    launches = {name: (_bound(run_all, thunks), len(thunks)) for name, thunks in contestants.items()}
    method = "launches"
    quickest = min(_between_events(launch, 1) / count for launch, count in launches.values())
    if quickest < _LAUNCH_BOUND and not any(_synchronises(thunks[0]) for thunks in contestants.values()):
        method = "graph"
        launches = {name: (_graph(launch).replay, count) for name, (launch, count) in launches.items()}

    def measure(launch: Thunk, repeats: int, count: int) -> float:
        return _between_events(launch, repeats) / (repeats * count)

    timers = {}
    for name, (launch, count) in launches.items():
        repeats = max(1, round(2e-3 / max(_between_events(launch, 1), 1e-6)))  # at least some 2 ms between the events
        timers[name] = _bound(measure, launch, repeats, count)
    return Timer(method, timers)


def _between_events(launch: Thunk, repeats: int) -> float:
    """Seconds of device time for `repeats` launches, behind one more that gives the host a start."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    launch()
    start.record()
    for _ in range(repeats):
        launch()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _synchronises(thunk: Thunk) -> bool:
    """Whether a call waits for the device, which no graph can hold; a failed capture would break later random draws."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        thunk()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


def _graph(launch: Thunk) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launch()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def choose_rounds(device: str, timer: Timer) -> dict[str, int]:
    """How often each contestant is timed within the budget, slow ones less often; ours is timed in every round."""
    seconds = {}
    for name, measure in timer.measure.items():
        taken: list[float] = []
        while len(taken) < 2 and sum(taken) < _SLOW:
            start = time.perf_counter()
            measure()
            taken.append(time.perf_counter() - start)
        seconds[name] = statistics.mean(taken)
    share = _BUDGET[device] / len(seconds)
    rounds = {}
    for name, each in seconds.items():
        fewest = max(_FEWEST_SLOW_ROUNDS, min(_FEWEST_ROUNDS, int(_SECONDS_FOR_SLOW / each)))
        rounds[name] = max(fewest, min(_MOST_ROUNDS, int(share / each)))
    return {name: min(count, rounds["ours"]) for name, count in rounds.items()}


def spread(seconds: list[float]) -> float:
    """The interquartile range over the median."""
    if len(seconds) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return (high - low) / middle


def peak_memory(device: str, thunk: Thunk) -> int | None:
    """Bytes that one call holds at its peak, its results included and its arguments not; None where none can tell."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        thunk()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else the call may live off what an earlier one freed
        Path("/proc/self/clear_refs").write_text("5")  # peak resident set := resident set
        before = _resident("VmHWM")
        thunk()
        return _resident("VmHWM") - before
    except (OSError, AttributeError, TypeError):  # no /proc, no malloc_trim, no C library to ask
        return None


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


@cache
def copy_bandwidth(device: str) -> float:
    """The most bytes a second, read and written, that a copy reached; the target's memory is in use already."""
    size = 2**30 if device == "cuda" else 2**26
    pairs = [(torch.randn(size // 4, device=device), torch.randn(size // 4, device=device)) for _ in range(2)]
    timer = make_timer(device, {"copy": [_bound(target.copy_, source) for target, source in pairs]})
    return 2 * size / min(timer.measure["copy"]() for _ in range(21))


@cache
def gemm_rate(device: str, dtype: torch.dtype) -> float:
    """The most FLOP/s that a square matrix product reached, in memory that is there already."""
    width = 8192 if device == "cuda" else 2048
    a, b, out = (torch.randn(width, width, device=device).to(dtype) for _ in range(3))
    timer = make_timer(device, {"product": [partial(torch.mm, a, b, out=out)]})
    return 2 * width**3 / min(timer.measure["product"]() for _ in range(7))
