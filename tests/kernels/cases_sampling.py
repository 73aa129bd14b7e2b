"""The kernel of sample_tokens as its launcher compiles it: small vocabularies, ELECTRA's, and one of 50,368."""

from __future__ import annotations

from electra_fast.kernels import sampling
from tests.kernels.ahead_of_time import FLOATS, Case


def cases() -> list[Case]:
    return [_case(vocab_size, dtype) for vocab_size in (100, 30522, 50368) for dtype in FLOATS]


def _case(vocab_size: int, dtype: str) -> Case:
    rows, block, tiles = sampling.blocks(vocab_size)
    aligned = ["p_logits", "p_seed", "p_row_ids", "p_disallow", "p_sampled"]
    if vocab_size % 16 == 0:
        aligned += ["vocab_size", "row_stride"]
    return Case(
        name=f"sample-{vocab_size}-{dtype}",
        kernel=sampling.sample_kernel,
        signature={
            "p_logits": f"*{dtype}",
            "p_seed": "*i64",
            "p_row_ids": "*i64",
            "p_disallow": "*i64",
            "p_sampled": "*i64",
            "num_rows": "i32",
            "vocab_size": "i32",
            "row_stride": "i32",
            "inverse_temperature": "fp32",
            "stream": "i32",
        },
        constants={"HAS_ROW_IDS": True, "HAS_DISALLOW": True, "ROWS": rows, "BLOCK": block, "TILES": tiles},
        options={"num_warps": sampling._WARPS},
        aligned=tuple(aligned),
        wide_loads=vocab_size % 16 == 0,
        philox_elements=4 * rows,  # two words of each call are used
    )
