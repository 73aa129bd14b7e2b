"""The C++ kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, without Python.

The usual run takes the first two at once, on few inputs; ELECTRA_FAST_TEST_ALL=1 takes all, on more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [Path(__file__).with_name("driver.cpp")] + [
    path for path in sorted((ROOT / "csrc").glob("*.cpp")) if path.name != "bind.cpp"
]
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
RUN_ALL = os.environ.get("ELECTRA_FAST_TEST_ALL") == "1"

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(os.name != "posix", reason="sanitizers are for Linux and macOS"),
    pytest.mark.timeout(1800),
]
needs_all = pytest.mark.skipif(not RUN_ALL, reason="takes minutes; set ELECTRA_FAST_TEST_ALL=1")


def build(folder: Path, *flags: str) -> Path:
    """The driver and all kernels, each compiled on a core of its own."""
    flags = ("-std=c++17", "-g", "-fopenmp-simd", "-fno-trapping-math", "-pthread", "-DELECTRA_FAST_NO_CLONES", *flags)

    def compile_source(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        command = [COMPILER, *flags, f"-I{ROOT / 'csrc'}", "-c", source, "-o", target]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_source, SOURCES))
    program = folder / "driver"
    result = subprocess.run([COMPILER, *flags, *objects, "-o", program, "-ldl"], capture_output=True, text=True)
    if "cannot find -l" in result.stderr:
        pytest.skip(f"the compiler has no such sanitizer: {result.stderr.splitlines()[0]}")
    assert result.returncode == 0, result.stderr
    return program


def run(program: Path, seed: int, rounds: int, **options: str) -> None:
    environment = os.environ | options
    result = subprocess.run([program, str(seed), str(rounds)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{rounds} rounds" in result.stdout


def test_addresses_and_undefined_behaviour(tmp_path, rng_seed):
    level = "-O1" if RUN_ALL else "-O0"
    program = build(tmp_path, level, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    run(program, rng_seed, 60 if RUN_ALL else 2, ASAN_OPTIONS="detect_leaks=1:detect_stack_use_after_return=1")


@needs_all
def test_threads(tmp_path, rng_seed):
    # A plain program has no OpenMP runtime in it, so that parallel.h takes std::thread, which the sanitizer knows.
    program = build(tmp_path, "-O1", "-fsanitize=thread")
    run(program, rng_seed, 20, TSAN_OPTIONS="halt_on_error=1")


@needs_all
def test_optimised_as_it_is_shipped(tmp_path, rng_seed):
    run(build(tmp_path, "-O3", "-UELECTRA_FAST_NO_CLONES"), rng_seed, 100)
