"""How the launcher of kernels/rtd_bce.py compiles its kernel."""

from __future__ import annotations

from electra_fast.kernels import rtd_bce as kernels
from tests.kernels.ahead_of_time import FLOATS, Case


def cases() -> list[Case]:
    block, warps = kernels._RTD_BCE
    aligned = ("p_logits", "p_replaced", "p_mask", "p_loss_sums", "p_counts", "p_histograms", "p_gradient")
    return [
        Case(
            f"{dtype}-{'gradient' if needs_gradient else 'evaluation'}{'-odd' if is_odd else ''}",
            kernels.rtd_bce_kernel,
            {
                "p_logits": f"*{dtype}",
                "p_replaced": "*i1",
                "p_mask": "*i1",
                "p_loss_sums": "*fp32",
                "p_counts": "*i64",
                "p_histograms": "*i64",
                "p_gradient": f"*{dtype}",
                "num_tokens": "i32",
            },
            constants={"NUM_HISTOGRAMS": kernels._HISTOGRAMS, "NEEDS_GRADIENT": needs_gradient, "BLOCK": block},
            options={"num_warps": warps},
            aligned=aligned if is_odd else (*aligned, "num_tokens"),
            wide_loads=not is_odd,
        )
        for dtype in FLOATS
        for needs_gradient in (True, False)
        for is_odd in (False, True)
    ]
