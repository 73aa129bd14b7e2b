"""Compiles the Triton kernels ahead of time, without a GPU, and looks at what comes out.

Each room lists its kernels in `cases_<room>.py`, a function `cases() -> list[Case]`: one case for each row of its
launch table and each dtype. `python -m tests.kernels.ahead_of_time [ROOM ...]` prints the table for all targets.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Container, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FLOATS = ("fp32", "bf16", "fp16")  # as signatures spell the dtypes that the kernels take

# The most shared memory a block may have: CUDA C++ Programming Guide, technical specifications per compute capability;
# for gfx942 the local data share of a compute unit, CDNA 3 ISA reference.
SHARED_MEMORY = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
    "gfx942": 64 * 1024,
}
TARGETS = tuple(SHARED_MEMORY)
FP16_TARGETS = ("sm_90", "gfx942")  # float16 becomes what bfloat16 becomes, so one of each vendor will do


@dataclass(frozen=True)
class Case:
    """A kernel as its launcher would compile it.

    Args:
        name: unique in its room, such as "forward-256-bf16".
        kernel: the function under `triton.jit`.
        signature: the type of each argument, such as "*bf16", "i32"; the names in `constants` need none.
        constants: the constexpr arguments.
        options: num_warps, num_stages.
        aligned: the arguments (pointers, sizes) that the launcher would find divisible by 16.
        wide_loads: whether it must load 128 bits at a time from global memory.
        philox_elements: how many random numbers one program draws in one turn of its loops, at four a Philox call; a
            kernel that uses one word of each call says four times its elements.
        tensor_cores: whether it must multiply on them (mma, wgmma, tcgen05; MFMA on AMD).
        targets: the targets it is for, where they need different constants.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, int] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    wide_loads: bool = False
    philox_elements: int | None = None
    tensor_cores: bool = False
    targets: tuple[str, ...] = TARGETS


@dataclass(frozen=True)
class Row:
    """What one case became on one target; None where the target has no such thing."""

    room: str
    case: str
    target: str
    num_bytes: int
    shared: int
    registers: int
    local_memory: int  # bytes; AMD's scratch
    spills: int  # NVIDIA: bytes of the stack; AMD: registers
    wide_loads: int
    tensor_cores: int  # instructions
    philox_calls: float  # in one program, loops counted once
    problems: list[str]


def rooms() -> list[str]:
    return sorted(path.stem.removeprefix("cases_") for path in Path(__file__).parent.glob("cases_*.py"))


def load(room: str) -> list[Case]:
    return importlib.import_module(f"tests.kernels.cases_{room}").cases()


def compile_case(room: str, case: Case, target: str) -> Row:
    """Compile one case; needs a process in which Triton is no interpreter."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(case.kernel.arg_names)
    described = {**case.signature, **dict.fromkeys(case.constants, "constexpr")}
    if set(described) != set(names):
        raise ValueError(f"{room}, {case.name}: the kernel takes {names}; the case describes {sorted(described)}")
    source = ASTSource(
        case.kernel,
        {name: described[name] for name in names},
        constexprs=dict(case.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned},
    )
    is_amd = target.startswith("gfx")
    hardware = GPUTarget("hip", target, 64) if is_amd else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    compiled = triton.compile(source, target=hardware, options=dict(case.options))
    binary = compiled.asm["hsaco" if is_amd else "cubin"]
    usage = _amd_usage(compiled.asm["amdgcn"]) if is_amd else _nvidia_usage(binary, compiled.asm["ptx"])
    row = Row(
        room,
        case.name,
        target,
        num_bytes=len(binary),
        shared=compiled.metadata.shared,
        philox_calls=_philox_calls(compiled.asm["ttir"]),
        problems=[],
        **usage,
    )
    row.problems.extend(_problems(case, row))
    return row


def _problems(case: Case, row: Row) -> list[str]:
    problems = []
    if row.spills or row.local_memory:
        problems.append(f"registers spill: {row.spills}, local memory {row.local_memory}")
    if row.shared > SHARED_MEMORY[row.target]:
        problems.append(f"{row.shared} bytes of shared memory, of {SHARED_MEMORY[row.target]}")
    if case.wide_loads and not row.wide_loads:
        problems.append("no load of 128 bits")
    if case.tensor_cores and not row.tensor_cores:
        problems.append("no tensor-core instruction")
    if case.philox_elements is not None:
        # The first round of a call may be shared by a row, and the last one leaves out what no word needs.
        allowed = case.philox_elements / 4
        if not 0.75 * allowed <= row.philox_calls <= allowed:
            problems.append(f"{row.philox_calls:g} Philox calls for {case.philox_elements} elements")
    return problems


def _philox_calls(ttir: str) -> float:
    """A Philox-4x32-10 call is ten rounds of two high products."""
    shapes = re.findall(r"\btt\.mulhiui\b.*?: (?:tensor<([\dx]+)xi32>|i32)", ttir)
    return sum(math.prod(map(int, shape.split("x"))) if shape else 1 for shape in shapes) / 20


def _nvidia_usage(cubin: bytes, ptx: str) -> dict[str, int]:
    """Registers and memory from the machine code; instructions from PTX, which has the same number of these and is
    there without disassembling for seconds."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return {
        "registers": usage["REG"],
        "local_memory": usage["LOCAL"],
        "spills": usage["STACK"],
        "wide_loads": len(re.findall(r"\bld\.global\S*\.(?:v4\.[bfu]32|v2\.[bfu]64|v8\.[bfu]32|v4\.[bfu]64)\b", ptx)),
        "tensor_cores": len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b", ptx)),
    }


