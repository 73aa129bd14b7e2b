"""dropout_add_layer_norm and layer_norm on the device: one launch forward, two backward.

electra_fast/ops/layer_norm.py says what is computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from electra_fast.kernels.rows import dropout_factors, standardise, standardise_backward, sum_blocks
from electra_fast.ops.random import threshold

# Launch parameters: (widest row, padded to a power of two; elements a program, at least one row; warps). Reasoned, not
# measured: no GPU has run them yet.
_LAUNCH = (
    (512, 2048, 4),  # several rows a program: 16 elements a thread keep enough loads in flight
    (1024, 1024, 4),  # one row: 8 elements a thread are one 128-bit load of bfloat16
    (4096, 4096, 8),  # 16 elements a thread, before the accumulators of the backward spill
    (8192, 8192, 16),
)
# Programs of the backward, whatever the GPU, so that the bits don't depend on it: two to four for each multiprocessor,
# each adding up the parameters' gradients of its own rows.
_BACKWARD_PROGRAMS = 512
_ADD_ELEMENTS, _ADD_WARPS = 2048, 4  # a program of the sum over them: 16 elements a thread


def _launch(width: int) -> tuple[int, int, int]:
    """(rows a program, padded width, warps)."""
    columns = max(triton.next_power_of_2(width), 4)  # Philox makes four numbers a call
    elements, warps = next((elements, warps) for widest, elements, warps in _LAUNCH if columns <= widest)
    return max(elements // columns, 1), columns, warps


def _launch_add(width: int) -> tuple[int, int, int]:
    """(partial sums at a time, columns a program, warps)."""
    # About 32 programs, since the sums are small and wait for memory; at least 64 bytes of a row at a time.
    columns = min(max(triton.next_power_of_2(2 * width) // 32, 16), 256)
    return _ADD_ELEMENTS // columns, columns, _ADD_WARPS


@triton.jit
def load_total(
    p_x,
    p_residual,
    p_seed,
    p_row_ids,
    o_row,
    m_row,
    o_element,
    m_element,
    drop_below,
    scale,
    stream,
    HAS_RESIDUAL: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    HAS_ROW_IDS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """(dropout(x) + residual, dropout's factors), float32 [ROWS, COLUMNS]; one factor of 1 where nothing drops."""
    b_total = tl.load(p_x + o_element, mask=m_element, other=0.0).to(tl.float32)
    b_factors = tl.full([1, 1], 1.0, tl.float32)
    if HAS_DROPOUT:
        b_row_ids = tl.load(p_row_ids + o_row, mask=m_row, other=0) if HAS_ROW_IDS else o_row
        b_factors = dropout_factors(tl.load(p_seed), b_row_ids, stream, drop_below, scale, COLUMNS)
        b_total *= b_factors
    if HAS_RESIDUAL:
        b_total += tl.load(p_residual + o_element, mask=m_element, other=0.0).to(tl.float32)
    return b_total, b_factors


@triton.jit(do_not_specialize=["num_rows", "drop_below", "stream"])
def forward_kernel(
    p_x,
    p_residual,
    p_weight,
    p_bias,
    p_seed,
    p_row_ids,
    p_y,
    p_stats,
    num_rows,
    drop_below,
    scale,
    eps,
    stream,
    HAS_RESIDUAL: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    HAS_ROW_IDS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y, and the mean and rstd of each row."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_column = tl.arange(0, COLUMNS)
    m_row, m_column = o_row < num_rows, o_column < WIDTH
    o_element = o_row[:, None] * WIDTH + o_column[None, :]
    m_element = m_row[:, None] & m_column[None, :]
    b_total, _ = load_total(
        p_x,
        p_residual,
        p_seed,
        p_row_ids,
        o_row,
        m_row,
        o_element,
        m_element,
        drop_below,
        scale,
        stream,
        HAS_RESIDUAL,
        HAS_DROPOUT,
        HAS_ROW_IDS,
        COLUMNS,
    )
    b_x_hat, b_mean, b_rstd = standardise(b_total, m_column[None, :], WIDTH, eps)
    b_weight = tl.load(p_weight + o_column, mask=m_column, other=0.0)
    b_bias = tl.load(p_bias + o_column, mask=m_column, other=0.0)
    b_y = b_x_hat * b_weight[None, :] + b_bias[None, :]
    tl.store(p_y + o_element, b_y.to(p_y.dtype.element_ty), mask=m_element)
    tl.store(p_stats + o_row, b_mean, mask=m_row)
    tl.store(p_stats + num_rows + o_row, b_rstd, mask=m_row)


@triton.jit(do_not_specialize=["num_rows", "rows_per_program", "drop_below", "stream"])
def backward_kernel(
    p_dy,
    p_x,
    p_residual,
    p_weight,
    p_stats,
    p_seed,
    p_row_ids,
    p_dx,
    p_dresidual,
    p_partials,
    num_rows,
    rows_per_program,
    drop_below,
    scale,
    stream,
    HAS_RESIDUAL: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    HAS_ROW_IDS: tl.constexpr,
    NEEDS_DX: tl.constexpr,
    NEEDS_DRESIDUAL: tl.constexpr,
    NEEDS_PARAMETERS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx and dresidual of a program's rows, and their part of dweight and dbias: p_partials [programs, 2, WIDTH]."""
    i_program = tl.program_id(0).to(tl.int64)
    o_column = tl.arange(0, COLUMNS)
    m_column = o_column < WIDTH
    b_weight = tl.load(p_weight + o_column, mask=m_column, other=0.0)
    b_dweight = tl.zeros([ROWS, COLUMNS], tl.float32)
    b_dbias = tl.zeros([ROWS, COLUMNS], tl.float32)
    begin = i_program * rows_per_program
    end = tl.minimum(begin + rows_per_program, num_rows)
    for start in range(begin, end, ROWS):
        o_row = start + tl.arange(0, ROWS)
        m_row = o_row < end
        o_element = o_row[:, None] * WIDTH + o_column[None, :]
        m_element = m_row[:, None] & m_column[None, :]
        b_dy = tl.load(p_dy + o_element, mask=m_element, other=0.0).to(tl.float32)
        b_total, b_factors = load_total(
            p_x,
            p_residual,
            p_seed,
            p_row_ids,
            o_row,
            m_row,
            o_element,
            m_element,
            drop_below,
            scale,
            stream,
            HAS_RESIDUAL,
            HAS_DROPOUT,
            HAS_ROW_IDS,
            COLUMNS,
        )
        b_mean = tl.load(p_stats + o_row, mask=m_row, other=0.0)
        b_rstd = tl.load(p_stats + num_rows + o_row, mask=m_row, other=0.0)
        b_x_hat = tl.where(m_column[None, :], (b_total - b_mean[:, None]) * b_rstd[:, None], 0.0)
        if NEEDS_PARAMETERS:
            b_dweight += b_dy * b_x_hat
            b_dbias += b_dy
        if WIDTH == 1:  # constant: no gradient, where 1 / sqrt(eps) would multiply what rounding leaves
            b_rstd *= 0.0
        b_gradient = standardise_backward(b_dy, b_x_hat, b_weight, b_rstd, WIDTH)
        if NEEDS_DRESIDUAL:
            tl.store(p_dresidual + o_element, b_gradient.to(p_dresidual.dtype.element_ty), mask=m_element)
        if NEEDS_DX:
            tl.store(p_dx + o_element, (b_gradient * b_factors).to(p_dx.dtype.element_ty), mask=m_element)
    if NEEDS_PARAMETERS:
        o_partial = i_program * 2 * WIDTH + o_column
        tl.store(p_partials + o_partial, tl.sum(b_dweight, 0), mask=m_column)
        tl.store(p_partials + o_partial + WIDTH, tl.sum(b_dbias, 0), mask=m_column)


@triton.jit(do_not_specialize=["num_partials"])
def add_kernel(
    p_partials,
    p_dweight,
    p_dbias,
    num_partials,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sums over the programs of the backward."""
    o_column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < 2 * WIDTH
    b_total = sum_blocks(p_partials, o_column, m_column, num_partials, 2 * WIDTH, ROWS, COLUMNS)
    tl.store(p_dweight + o_column, b_total, mask=o_column < WIDTH)
    tl.store(p_dbias + o_column - WIDTH, b_total, mask=m_column & (o_column >= WIDTH))


def layer_norm_triton(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    p: float,
    eps: float,
    stream: int,
) -> tuple[Tensor, Tensor]:
    """Launches the forward; arguments as `dropout_add_layer_norm_reference` takes them, checked."""
    width = x.shape[-1]
    num_rows = x.numel() // width
    y, stats = torch.empty_like(x if residual is None else residual), weight.new_empty(2, num_rows)
    if num_rows == 0:
        return y, stats
    rows, columns, warps = _launch(width)
    with torch.cuda.device_of(x):
        forward_kernel[(triton.cdiv(num_rows, rows),)](
            x,
            x if residual is None else residual,
            weight,
            bias,
            x if seed is None else seed,
            x if row_ids is None else row_ids,
            y,
            stats,
            num_rows,
            threshold(p),
            1 / (1 - p),
            eps,
            stream,
            HAS_RESIDUAL=residual is not None,
            HAS_DROPOUT=threshold(p) > 0,
            HAS_ROW_IDS=row_ids is not None,
            WIDTH=width,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=warps,
        )
    return y, stats


def layer_norm_backward_triton(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    stats: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    p: float,
    stream: int,
    needs_dx: bool,
    needs_dresidual: bool,
    needs_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launches the backward; arguments and results as of `dropout_add_layer_norm_backward_reference`."""
    width = x.shape[-1]
    num_rows = x.numel() // width
    rows, columns, warps = _launch(width)
    rows_per_program = max(triton.cdiv(triton.cdiv(num_rows, rows), _BACKWARD_PROGRAMS), 1) * rows
    programs = max(triton.cdiv(num_rows, rows_per_program), 1)  # no rows, and the parameters' gradients are 0
    dx = torch.empty_like(x) if needs_dx else x.new_empty(0)
    dresidual = torch.empty_like(residual) if needs_dresidual else x.new_empty(0)
    partials = weight.new_empty((programs, 2, width) if needs_parameters else 0)
    dweight, dbias = (weight.new_empty(width if needs_parameters else 0) for _ in range(2))
    with torch.cuda.device_of(x):
        backward_kernel[(programs,)](
            dy,
            x,
            x if residual is None else residual,
            weight,
            stats,
            x if seed is None else seed,
            x if row_ids is None else row_ids,
            dx,
            dresidual,
            partials,
            num_rows,
            rows_per_program,
            threshold(p),
            1 / (1 - p),
            stream,
            HAS_RESIDUAL=residual is not None,
            HAS_DROPOUT=threshold(p) > 0,
            HAS_ROW_IDS=row_ids is not None,
            NEEDS_DX=needs_dx,
            NEEDS_DRESIDUAL=needs_dresidual,
            NEEDS_PARAMETERS=needs_parameters,
            WIDTH=width,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=warps,
        )
        if needs_parameters:
            rows, columns, warps = _launch_add(width)
            add_kernel[(triton.cdiv(2 * width, columns),)](
                partials, dweight, dbias, programs, WIDTH=width, ROWS=rows, COLUMNS=columns, num_warps=warps
            )
    return dx, dresidual, dweight, dbias
