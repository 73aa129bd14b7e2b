"""Shared fixtures: fresh seeds that are printed, where real data is, Triton's interpreter where there is no GPU."""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Threads that spin while they wait make tests on a shared machine ten times slower; read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Workers of pytest-xdist share the cores. Tests about threads set a number of their own.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
import torch

# Triton reads this when it is first imported, which no test does before this file is loaded.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A machine with a GPU may lack the command line's libraries: what needs them is then left out.
_OF_THE_COMMAND_LINE = [
    "estimation",
    "fuzz",
    "pretraining",
    "serving",
    *(f"test_{name}.py" for name in ("cli", "demo", "docs", "errors")),
]
_OF_THE_COMMAND_LINE += [f"test_{name}.py" for name in ("bench", "info", "inspect", "paths", "security", "verify")]
collect_ignore = [] if importlib.util.find_spec("jsonargparse") else _OF_THE_COMMAND_LINE


def pytest_report_header() -> str | None:
    return f"jsonargparse is not installed; left out: {', '.join(collect_ignore)}" if collect_ignore else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first: one begun last would run while the other workers have nothing left to do."""
    longest, quickest = ("test_packaging.py", "test_docs.py"), ("data", "ops")

    def order(item: pytest.Item) -> tuple[bool, bool]:
        inside = (
            item.path.relative_to(Path(__file__).parent).parts if Path(__file__).parent in item.path.parents else ""
        )
        return not inside or inside[0] not in longest, bool(inside) and inside[0] in quickest

    items.sort(key=order)


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection of garbage, as every run of Trainer asks for, sees it again."""
    if "transformers" in sys.modules:
        from electra_fast import patch_transformers

        with patch_transformers():  # remembers the modules named transformers while they can be seen
            pass
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng_seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed for each test and run; set ELECTRA_FAST_TEST_SEED to repeat one. Printed when the test fails."""
    given = os.environ.get("ELECTRA_FAST_TEST_SEED")
    seed = int(given) if given else random.SystemRandom().randrange(2**31)
    print(f"rng_seed of {request.node.nodeid}: {seed} (repeat with ELECTRA_FAST_TEST_SEED={seed})")
    torch.manual_seed(seed)
    return seed


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Finds a file of real text or tasks by its path in $ELECTRA_FAST_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("ELECTRA_FAST_DATA") or Path(__file__).parents[2] / "shared" / "data")

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"real data not found: {folder / name}; set ELECTRA_FAST_DATA to a folder that holds it")
        return folder / name

    return find


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """Runs leave a stand-in for curves.png: to draw it takes more than half of the time of one of a few steps."""
    from electra_fast.pretraining import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "plot_curves", lambda _, picture: picture.write_bytes(b"a picture"))
        yield


@pytest.fixture(autouse=True)
def _skip_gpu_tests_without_a_gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
