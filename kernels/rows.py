"""Blocks of rows [ROWS, COLUMNS]: dropout, layer normalisation and its gradient, as device functions.

A row lies whole in a block; columns beyond its width are masked by `m_column` and hold 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from electra_fast.kernels.philox import philox


@triton.jit
def dropout_factors(seed, b_row_ids, stream, drop_below, scale, COLUMNS: tl.constexpr):
    """What to multiply the rows by, float32 [ROWS, COLUMNS]: 0 where dropped, else `scale`; COLUMNS at least 4.

    `drop_below` is the threshold, an int64 (it may be 2^32).
    """
    o_call = tl.arange(0, COLUMNS // 4)[None, :]
    b_calls = b_row_ids[:, None] + tl.zeros_like(o_call).to(tl.int64)
    b_w0, b_w1, b_w2, b_w3 = philox(seed, b_calls, o_call, stream)
    b_words = tl.join(tl.join(b_w0, b_w2), tl.join(b_w1, b_w3))  # [ROWS, COLUMNS / 4, 2, 2], last two: w0 w1, w2 w3
    b_words = tl.reshape(b_words, [b_row_ids.shape[0], COLUMNS])
    return tl.where(b_words.to(tl.int64) < drop_below, 0.0, scale)


@triton.jit
def standardise(b_rows, m_column, num_columns, eps):
    """(x_hat, mean [ROWS], rstd [ROWS]) of float32 rows.

    The rounded mean is off by a little, which a second look measures: without it a constant row of large values would
    seem to vary.
    """
    b_mean = tl.sum(b_rows, 1) / num_columns
    b_centred = tl.where(m_column, b_rows - b_mean[:, None], 0.0)
    b_correction = tl.sum(b_centred, 1) / num_columns
    b_variance = tl.sum(b_centred * b_centred, 1) / num_columns - b_correction * b_correction
    b_rstd = 1.0 / tl.sqrt(tl.where(b_variance < 0.0, 0.0, b_variance) + eps)
    b_mean += b_correction
    return tl.where(m_column, (b_rows - b_mean[:, None]) * b_rstd[:, None], 0.0), b_mean, b_rstd


@triton.jit
def standardise_backward(b_dy, b_x_hat, b_weight, b_rstd, num_columns):
    """The gradient with respect to the rows that were standardised, then scaled by `b_weight` [COLUMNS]."""
    b_g = b_dy * b_weight[None, :]
    b_g_mean = tl.sum(b_g, 1) / num_columns
    b_g_x_hat_mean = tl.sum(b_g * b_x_hat, 1) / num_columns
    return b_rstd[:, None] * (b_g - b_g_mean[:, None] - b_x_hat * b_g_x_hat_mean[:, None])


@triton.jit
def sum_blocks(p_sums, o_column, m_column, num_blocks, num_columns, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr):
    """Columns of float32 [num_blocks, num_columns], added in one order: that of torch.sum depends on the GPU."""
    b_total = tl.zeros([BLOCKS, COLUMNS], tl.float32)
    for start in range(0, num_blocks, BLOCKS):
        o_block = (start + tl.arange(0, BLOCKS)).to(tl.int64)
        m_block = (o_block < num_blocks)[:, None] & m_column[None, :]
        b_total += tl.load(p_sums + o_block[:, None] * num_columns + o_column[None, :], mask=m_block, other=0.0)
    return tl.sum(b_total, 0)
