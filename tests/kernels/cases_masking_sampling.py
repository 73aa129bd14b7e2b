"""How the launchers of kernels/masking_sampling.py compile their kernels."""

from __future__ import annotations

from typing import Any

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

_NUMBER_UNITS = {
    "p_cu_seqlens": "*i32",
    "p_keys": "*i64",
    "p_unit_starts": "*i1",
    "p_units": "*i32",
    "p_before": "*i32",
    "p_candidates": "*i32",
    "num_tokens": "i32",
    "num_sequences": "i32",
}
_ORDER_UNITS = {
    "p_cu_seqlens": "*i32",
    "p_keys": "*i64",
    "p_units": "*i32",
    "p_before": "*i32",
    "p_candidates": "*i32",
    "p_orders": "*i64",
    "p_sizes": "*i32",
    "p_picked": "*i32",
    "num_tokens": "i32",
    "num_sequences": "i32",
}
_PICK_UNITS = {
    "p_cu_seqlens": "*i32",
    "p_orders": "*i64",
    "p_sizes": "*i32",
    "p_picked": "*i32",
    "num_tokens": "i32",
    "num_sequences": "i32",
    "mask_prob": "fp32",
    "max_per_sequence": "i32",
}
_COPY = {"p_input_ids": "*i64", "p_corrupted_ids": "*i64", "p_is_replaced": "*i1", "num_tokens": "i32"}
_CORRUPT = {
    "p_input_ids": "*i64",
    "p_positions": "*i64",
    "p_sampled_ids": "*i64",
    "p_weights": "*fp32",
    "p_corrupted_ids": "*i64",
    "p_is_replaced": "*i1",
    "num_tokens": "i32",
    "num_slots": "i32",
}


def case(name: str, kernel: Any, signature: dict[str, str], launch: tuple[int, int], **more: Any) -> Case:
    """Its pointers aligned, as those of PyTorch's tensors are.

    Kernels that read tokens one after the other load 128 bits where 16 divides their number; in the others each thread
    has one element, or begins at a sequence's first token.
    """
    block, warps = launch
    constants = more.pop("constants", {}) | {"BLOCK": block}
    aligned = tuple(name for name in signature if name.startswith("p_"))
    if more.get("wide_loads"):
        aligned = (*aligned, "num_tokens")
    return Case(name, kernel, signature, constants, {"num_warps": warps}, aligned, **more)


def cases() -> list[Case]:
    draws = [
        case(
            f"draw-{'row-ids' if has_row_ids else 'numbered'}{'' if is_aligned else '-odd'}",
            kernels.draw_kernel,
            _DRAW,
            kernels._DRAW,
            constants={"NEVER_MASK_IDS": (101, 102, 103), "HAS_ROW_IDS": has_row_ids},
            philox_elements=4 * kernels._DRAW[0],  # a call a token: a key and a decision are two of its words
            wide_loads=is_aligned,
        )
        for has_row_ids in (False, True)
        for is_aligned in (False, True)
    ]
    return [
        *draws,
        case("pick", kernels.pick_kernel, _PICK, kernels._PICK),
        case("write", kernels.write_kernel, _WRITE, kernels._WRITE),
        case("number-units", kernels.number_units_kernel, _NUMBER_UNITS, kernels._PICK),
        case("order-units", kernels.order_units_kernel, _ORDER_UNITS, kernels._PICK),
        case("pick-units", kernels.pick_units_kernel, _PICK_UNITS, kernels._PICK),
        case("copy", kernels.copy_kernel, _COPY, kernels._COPY, wide_loads=True),
        case("copy-odd", kernels.copy_kernel, _COPY, kernels._COPY),
        case("corrupt", kernels.corrupt_kernel, _CORRUPT, kernels._CORRUPT),
    ]