def _amd_usage(assembly: str) -> dict[str, int]:
    def value(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1])

    return {
        "registers": value("vgpr_count"),
        "local_memory": value("private_segment_fixed_size"),
        "spills": value("vgpr_spill_count") + value("sgpr_spill_count"),
        "wide_loads": len(re.findall(r"\b(?:global|buffer)_load_dwordx4\b", assembly)),
        "tensor_cores": len(re.findall(r"\bv_mfma_", assembly)),
    }


def _compile_job(job: tuple[str, int, str]) -> Row:
    room, index, target = job
    case = load(room)[index]
    try:
        return compile_case(room, case, target)
    except Exception as error:  # whatever the compiler raises is a row of its own, beside those that compile
        problem = f"does not compile: {type(error).__name__}: {error}"
        return Row(room, case.name, target, 0, 0, 0, 0, 0, 0, 0.0, [problem])


def compile_all(chosen: list[str], targets: list[str], quick: Container[str] = ()) -> list[Row]:
    """Every case of these rooms for these targets, for those in `quick` the first of each kernel, on all cores."""
    jobs = []
    for room, target in itertools.product(chosen, targets):
        seen = set()
        for index, case in enumerate(load(room)):
            if "fp16" in case.name.split("-") and target not in FP16_TARGETS:
                continue
            if target in case.targets and not (target in quick and case.kernel.fn.__name__ in seen):
                seen.add(case.kernel.fn.__name__)
                jobs.append((room, index, target))
    # Forked, so that no worker imports PyTorch and Triton again.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("fork")) as pool:
        return list(pool.map(_compile_job, jobs))


def format_table(rows: list[Row]) -> str:
    titles = ("room", "case", "target", "bytes", "shared", "registers", "spills", "128-bit loads", "Philox", "problems")
    lines = [titles] + [
        (
            row.room,
            row.case,
            row.target,
            f"{row.num_bytes:,}",
            f"{row.shared:,}",
            str(row.registers),
            str(row.spills),
            str(row.wide_loads),
            f"{row.philox_calls:g}",
            "; ".join(row.problems),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.ahead_of_time", description=__doc__)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"default all: {' '.join(rooms())}")
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument(
        "--quick",
        nargs="+",
        default=(),
        choices=TARGETS,
        help="targets of each kernel once instead of each row of its launch table",
    )
    options = parser.parse_args(arguments)
    os.environ.pop("TRITON_INTERPRET", None)  # Triton reads it when it is first imported, which comes now
    rows = compile_all(options.rooms or rooms(), options.targets, options.quick)
    print(json.dumps([asdict(row) for row in rows]) if options.json else format_table(rows))
    return int(any(row.problems for row in rows))


if __name__ == "__main__":
    sys.exit(main())
