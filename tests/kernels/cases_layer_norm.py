"""How the launchers of kernels/layer_norm.py compile their kernels: dropout, a residual and all gradients."""

from __future__ import annotations

from typing import Any

from electra_fast.kernels import layer_norm as kernels
from tests.kernels.ahead_of_time import FLOATS, Case

_WIDTHS = (256, 768, 4096, 8192)  # one for each row of the launch table: ELECTRA-small and -base, and the widest
_SWITCHES = {"HAS_RESIDUAL": True, "HAS_DROPOUT": True, "HAS_ROW_IDS": True}
_GRADIENTS = {"NEEDS_DX": True, "NEEDS_DRESIDUAL": True, "NEEDS_PARAMETERS": True}


def _rows(dtype: str) -> dict[str, str]:
    return {
        "p_x": f"*{dtype}",
        "p_residual": f"*{dtype}",
        "p_weight": "*fp32",
        "p_stats": "*fp32",
        "p_seed": "*i64",
        "p_row_ids": "*i64",
        "num_rows": "i32",
        "drop_below": "i64",
        "scale": "fp32",
        "stream": "i32",
    }


def _forward(dtype: str) -> dict[str, str]:
    return {**_rows(dtype), "p_bias": "*fp32", "p_y": f"*{dtype}", "eps": "fp32"}


def _backward(dtype: str) -> dict[str, str]:
    gradients = dict.fromkeys(("p_dy", "p_dx", "p_dresidual"), f"*{dtype}")
    return {**_rows(dtype), **gradients, "p_partials": "*fp32", "rows_per_program": "i32"}


def _case(
    name: str, kernel: Any, signature: dict[str, str], constants: dict[str, Any], warps: int, **more: Any
) -> Case:
    aligned = tuple(argument for argument in signature if argument.startswith("p_"))
    return Case(name, kernel, signature, constants, {"num_warps": warps}, aligned, wide_loads=True, **more)


def cases() -> list[Case]:
    found = []
    for width in _WIDTHS:
        rows, columns, warps = kernels._launch(width)
        sizes = {"WIDTH": width, "ROWS": rows, "COLUMNS": columns}
        for dtype in FLOATS:
            found += [
                _case(
                    f"forward-{width}-{dtype}",
                    kernels.forward_kernel,
                    _forward(dtype),
                    _SWITCHES | sizes,
                    warps,
                    philox_elements=rows * columns,
                ),
                _case(
                    f"backward-{width}-{dtype}",
                    kernels.backward_kernel,
                    _backward(dtype),
                    _SWITCHES | _GRADIENTS | sizes,
                    warps,
                    philox_elements=rows * columns,
                ),
            ]
    signature = {"p_partials": "*fp32", "p_dweight": "*fp32", "p_dbias": "*fp32", "num_partials": "i32"}
    for width in _WIDTHS:
        rows, columns, warps = kernels._launch_add(width)
        sizes = {"WIDTH": width, "ROWS": rows, "COLUMNS": columns}
        found.append(_case(f"add-{width}", kernels.add_kernel, signature, sizes, warps))
    return found
