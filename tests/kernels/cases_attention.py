"""How the launchers of kernels/attention.py compile their kernels."""

from __future__ import annotations

from electra_fast.kernels import attention as kernels
from tests.kernels.ahead_of_time import Case

_POINTERS = {"p_cu_seqlens": "*i32", "p_seed": "*i64", "p_row_ids": "*i64", "p_lse": "*fp32", "p_delta": "*fp32"}
_SIZES = {"num_tokens": "i32", "num_sequences": "i32", "num_blocks": "i32"}
_NUMBERS = {"scale": "fp32", "last_dropped": "i32", "keep_scale": "fp32", "stream": "i32"}


def _case(name: str, kernel, launch: kernels._Launch, dtype: str, dim: int, dropout: bool) -> Case:
    described = _POINTERS | _SIZES | _NUMBERS
    constants = {
        "DROPOUT": dropout,
        "HAS_ROW_IDS": True,
        "DIM": dim,
        "BLOCK_M": launch.block_m,
        "BLOCK_N": launch.block_n,
        "BLOCK_D": dim,
    }
    signature = {
        argument: described.get(argument, f"*{dtype}" if argument.startswith("p_") else "i32")
        for argument in kernel.arg_names
        if argument not in constants
    }
    # Strides of heads of 64 and more are multiples of 16, and PyTorch aligns what it allocates.
    aligned = tuple(x for x in signature if x.startswith("p_") or x.endswith(("_token", "_head")))
    return Case(
        f"{name}-{dim}-{dtype}{'-dropout' if dropout else ''}",
        kernel,
        signature,
        constants,
        options={"num_warps": launch.num_warps, "num_stages": launch.num_stages},
        aligned=aligned,
        wide_loads=True,
        philox_elements=launch.block_m * launch.block_n if dropout else None,
    )


def cases() -> list[Case]:
    # fp16 differs from bf16 by instructions only, and the kernel without dropout is a part of the one with it.
    rows = [("fp32", 64, True), ("fp32", 128, True), ("bf16", 64, True), ("bf16", 128, True)]
    rows += [("fp16", 64, True), ("bf16", 64, False)]
    return [
        _case(name, kernel, table[4 if dtype == "fp32" else 2, dim], dtype, dim, dropout)
        for name, kernel, table in (
            ("forward", kernels.forward_kernel, kernels._FORWARD),
            ("dq", kernels.dq_kernel, kernels._DQ),
            ("dkdv", kernels.dkdv_kernel, kernels._DKDV),
        )
        for dtype, dim, dropout in rows
    ]
