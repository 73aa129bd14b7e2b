"""The C++ kernels, without the binding, built for the other platforms by the compiler in the package ziglang.

That package takes 411 MB, so it is in the extra `release`, and building takes minutes: ELECTRA_FAST_TEST_ALL=1 does it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.csrc.test_sanitizers import ROOT, SOURCES, assert_close, read

RUN_ALL = os.environ.get("ELECTRA_FAST_TEST_ALL") == "1"
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
DRIVER, *KERNELS = SOURCES
# As setup.py. That Clang leaves a loop scalar, which -Wpass-failed tells, is slower and not wrong.
FLAGS = ["-std=c++17", "-O3", "-fopenmp-simd", "-fno-trapping-math", "-fvisibility=hidden"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-pass-failed"]

pytestmark = [
    pytest.mark.skipif(not RUN_ALL, reason="takes minutes; set ELECTRA_FAST_TEST_ALL=1"),
    pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="needs pip install 'electra-fast[release]'"),
    pytest.mark.timeout(3600),
]


def build(folder: Path, target: str, sources: list[Path], *flags: str) -> list[Path]:
    """Object files, on all cores; any warning is an error."""

    def compile_source(source: Path) -> Path:
        made = folder / f"{target}-{source.stem}.o"
        zig(target, *FLAGS, *flags, f"-I{ROOT / 'csrc'}", "-c", source, "-o", made)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_source, sources))


def zig(target: str, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "ziglang", "c++", "-target", target, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("target", "magic"),
    [
        ("aarch64-linux-gnu.2.28", b"\x7fELF\x02\x01"),  # wheels for manylinux_2_28
        ("riscv64-linux-gnu", b"\x7fELF\x02\x01"),
        ("x86_64-macos.11.0", b"\xcf\xfa\xed\xfe\x07\x00\x00\x01"),
        ("aarch64-macos.11.0", b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01"),
        ("x86_64-windows-gnu", b"\x64\x86"),
    ],
)
def test_kernels_compile_without_warnings(target: str, magic: bytes, tmp_path: Path) -> None:
    for made in build(tmp_path, target, KERNELS, *WARNINGS):
        assert made.read_bytes().startswith(magic)


@pytest.mark.skipif(EMULATOR is None, reason="needs qemu-user")
def test_arm_computes_what_x86_computes(tmp_path: Path, rng_seed: int) -> None:
    """Both by one compiler with one standard library, whose distributions then draw the same inputs."""
    found = []
    for target, runner in (("x86_64-linux-musl", []), ("aarch64-linux-musl", [EMULATOR])):
        program, results = tmp_path / target, tmp_path / f"{target}.results"
        zig(target, *build(tmp_path, target, SOURCES), "-static", "-o", program)
        command = [*runner, program, str(rng_seed), "40", results]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        found.append(list(read(results)))
    for (name, kind, expected), (*same, got) in zip(*found, strict=True):
        assert [name, kind] == same
        assert_close(name, kind, got, expected, 1e-3)  # ARM fuses products into sums, plain x86-64 can't
