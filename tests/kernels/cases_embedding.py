"""The kernels of embedding.py as their launcher compiles them: every size of tile, every dtype."""

from __future__ import annotations

from typing import Any

from electra_fast.kernels import embedding as kernels
from tests.kernels.ahead_of_time import FLOATS, Case

# Narrower than a Philox call's four columns; every row of the launch table from ELECTRA's widths (128, 768, 1024) on.
_WIDTHS = (1, 64, 128, 768, 1024, 2048, 4096, 8192)
_IDS = {
    "p_input_ids": "*i64",
    "p_token_type_ids": "*i64",
    "p_position_ids": "*i64",
    "p_seed": "*i64",
    "p_row_ids": "*i64",
}
_SIZES = {"num_tokens": "i32", "num_words": "i32", "num_types": "i32", "num_positions": "i32", "width": "i32"}
_RANDOM = {"drop_below": "i32", "scale": "fp32", "stream": "i32"}
_FLAGS = {"HAS_TYPE_IDS": True, "HAS_ROW_IDS": True, "HAS_DROPOUT": True}


def cases() -> list[Case]:
    return [case for dtype in FLOATS for case in (*_rows(dtype), *_tables(dtype))] + [_sum_blocks()]


def _rows(dtype: str) -> list[Case]:
    tables = dict.fromkeys(("p_word", "p_token_type", "p_position"), f"*{dtype}")
    forward = {**tables, "p_weight": "*fp32", "p_bias": "*fp32", **_IDS, "p_y": f"*{dtype}", "p_stats": "*fp32"}
    backward = {
        **tables,
        "p_dy": f"*{dtype}",
        "p_weight": "*fp32",
        "p_stats": "*fp32",
        **_IDS,
        "p_dx": f"*{dtype}",
        "p_sums": "*fp32",
    }
    result = []
    for width in _WIDTHS:
        result.append(
            _row_case(f"forward-{width}-{dtype}", kernels.forward_kernel, forward, width, kernels._FORWARD_TILE, {})
        )
        is_one_pass = width <= kernels._ONE_PASS_WIDTH
        passes = {"": (True, True)} if is_one_pass else {"dx-": (True, False), "sums-": (False, True)}
        for name, (writes_dx, sums) in passes.items():
            flags = {"WRITES_DX": writes_dx, "SUMS": sums, "SUMS_TYPES": is_one_pass}
            result.append(
                _row_case(
                    f"backward-{name}{width}-{dtype}",
                    kernels.backward_kernel,
                    backward,
                    width,
                    kernels._BACKWARD_TILE,
                    flags,
                )
            )
    return result


def _row_case(name: str, kernel: Any, pointers: dict[str, str], width: int, tile: int, flags: dict[str, bool]) -> Case:
    launch = kernels.launch_for(width, tile)
    is_aligned = width % 16 == 0
    return Case(
        name,
        kernel,
        {**pointers, **_SIZES, **_RANDOM, **({"block": "i32"} if flags else {"eps": "fp32"})},
        {**_FLAGS, **flags, "ROWS": launch.rows, "COLUMNS": launch.columns},
        {"num_warps": launch.warps},
        aligned=(*pointers, *(("width",) if is_aligned else ())),
        wide_loads=is_aligned,
        philox_elements=launch.rows * launch.columns,
    )


def _tables(dtype: str) -> list[Case]:
    pointers = {"p_sorted_ids": "*i16", "p_gradient": f"*{dtype}", "p_partial": "*fp32"}
    sizes = {"num_tokens": "i32", "width": "i32", "padding_idx": "i32"}
    constants = {"SEGMENT": kernels._SEGMENT, "COLUMNS": kernels._SUM_COLUMNS}
    sorted_tokens = {"p_dx": f"*{dtype}", "p_order": "*i64"}
    return [
        Case(
            f"sum-segments-{dtype}",
            kernels.sum_segments_kernel,
            {**pointers, **sorted_tokens, **sizes},
            constants | {"STAGES": kernels._STAGES},
            {"num_warps": 1},
            aligned=(*pointers, *sorted_tokens, "width"),
        ),
        Case(
            f"join-segments-{dtype}",
            kernels.join_segments_kernel,
            {**pointers, **sizes},
            constants | {"JOINED": kernels._JOINED},
            {"num_warps": kernels._WARPS},
            aligned=(*pointers, "width"),
            wide_loads=True,
        ),
    ]


def _sum_blocks() -> Case:
    return Case(
        "sum-blocks",
        kernels.sum_blocks_kernel,
        {"p_sums": "*fp32", "p_total": "*fp32", "num_blocks": "i32", "num_columns": "i32"},
        {"BLOCKS": kernels._JOINED, "COLUMNS": kernels._SUM_COLUMNS},
        {"num_warps": kernels._WARPS},
        aligned=("p_sums", "p_total", "num_columns"),
        wide_loads=True,
    )
