"""`pytest benchmarks/ --benchmark-only` collects rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_benchmarks_are_collected():
    command = [sys.executable, "-m", "pytest", "benchmarks/", "--benchmark-only", "--collect-only", "-q"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [line for line in run.stdout.splitlines() if "::test_mask_tokens[" in line]
    assert len(rows) >= 2
