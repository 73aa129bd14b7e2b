"""Philox-4x32-10 for kernels; electra_fast/ops/random.py has the facts."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox(seed, b_row_ids, column_block, stream):
    """The four uint32 words for each row id (int64); `column_block` and `stream` are ints, scalars or blocks.

    `tl.philox` given 64-bit counter words would silently run Philox-4x64.
    """
    b_zero = tl.zeros_like(b_row_ids)
    b_column = (b_zero + column_block).to(tl.uint32)
    b_low = (b_row_ids & 0xFFFFFFFF).to(tl.uint32)
    b_high = ((b_row_ids >> 32) & 0xFFFFFFFF).to(tl.uint32)
    b_stream = (b_zero + stream).to(tl.uint32)
    return tl.philox(seed, b_column, b_low, b_high, b_stream)
