"""Compiles the kernels of masking_sampling ahead of time, without a GPU, and prints one JSON line: run by the tests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from electra_fast.kernels import masking_sampling as kernels

_DRAW = {
    "p_input_ids": "*i64",
    "p_seed": "*i64",
    "p_row_ids": "*i64",
    "p_keys": "*i64",
    "p_decisions": "*i8",
    "num_tokens": "i32",
    "replace_below": "i64",
    "stream": "i32",
    "NEVER_MASK_IDS": "constexpr",
    "HAS_ROW_IDS": "constexpr",
    "BLOCK": "constexpr",
}
_PICK = {
    "p_cu_seqlens": "*i32",
    "p_keys": "*i64",
    "p_picked": "*i32",
    "num_tokens": "i32",
    "num_sequences": "i32",
    "mask_prob": "fp32",
    "max_per_sequence": "i32",
    "BLOCK": "constexpr",
}
_WRITE = {
    "p_input_ids": "*i64",
    "p_picked": "*i32",
    "p_decisions": "*i8",
    "p_counts": "*i64",
    "p_masked_ids": "*i64",
    "p_positions": "*i64",
    "p_labels": "*i64",
    "p_weights": "*fp32",
    "num_tokens": "i32",
    "num_masked": "i32",
    "mask_token_id": "i32",
    "search_steps": "i32",
    "BLOCK": "constexpr",
}
_CASES = {
    "draw": (kernels.draw_kernel, _DRAW, {"NEVER_MASK_IDS": (101, 102, 103), "HAS_ROW_IDS": True}, kernels._DRAW),
    "pick": (kernels.pick_kernel, _PICK, {}, kernels._PICK),
    "write": (kernels.write_kernel, _WRITE, {}, kernels._WRITE),
}


def local_memory_instructions(cubin: bytes) -> int:
    """Loads and stores of local memory in the machine code: spilled registers."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        sass = subprocess.run([tool, "--dump-sass", file.name], check=True, capture_output=True, text=True).stdout
    assert "EXIT" in sass
    return len(re.findall(r"\b(?:LDL|STL)\b", sass))


def main() -> None:
    backend, arch, warp_size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    target = GPUTarget(backend, int(arch) if arch.isdigit() else arch, warp_size)
    results = {}
    for name, (kernel, signature, constants, (block, warps)) in _CASES.items():
        source = ASTSource(kernel, signature, constexprs=constants | {"BLOCK": block})
        compiled = triton.compile(source, target=target, options={"num_warps": warps})
        binary = compiled.asm["cubin" if backend == "cuda" else "hsaco"]
        spills = local_memory_instructions(binary) if backend == "cuda" else None
        results[name] = {"bytes": len(binary), "shared": compiled.metadata.shared, "spills": spills}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
