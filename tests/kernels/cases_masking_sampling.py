"""How the launchers of kernels/masking_sampling.py compile their kernels."""

from __future__ import annotations

from electra_fast.kernels import masking_sampling as kernels
from tests.kernels.ahead_of_time import Case

_DRAW = {
    "p_input_ids": "*i64",
    "p_seed": "*i64",
    "p_row_ids": "*i64",
    "p_keys": "*i64",
    "p_decisions": "*i8",
    "num_tokens": "i32",
    "replace_below": "i64",
    "stream": "i32",
}
_PICK = {
    "p_cu_seqlens": "*i32",
    "p_keys": "*i64",
    "p_picked": "*i32",
    "num_tokens": "i32",
    "num_sequences": "i32",
    "mask_prob": "fp32",
    "max_per_sequence": "i32",
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
}


def cases() -> list[Case]:
    (draw, draw_warps), (pick, pick_warps), (write, write_warps) = kernels._DRAW, kernels._PICK, kernels._WRITE
    never = (101, 102, 103)
    return [
        Case(
            f"draw-{'row-ids' if has_row_ids else 'numbered'}",
            kernels.draw_kernel,
            _DRAW,
            constants={"NEVER_MASK_IDS": never, "HAS_ROW_IDS": has_row_ids, "BLOCK": draw},
            options={"num_warps": draw_warps},
            aligned=("p_input_ids", "p_row_ids", "p_keys", "p_decisions"),
            philox_elements=4 * draw,  # a call a token: a key and a decision are two of its words
        )
        for has_row_ids in (False, True)
    ] + [
        Case(
            "pick",
            kernels.pick_kernel,
            _PICK,
            constants={"BLOCK": pick},
            options={"num_warps": pick_warps},
            aligned=("p_cu_seqlens", "p_keys", "p_picked"),
        ),
        Case(
            "write",
            kernels.write_kernel,
            _WRITE,
            constants={"BLOCK": write},
            options={"num_warps": write_warps},
            aligned=tuple(name for name in _WRITE if name.startswith("p_")),
        ),
    ]
