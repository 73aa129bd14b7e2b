"""Every kernel compiles for each generation of hardware without spills, within shared memory, with wide loads.

The usual run compiles each kernel once for two targets; ELECTRA_FAST_TEST_ALL=1 every row of the launch tables for five
and each kernel once for two more, which have the shared memory of one of these.
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
RUN_ALL = os.environ.get("ELECTRA_FAST_TEST_ALL") == "1"
TARGETS = ahead_of_time.TARGETS if RUN_ALL else ("sm_90", "gfx942")
QUICK = ("sm_89", "sm_120") if RUN_ALL else TARGETS

PLANTED = """
import json
import triton
import triton.language as tl
from tests.kernels.ahead_of_time import Case, compile_case

@triton.jit
def hold_kernel(p_x, BLOCK: tl.constexpr):
    o_x = tl.arange(0, BLOCK)
    b_x = tl.load(p_x + o_x)
    tl.store(p_x + o_x, b_x - tl.sum(b_x))

@triton.jit
def draw_kernel(p_x, seed, BLOCK: tl.constexpr):
    o_x = tl.arange(0, BLOCK)
    b_word = tl.philox(seed, o_x.to(tl.uint32), 0, 0, 0)[0]
    tl.store(p_x + o_x, tl.load(p_x + o_x) + b_word.to(tl.float32))

def problems(target, kernel, block, warps, aligned=(), wide_loads=False, philox_elements=None):
    signature = {"p_x": "*fp32"} | ({"seed": "i64"} if kernel is draw_kernel else {})
    case = Case("planted", kernel, signature, {"BLOCK": block}, {"num_warps": warps}, aligned, wide_loads,
                philox_elements)
    return compile_case("planted", case, target).problems

print(json.dumps({
    "good": problems("sm_90", draw_kernel, 512, 4, ("p_x",), True, 4 * 512),
    "spills": problems("sm_80", hold_kernel, 8192, 1, ("p_x",)),
    "spills on AMD": problems("gfx942", hold_kernel, 32768, 1, ("p_x",)),
    "not aligned": problems("sm_90", draw_kernel, 512, 4, (), True),
    "a call for each": problems("sm_90", draw_kernel, 512, 4, ("p_x",), True, 512),
}))
"""


def run_compiled(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs Python where Triton compiles: in this process it may be an interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    run = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.stdout, run.stderr
    return run


@pytest.fixture(scope="session")
def compiled(request: pytest.FixtureRequest) -> list[ahead_of_time.Row]:
    """All cases of the rooms that this run asks for, from one process."""
    items = [item for item in request.session.items if getattr(item, "originalname", "") == "test_kernels_compile"]
    rooms = sorted({item.callspec.params["room"] for item in items})
    options = ["--json", "--quick", *QUICK, "--targets", *TARGETS]
    run = run_compiled(["-m", "tests.kernels.ahead_of_time", *rooms, *options])
    return [ahead_of_time.Row(**row) for row in json.loads(run.stdout.splitlines()[-1])]


@pytest.mark.timeout(1800)  # the first one waits for all
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("room", ahead_of_time.rooms())
def test_kernels_compile(room: str, target: str, compiled: list[ahead_of_time.Row]) -> None:
    ours = [row for row in compiled if (row.room, row.target) == (room, target)]
    assert len({row.case for row in ours}) == len(ours) > 0
    assert not any(row.problems for row in ours), "\n" + ahead_of_time.format_table(ours)


def test_what_is_wrong_with_a_kernel_is_seen(tmp_path: Path) -> None:
    script = tmp_path / "planted.py"
    script.write_text(PLANTED)
    problems = json.loads(run_compiled([str(script)]).stdout.splitlines()[-1])
    assert problems["good"] == []
    for name, problem in [
        ("spills", "registers spill"),
        ("spills on AMD", "registers spill"),
        ("not aligned", "no load of 128 bits"),
        ("a call for each", "Philox calls for 512 elements"),
    ]:
        assert any(problem in each for each in problems[name]), (name, problems)
