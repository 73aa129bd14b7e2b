"""Every kernel compiles for each generation of hardware without spills, within shared memory, with wide loads.

Two targets in the usual run, all seven under ELECTRA_FAST_TEST_ALL=1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed on this platform")

from tests.kernels import ahead_of_time

ROOT = Path(__file__).parents[2]
TARGETS = ahead_of_time.TARGETS if os.environ.get("ELECTRA_FAST_TEST_ALL") == "1" else ("sm_90", "gfx942")


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> list[dict]:
    """All cases of the rooms that this run asks for, from one process: this one holds Triton as an interpreter."""
    chosen = {item.callspec.params["room"] for item in request.session.items if item.path == Path(__file__)}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.ahead_of_time", *sorted(chosen), "--json", "--targets", *TARGETS]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.stdout, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.timeout(1800)  # the first one waits for all
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("room", ahead_of_time.rooms())
def test_kernels_compile(room: str, target: str, rows: list[dict]) -> None:
    ours = [ahead_of_time.Row(**row) for row in rows if (row["room"], row["target"]) == (room, target)]
    assert len({row.case for row in ours}) == len(ours) > 0
    assert not any(row.problems for row in ours), "\n" + ahead_of_time.format_table(ours)
