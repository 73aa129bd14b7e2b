"""A pretraining step of ELECTRA-small and -base, forward and backward: ours beside the rivals (DESIGN, section 7).

`plain` is benchmarks/plain.py, `strong` the same with the vocabulary projection at masked positions only, compiled by
torch.compile, and `floor` the step's matrix products alone. On a GPU also `stock`, transformers' two classes, and the
same compiled, which on a CPU takes minutes to compile and computes more than `strong`. No optimizer.

    python -m pytest benchmarks/bench_step.py -s

also shows page faults, where ours spends its time, and what a step takes at its peak.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import breakdown, timing
from benchmarks.floor import pretraining_floor
from benchmarks.rivals import CLS, CONFIGS, SEP, Contestant, Contestants, masked_of
from electra_fast.allocator import keep_freed_memory
from electra_fast.pretraining.config import OptimizerConfig
from electra_fast.pretraining.optimizer import build_optimizer

try:
    import resource
except ImportError:  # Windows
    resource = None

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}[DEVICE]
# Size: sequences, tokens in each.
SHAPES = {"cpu": {"small": (16, 128), "base": (4, 512)}, "cuda": {"small": (128, 128), "base": (32, 512)}}
# Of whole models, so that each costs a minute or two to compile.
RIVALS = {
    "cpu": {"small": ["strong"], "base": ["strong"]},
    "cuda": {"small": ["strong", "stock", "stock compiled"], "base": ["stock", "stock compiled"]},
}
# What is asked for: on two CPU cores, in float32; and on a GPU.
TARGETS = {
    "cpu": {"small": {"plain": 2.7, "strong": 1.6, "floor": 1 / 1.25}, "base": {"strong": 1.3}},
    "cuda": {"small": {"stock compiled": 1.5}, "base": {"stock compiled": 1.5}},
}
QUICK = (2, 32)  # for a look without measuring


def make_text(sequences: int, length: int) -> tuple[Tensor]:
    ids = torch.randint(1000, 30522, (sequences, length), device=DEVICE)
    ids[:, 0], ids[:, -1] = CLS, SEP
    return (ids,)


def page_faults(step: Callable[[], Any], steps: int = 3) -> float:
    """Minor page faults a step of this process, once it holds what a step needs."""
    step()  # the measurement before this one may have given all memory back
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps


def with_optimizer(contestant: Contestant, ids: Tensor) -> Callable[[], None]:
    """The step and the update that `electra-fast pretrain` makes, at a rate that leaves the weights as they are."""
    optimizer = build_optimizer(contestant.model, OptimizerConfig(lr=1e-12))

    def step() -> None:
        contestant.step(ids)
        optimizer.step()

    step()
    return step


@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", CONFIGS)
def test_pretraining_step(compare, copies, benchmark, size):
    sequences, length = SHAPES[DEVICE][size] if benchmark.enabled else QUICK
    contestants = Contestants(size, DEVICE, DTYPE, compiled=benchmark.enabled)
    made = {name: contestants[name] for name in ("ours", "plain", *RIVALS[DEVICE][size])}
    steps = {name: each.step for name, each in made.items()}
    floor = pretraining_floor(CONFIGS[size](), sequences, length, masked_of(length), DEVICE, DTYPE)
    inputs = copies(partial(make_text, sequences, length))
    compare(
        "pretraining step",
        ours=steps.pop("ours"),
        plain=steps.pop("plain"),
        rivals=steps | {"floor": floor},
        inputs=inputs,
        shape=f"ELECTRA-{size}, {sequences} x {length}, dropout 0.1",
        dtype=str(DTYPE).removeprefix("torch."),
        direction="forward + backward",
        flops=floor.flops,
        tokens=sequences * length,
        target=TARGETS[DEVICE][size],
    )
    if size != "small":
        return
    ids = inputs[0][0]
    shares = {name: breakdown.seconds_by_group(with_optimizer(made[name], ids), DEVICE) for name in ("ours", "plain")}
    benchmark.extra_info["breakdown"] = shares
    for name, groups in shares.items():
        print(name, *(f"{group} {1e3 * seconds:.1f} ms" for group, seconds in groups.items()), sep="\n  ")
    if DEVICE == "cuda":
        counts = {name: breakdown.launches(partial(each.step, ids)) for name, each in made.items()}
        benchmark.extra_info["launches"] = counts
        print("launches of kernels and graphs:", counts)
    elif resource is not None:
        for name, each in made.items():
            print(f"{page_faults(partial(each.step, ids), 1):,.0f} page faults a step of {name}")


def peak_of(name: str, sequences: int, length: int, compiled: bool) -> int | None:
    """Bytes that a step of one contestant takes at its peak. For a process of its own: in one that has run other steps
    it would also count the holes that they left in the heap."""
    keep_freed_memory()
    model, step = Contestants("small", DEVICE, DTYPE, compiled=compiled)[name]
    step(*make_text(sequences, length))  # compiles, starts the threads
    model.zero_grad()
    return timing.peak_memory(DEVICE, partial(step, *make_text(sequences, length)))


@pytest.mark.timeout(900)
def test_peak_memory(benchmark):
    """What a step of 64 x 128 takes at its peak, gradients included.

    Strong, which takes minutes to compile, only under ELECTRA_FAST_TEST_ALL=1; the step's row has it at another batch.
    """
    sequences, length = (64, 128) if benchmark.enabled else QUICK
    peaks = {}
    for name in ("ours", "plain", *(["strong"] if os.environ.get("ELECTRA_FAST_TEST_ALL") == "1" else [])):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            peaks[name] = process.submit(peak_of, name, sequences, length, benchmark.enabled).result()
    benchmark.pedantic(Contestants("small", DEVICE, DTYPE, compiled=False)["ours"].step, make_text(sequences, length))
    if None in peaks.values():
        pytest.skip("this system does not tell its peak")
    print({name: f"{peak / 2**20:,.0f} MiB" for name, peak in peaks.items()}, f"a step of {sequences} x {length}")
    print(f"{peaks['ours'] / peaks['plain']:.2f} of plain's; at most 0.33 asked")
    if "strong" in peaks:
        print(f"{peaks['ours'] / peaks['strong']:.2f} of strong's; at most 0.70 asked")
    benchmark.extra_info.update(peak_memory=peaks, shape=f"ELECTRA-small, {sequences} x {length}")
