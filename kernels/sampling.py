"""sample_tokens on the device in one launch; its device functions serve the generator head too.

electra_fast/ops/sampling.py says what is computed. A row's masses exp((score - largest) / temperature) are
summed by tiles, each measured against its own largest score, in float32; everything across tiles is in float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from electra_fast.kernels.philox import philox

# Elements of one tile, over all rows of a program: 16 a thread, so that several loads are on their way at once.
_TILE_ELEMENTS = 4096
_MAX_ROWS = 8  # rows of a program where the vocabulary is small; 32 need more registers than there are
_WARPS = 8

_LOWEST = tl.constexpr(-3.4028234663852886e38)  # finite, so that -inf has mass 0 beside it and not NaN


@triton.jit
def uniform53(b_word0, b_word1):
    """A float64 in [0, 1) with 53 random bits, as `electra_fast.ops.random.uniform53`."""
    return ((b_word0 >> 5).to(tl.int64) * (1 << 26) + (b_word1 >> 6).to(tl.int64)).to(tl.float64) * (1.0 / (1 << 53))


@triton.jit
def measure_tile(b_scores, inverse_temperature):
    """The largest score of each row of a tile, and the mass measured against it."""
    b_largest = tl.maximum(tl.max(b_scores, axis=1), _LOWEST)
    return b_largest, tl.sum(tl.exp((b_scores - b_largest[:, None]) * inverse_temperature), axis=1)


@triton.jit
def find_passing(b_masses, b_aim):
    """The first index at which the running sum of float64 masses passes `b_aim`, the last with a mass if none does.

    Returns it and the sum of the masses before it. A row of NaNs gives some index in range.
    """
    o_index = tl.arange(0, b_masses.shape[1])[None, :]
    b_last = tl.max(tl.where(b_masses > 0, o_index, 0), axis=1)
    # A parallel sum may round differently before a mass of zero than at it: such an index is never the one.
    b_passing = (tl.cumsum(b_masses, axis=1) > b_aim[:, None]) & (b_masses > 0)
    b_found = tl.min(tl.where(b_passing, o_index, b_last[:, None]), axis=1)
    return b_found, tl.sum(tl.where(o_index < b_found[:, None], b_masses, 0.0), axis=1)


@triton.jit
def find_tile(b_largest, b_mass, inverse_temperature, b_uniform):
    """The tile of each row in which the CDF passes the uniform number, and the share of its mass left to go."""
    o_tile = tl.arange(0, b_mass.shape[1])[None, :]
    b_top = tl.max(b_largest, axis=1)
    b_scale = tl.exp((b_largest - b_top[:, None]) * inverse_temperature)
    b_masses = b_mass.to(tl.float64) * b_scale.to(tl.float64)
    b_aim = b_uniform * tl.sum(b_masses, axis=1)
    b_tile, b_before = find_passing(b_masses, b_aim)
    return b_tile, (b_aim - b_before) / tl.sum(tl.where(o_tile == b_tile[:, None], b_masses, 0.0), axis=1)


@triton.jit
def find_in_tile(b_scores, inverse_temperature, b_share):
    """The index within the tile at which the running sum of masses passes the share of their total."""
    b_largest = tl.maximum(tl.max(b_scores, axis=1), _LOWEST)
    b_masses = tl.exp((b_scores - b_largest[:, None]) * inverse_temperature).to(tl.float64)
    return find_passing(b_masses, b_share * tl.sum(b_masses, axis=1))[0]


@triton.jit
def load_scores(p_logits, o_row, o_column, m_row, row_stride, vocab_size, b_disallow):
    """A tile [ROWS, BLOCK] in float32, -inf outside the vocabulary and at the token of each row to leave out."""
    m_column = (o_column < vocab_size) & m_row[:, None]
    b_scores = tl.load(p_logits + o_row[:, None] * row_stride + o_column, mask=m_column, other=-float("inf"))
    return tl.where(o_column == b_disallow[:, None], -float("inf"), b_scores.to(tl.float32))


@triton.jit(do_not_specialize=["num_rows", "stream", "inverse_temperature"])
def sample_kernel(
    p_logits,
    p_seed,
    p_row_ids,
    p_disallow,
    p_sampled,
    num_rows,
    vocab_size,
    row_stride,
    inverse_temperature,
    stream,
    HAS_ROW_IDS: tl.constexpr,
    HAS_DISALLOW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """One token for each of ROWS rows, from TILES tiles of BLOCK tokens: one pass over them, and one tile again."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    m_row = o_row < num_rows
    b_disallow = tl.load(p_disallow + o_row, mask=m_row, other=-1) if HAS_DISALLOW else o_row * 0 - 1
    o_tile = tl.arange(0, TILES)[None, :]
    b_largest = tl.full([ROWS, TILES], _LOWEST, tl.float32)
    b_mass = tl.zeros([ROWS, TILES], tl.float32)
    for i_tile in range(tl.cdiv(vocab_size, BLOCK)):
        o_column = i_tile * BLOCK + tl.arange(0, BLOCK)[None, :]
        b_scores = load_scores(p_logits, o_row, o_column, m_row, row_stride, vocab_size, b_disallow)
        b_tile_largest, b_tile_mass = measure_tile(b_scores, inverse_temperature)
        b_largest = tl.where(o_tile == i_tile, b_tile_largest[:, None], b_largest)
        b_mass = tl.where(o_tile == i_tile, b_tile_mass[:, None], b_mass)

    b_row_ids = tl.load(p_row_ids + o_row, mask=m_row, other=0) if HAS_ROW_IDS else o_row
    b_word0, b_word1, _, _ = philox(tl.load(p_seed), b_row_ids, 0, stream)
    b_tile, b_share = find_tile(b_largest, b_mass, inverse_temperature, uniform53(b_word0, b_word1))

    o_column = b_tile[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    b_scores = load_scores(p_logits, o_row, o_column, m_row, row_stride, vocab_size, b_disallow)
    b_token = b_tile * BLOCK + find_in_tile(b_scores, inverse_temperature, b_share)
    tl.store(p_sampled + o_row, b_token.to(tl.int64), mask=m_row)


def blocks(vocab_size: int) -> tuple[int, int, int]:
    """Rows of a program, tokens of a tile, and tiles of a row, powers of two."""
    block = min(triton.next_power_of_2(vocab_size), _TILE_ELEMENTS)
    rows = min(_TILE_ELEMENTS // block, _MAX_ROWS)
    return rows, block, triton.next_power_of_2(triton.cdiv(vocab_size, block))


def sample_tokens_triton(
    logits: Tensor,
    seed: Tensor,
    row_ids: Tensor | None,
    disallow: Tensor | None,
    inverse_temperature: float,
    stream: int,
) -> Tensor:
    """Launches the kernel; the elements of a row of `logits` [M, V] lie beside each other."""
    num_rows, vocab_size = logits.shape
    sampled_ids = logits.new_empty(num_rows, dtype=torch.int64)
    if num_rows == 0:
        return sampled_ids
    rows, block, tiles = blocks(vocab_size)
    with torch.cuda.device_of(logits):
        sample_kernel[(triton.cdiv(num_rows, rows),)](
            logits,
            seed,
            sampled_ids if row_ids is None else row_ids,
            sampled_ids if disallow is None else disallow,
            sampled_ids,
            num_rows,
            vocab_size,
            logits.stride(0),
            inverse_temperature,
            stream,
            HAS_ROW_IDS=row_ids is not None,
            HAS_DISALLOW=disallow is not None,
            ROWS=rows,
            BLOCK=block,
            TILES=tiles,
            num_warps=_WARPS,
        )
    return sampled_ids
