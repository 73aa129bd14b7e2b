"""What every benchmark shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _fixed_inputs() -> None:
    torch.manual_seed(0)


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., float]:
    """Times `call(*arguments)` over inputs in turn, so that no round finds its own in the cache; median seconds."""

    def measure(call: Callable[..., object], inputs: list[tuple[Any, ...]], rounds: int = 30) -> float:
        turns = iter(range(10**9))

        def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
            return inputs[next(turns) % len(inputs)], {}

        benchmark.pedantic(call, setup=setup, rounds=rounds, warmup_rounds=3)
        benchmark.extra_info["threads"] = torch.get_num_threads()
        return benchmark.stats.stats.median if benchmark.enabled else float("nan")

    return measure
