"""How the launchers of kernels/gelu.py compile their kernels."""

from __future__ import annotations

from electra_fast.kernels import gelu as kernels
from tests.kernels.ahead_of_time import FLOATS, Case

# ELECTRA-small's feed-forward width, and one that no vector load fits.
WIDTHS = (1024, 257)


def cases() -> list[Case]:
    rows, columns, warps = kernels._FORWARD
    backward_rows, backward_columns, backward_warps = kernels._BACKWARD
    forward_cases = [
        Case(
            f"forward-{width}-{dtype}",
            kernels.forward_kernel,
            {"p_x": f"*{dtype}", "p_bias": "*fp32", "p_y": f"*{dtype}", "num_rows": "i32"},
            constants={"WIDTH": width, "ROWS": rows, "COLUMNS": columns},
            options={"num_warps": warps},
            aligned=("p_x", "p_bias", "p_y"),
            wide_loads=width % 16 == 0,
        )
        for width in WIDTHS
        for dtype in FLOATS
    ]
    backward_cases = [
        Case(
            f"backward-{width}-{dtype}",
            kernels.backward_kernel,
            {
                "p_dy": f"*{dtype}",
                "p_x": f"*{dtype}",
                "p_bias": "*fp32",
                "p_dx": f"*{dtype}",
                "p_dbias": "*fp32",
                "num_rows": "i32",
            },
            constants={
                "WIDTH": width,
                "ROWS_PER_PROGRAM": kernels._ROWS_PER_PROGRAM,
                "ROWS": backward_rows,
                "COLUMNS": backward_columns,
            },
            options={"num_warps": backward_warps},
            aligned=("p_dy", "p_x", "p_bias", "p_dx", "p_dbias"),
            wide_loads=width % 16 == 0,
        )
        for width in WIDTHS
        for dtype in FLOATS
    ]
    return forward_cases + backward_cases
