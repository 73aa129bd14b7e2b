"""The C++ kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, without Python.

The usual run takes the first two at once, on few inputs; ELECTRA_FAST_TEST_ALL=1 takes all, on more.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
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
    flags = ("-std=c++17", "-g1", "-fopenmp-simd", "-fno-trapping-math", "-pthread", "-DELECTRA_FAST_NO_CLONES", *flags)

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


def run(program: Path, seed: int, rounds: int, *results: Path, **options: str) -> None:
    environment = os.environ | options
    result = subprocess.run(
        [program, str(seed), str(rounds), *results], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{rounds} rounds" in result.stdout


def test_addresses_and_undefined_behaviour(tmp_path, rng_seed):
    level = "-O1" if RUN_ALL else "-O0"
    program = build(tmp_path, level, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    run(program, rng_seed, 30 if RUN_ALL else 2, ASAN_OPTIONS="detect_leaks=1:detect_stack_use_after_return=1")


@needs_all
def test_threads(tmp_path, rng_seed):
    # A plain program has no OpenMP runtime in it, so that parallel.h takes std::thread, which the sanitizer knows.
    program = build(tmp_path, "-O1", "-fsanitize=thread")
    run(program, rng_seed, 20, TSAN_OPTIONS="halt_on_error=1")


def read(path: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """The kernels' results in order: the kernel's name, the type, the values; type b, bfloat16, in float32."""
    with path.open("rb") as file:
        while line := file.readline().split():
            name, kind, size = line[0].decode(), line[1].decode(), int(line[2])
            if kind == "b":
                yield name, kind, (np.frombuffer(file.read(size), np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                yield name, kind, np.frombuffer(file.read(size), kind)


def assert_close(name: str, kind: str, got: np.ndarray, expected: np.ndarray, rounding: float) -> None:
    """Whole numbers are equal; float32 differs by `rounding` of the largest value, bfloat16 by its last bit.

    The gradient of a row of two is nothing but rounding, of values around 3 times 1 / their deviation: hence the
    absolute term.
    """
    assert got.shape == expected.shape, name
    if kind in "lB":
        # A random number that lies within rounding of a step of the distribution draws the neighbour: 1 row in 10,000.
        allowed = 1 + got.size // 50 if name in ("sample_tokens", "head_rows") else 0
        assert np.count_nonzero(got != expected) <= allowed, name
        return
    is_finite = np.isfinite(expected)
    assert np.array_equal(got[~is_finite], expected[~is_finite], equal_nan=True), name
    got, expected = got[is_finite], expected[is_finite]
    allowed = max(rounding, 2**-7 if kind == "b" else 0.0) * np.abs(expected).max(initial=0.0) + 10 * rounding
    assert np.abs(got - expected).max(initial=0.0) <= allowed, name


@needs_all
def test_optimised_as_it_is_shipped_for_each_instruction_set(tmp_path, rng_seed):
    """What a machine with AVX-512 never runs gives the same: AVX2, and plain x86-64."""
    # AVX2 adds in another order. Plain x86-64 also has no fused products, which shows where two values all but cancel.
    rounding = {4: 0.0, 3: 1e-5, 1: 1e-3} if platform.machine() == "x86_64" else {4: 0.0}
    found = {}
    for level in rounding:
        folder = tmp_path / str(level)
        folder.mkdir()
        program = build(folder, "-O3", "-UELECTRA_FAST_NO_CLONES", f"-DELECTRA_FAST_X86_LEVEL={level}")
        run(program, rng_seed, 100, folder / "results")
        found[level] = list(read(folder / "results"))
    for level, results in found.items():
        for (name, kind, expected), (*same, got) in zip(found[4], results, strict=True):
            assert [name, kind] == same
            assert_close(name, kind, got, expected, rounding[level])
