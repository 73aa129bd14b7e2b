"""Bias and exact GELU; electra_fast/ops/gelu.py says what is computed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Launch parameters: (rows, columns, warps) of what a program holds at a time. Reasoned, not measured: no GPU has run
# them yet.
_FORWARD = (4, 512, 4)  # 16 elements a thread: 128-bit loads from every dtype, several in flight; 8 in AMD's warps
_BACKWARD = (8, 256, 4)  # likewise; as (4, 512) it spills on sm_100 at odd widths

_ROWS_PER_PROGRAM = 64  # whose bias gradients a program adds; fixed, so that the bits depend on no GPU's size

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_LOG2_E = tl.constexpr(1.4426950408889634)
_DENSITY_AT_0 = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)


@triton.jit
def normal_integral(b_u):
    return 0.5 + 0.5 * tl.erf(b_u * _SQRT_HALF)


@triton.jit
def normal_density(b_u):
    return _DENSITY_AT_0 * tl.exp2(b_u * b_u * (-0.5 * _LOG2_E))


@triton.jit(do_not_specialize=["num_rows"])
def forward_kernel(p_x, p_bias, p_y, num_rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < WIDTH
    o_element = o_row[:, None] * WIDTH + o_column[None, :]
    m_element = (o_row < num_rows)[:, None] & m_column[None, :]
    b_bias = tl.load(p_bias + o_column, mask=m_column, other=0.0)
    b_u = tl.load(p_x + o_element, mask=m_element, other=0.0).to(tl.float32) + b_bias[None, :]
    tl.store(p_y + o_element, b_u * normal_integral(b_u), mask=m_element)


@triton.jit(do_not_specialize=["num_rows"])
def backward_kernel(
    p_dy,
    p_x,
    p_bias,
    p_dx,
    p_dbias,
    num_rows,
    WIDTH: tl.constexpr,
    ROWS_PER_PROGRAM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx, and for each program the sum of its rows: p_dbias is [programs, WIDTH]."""
    i_block = tl.program_id(0).to(tl.int64)
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < WIDTH
    b_bias = tl.load(p_bias + o_column, mask=m_column, other=0.0)
    b_dbias = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, ROWS_PER_PROGRAM, ROWS):
        o_row = i_block * ROWS_PER_PROGRAM + start + tl.arange(0, ROWS)
        o_element = o_row[:, None] * WIDTH + o_column[None, :]
        m_element = (o_row < num_rows)[:, None] & m_column[None, :]
        b_dy = tl.load(p_dy + o_element, mask=m_element, other=0.0).to(tl.float32)
        b_u = tl.load(p_x + o_element, mask=m_element, other=0.0).to(tl.float32) + b_bias[None, :]
        b_dx = b_dy * (normal_integral(b_u) + b_u * normal_density(b_u))
        tl.store(p_dx + o_element, b_dx, mask=m_element)
        b_dbias += b_dx
    tl.store(p_dbias + i_block * WIDTH + o_column, tl.sum(b_dbias, 0), mask=m_column)


def bias_gelu_triton(x: Tensor, bias: Tensor) -> Tensor:
    """Launches the kernel; arguments as `bias_gelu_reference` takes them: x [rows, width], bias float32, contiguous."""
    num_rows, width = x.shape
    y = torch.empty_like(x)
    rows, columns, warps = _FORWARD
    if x.numel() > 0:
        with torch.cuda.device_of(x):
            forward_kernel[(triton.cdiv(num_rows, rows), triton.cdiv(width, columns))](
                x, bias, y, num_rows, WIDTH=width, ROWS=rows, COLUMNS=columns, num_warps=warps
            )
    return y


def bias_gelu_backward_triton(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Launches the kernel; arguments as `bias_gelu_backward_reference` takes them, contiguous."""
    num_rows, width = x.shape
    dx = torch.empty_like(x)
    rows, columns, warps = _BACKWARD
    programs = triton.cdiv(num_rows, _ROWS_PER_PROGRAM)
    dbias = torch.empty((programs, width), dtype=torch.float32, device=x.device)
    if x.numel() > 0:
        with torch.cuda.device_of(x):
            backward_kernel[(programs, triton.cdiv(width, columns))](
                dy,
                x,
                bias,
                dx,
                dbias,
                num_rows,
                WIDTH=width,
                ROWS_PER_PROGRAM=_ROWS_PER_PROGRAM,
                ROWS=rows,
                COLUMNS=columns,
                num_warps=warps,
            )
    return dx, dbias.sum(0)
