"""Memory that malloc keeps: a second step of large allocations faults no page."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from electra_fast.allocator import keep_freed_memory

# Fifty tensors of 4 MiB, freed and allocated again: the page faults of the
# second round, 1,024 a tensor where nothing is kept.
_SCRIPT = """
import resource, sys, torch
from electra_fast.allocator import keep_freed_memory
torch.set_num_threads(1)
assert sys.argv[1] == "default" or keep_freed_memory()
def fill():
    return [torch.full((1 << 20,), 1.0) for _ in range(50)]
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
_IS_GLIBC = platform.libc_ver()[0] == "glibc"


def faults(mode: str) -> int:
    run = subprocess.run([sys.executable, "-c", _SCRIPT, mode], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not _IS_GLIBC, reason="glibc's malloc")
def test_a_second_step_finds_its_memory():
    default = faults("default")
    if default < 10_000:
        pytest.skip("this system's pages are large")
    assert faults("kept") < default / 2


@pytest.mark.skipif(_IS_GLIBC, reason="another C library")
def test_nothing_happens_without_glibc():
    assert not keep_freed_memory()
