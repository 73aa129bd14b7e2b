"""The generator's head on the device: logits live on the chip only, tile by tile, and are made again where needed.

electra_fast/ops/generator_head.py says what is computed. Forward: `measure_kernel` makes every tile of the logits and
keeps each row's largest and mass in it; `finish_kernel` has the loss from these, picks the tile that the sample falls
into, makes its logits again and picks the token. Backward: two kernels make the gradient of the logits tile by tile,
one for each order of summation, so that nothing is added atomically.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from electra_fast.kernels.philox import philox
from electra_fast.kernels.sampling import find_in_tile, find_tile, measure_tile, uniform53


class Launch(NamedTuple):
    """Launch parameters of one kernel. Reasoned, not measured: no GPU has run them yet."""

    rows: int
    block: int  # tokens of a tile
    block_e: int  # elements of a row of hidden or weight at a time
    warps: int
    stages: int


# A tile of 128 x 128 in tensor-core fragments is 64 registers a thread at 8 warps; 128 x 64 leaves room for the masses.
# float32 operands take twice the shared memory, and three products each: smaller steps.
_MEASURE = {2: Launch(128, 128, 64, 8, 2), 4: Launch(64, 128, 32, 8, 2)}
# The vocabulary's tile must be that of _MEASURE. Two rows: each gathers a tile of its own.
_FINISH = {2: Launch(2, 128, 32, 4, 1), 4: Launch(2, 128, 32, 4, 1)}
# The sums [block, slice] and [rows, slice] stay in registers beside a tile of logits. Tiles of twice the size spill on
# one target or another.
_D_WEIGHT = {2: Launch(32, 64, 32, 8, 2), 4: Launch(32, 32, 32, 4, 1)}
_D_HIDDEN = {2: Launch(32, 32, 64, 4, 2), 4: Launch(64, 32, 32, 8, 1)}
_SLICE = 128  # elements of E that one program of the backward sums; 256 do not fit the registers. Each slice makes the
# logits once more, which is why E > 256 has a rival.
_SPLITS = 8  # parts of the vocabulary that d_hidden is summed by, since row blocks alone are too few programs


@triton.jit
def make_logits(p_hidden, p_weight, p_bias, o_row, o_token, m_row, vocab_size, E, BLOCK_E, PRECISION: tl.constexpr):
    """hidden @ weight.T + bias for a tile [rows, tokens], in float32; -inf outside the vocabulary."""
    m_token = o_token < vocab_size
    b_logits = tl.zeros([o_row.shape[0], o_token.shape[0]], tl.float32)
    for start in range(0, E, BLOCK_E):
        o_e = start + tl.arange(0, BLOCK_E)
        b_hidden = tl.load(
            p_hidden + o_row[:, None] * E + o_e[None, :], mask=m_row[:, None] & (o_e < E)[None, :], other=0.0
        )
        b_weight = tl.load(
            p_weight + o_token[:, None] * E + o_e[None, :], mask=m_token[:, None] & (o_e < E)[None, :], other=0.0
        )
        b_logits = tl.dot(b_hidden, tl.trans(b_weight), b_logits, input_precision=PRECISION)
    b_bias = tl.load(p_bias + o_token, mask=m_token, other=-float("inf")).to(tl.float32)
    return b_logits + b_bias[None, :]


@triton.jit(do_not_specialize=["num_rows", "inverse_temperature"])
def measure_kernel(
    p_hidden,
    p_weight,
    p_bias,
    p_labels,
    p_label_logit,
    p_largest,
    p_mass,
    p_law_largest,
    p_law_mass,
    p_argmax,
    num_rows,
    vocab_size,
    num_tiles,
    inverse_temperature,
    E: tl.constexpr,
    OWN_LAW: tl.constexpr,
    DISALLOW: tl.constexpr,
    HAS_ARGMAX: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One tile: each row's largest logit and mass; the same of the sample's own law where it has one."""
    # Programs of one tile of the vocabulary come together, so that its weights are read from memory once.
    row_blocks = tl.cdiv(num_rows, ROWS)
    i_tile = tl.program_id(0) // row_blocks
    o_row = (tl.program_id(0) % row_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_token = i_tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_row = o_row < num_rows
    b_logits = make_logits(p_hidden, p_weight, p_bias, o_row, o_token, m_row, vocab_size, E, BLOCK_E, PRECISION)

    o_result = o_row * num_tiles + i_tile
    b_largest, b_mass = measure_tile(b_logits, 1.0)
    tl.store(p_largest + o_result, b_largest, mask=m_row)
    tl.store(p_mass + o_result, b_mass, mask=m_row)
    # Clamped, so that a wrong label reads nothing outside.
    b_labels = tl.load(p_labels + o_row, mask=m_row, other=0)
    b_labels = tl.minimum(tl.maximum(b_labels, 0), vocab_size - 1)
    m_label = o_token[None, :] == b_labels[:, None]
    b_label_logit = tl.sum(tl.where(m_label, b_logits, 0.0), axis=1)
    tl.store(p_label_logit + o_row, b_label_logit, mask=m_row & (b_labels // BLOCK == i_tile))
    if HAS_ARGMAX:
        tl.store(p_argmax + o_result, i_tile * BLOCK + tl.argmax(b_logits, axis=1), mask=m_row)
    if OWN_LAW:
        if DISALLOW:
            b_logits = tl.where(m_label, -float("inf"), b_logits)
        b_largest, b_mass = measure_tile(b_logits, inverse_temperature)
        tl.store(p_law_largest + o_result, b_largest, mask=m_row)
        tl.store(p_law_mass + o_result, b_mass, mask=m_row)


@triton.jit
def gather_logits(p_hidden, p_weight, p_bias, o_row, o_token, m_row, vocab_size, E, BLOCK_E: tl.constexpr):
    """Logits in float32 for tokens [rows, BLOCK] that differ by row; -inf outside the vocabulary."""
    m_token = (o_token < vocab_size) & m_row[:, None]
    b_logits = tl.zeros([o_token.shape[0], o_token.shape[1]], tl.float32)
    for start in range(0, E, BLOCK_E):
        o_e = start + tl.arange(0, BLOCK_E)
        m_e = o_e < E
        b_hidden = tl.load(p_hidden + o_row[:, None] * E + o_e[None, :], mask=m_row[:, None] & m_e[None, :], other=0.0)
        b_weight = tl.load(
            p_weight + o_token[:, :, None] * E + o_e[None, None, :],
            mask=m_token[:, :, None] & m_e[None, None, :],
            other=0.0,
        )
        b_logits += tl.sum(b_weight.to(tl.float32) * b_hidden.to(tl.float32)[:, None, :], axis=2)
    return b_logits + tl.load(p_bias + o_token, mask=m_token, other=-float("inf")).to(tl.float32)


@triton.jit
def load_tiles(p_tiles, o_row, o_tile, m_tiles, num_tiles, other):
    return tl.load(p_tiles + o_row[:, None] * num_tiles + o_tile[None, :], mask=m_tiles, other=other)


@triton.jit(do_not_specialize=["num_rows", "inverse_temperature", "stream"])
def finish_kernel(
    p_hidden,
    p_weight,
    p_bias,
    p_labels,
    p_label_logit,
    p_largest,
    p_mass,
    p_law_largest,
    p_law_mass,
    p_tile_argmax,
    p_seed,
    p_row_ids,
    p_nll,
    p_lse,
    p_sampled,
    p_argmax,
    num_rows,
    vocab_size,
    num_tiles,
    inverse_temperature,
    stream,
    E: tl.constexpr,
    HAS_ROW_IDS: tl.constexpr,
    DISALLOW: tl.constexpr,
    HAS_ARGMAX: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Loss, sample and argmax of a few rows, from what their tiles measured."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_tile = tl.arange(0, TILES)
    m_row = o_row < num_rows
    m_tiles = m_row[:, None] & (o_tile < num_tiles)[None, :]
    b_largest = load_tiles(p_largest, o_row, o_tile, m_tiles, num_tiles, -float("inf"))
    b_mass = load_tiles(p_mass, o_row, o_tile, m_tiles, num_tiles, 0.0)
    b_top = tl.max(b_largest, axis=1)
    b_total = tl.sum(b_mass.to(tl.float64) * tl.exp(b_largest - b_top[:, None]).to(tl.float64), axis=1)
    b_log_total = tl.log(b_total)
    b_label_logit = tl.load(p_label_logit + o_row, mask=m_row, other=0.0)
    tl.store(p_nll + o_row, (b_log_total - (b_label_logit.to(tl.float64) - b_top)).to(tl.float32), mask=m_row)
    tl.store(p_lse + o_row, b_top, mask=m_row)
    tl.store(p_lse + num_rows.to(tl.int64) + o_row, b_log_total.to(tl.float32), mask=m_row)
    if HAS_ARGMAX:
        b_first = tl.min(tl.where(b_largest == b_top[:, None], o_tile[None, :], TILES), axis=1)
        m_first = m_row & (b_first < num_tiles)
        b_argmax = tl.load(p_tile_argmax + o_row * num_tiles + b_first, mask=m_first, other=0)
        tl.store(p_argmax + o_row, tl.minimum(b_argmax, vocab_size - 1).to(tl.int64), mask=m_row)

    b_row_ids = tl.load(p_row_ids + o_row, mask=m_row, other=0) if HAS_ROW_IDS else o_row
    b_word0, b_word1, _, _ = philox(tl.load(p_seed), b_row_ids, 0, stream)
    b_largest = load_tiles(p_law_largest, o_row, o_tile, m_tiles, num_tiles, -float("inf"))
    b_mass = load_tiles(p_law_mass, o_row, o_tile, m_tiles, num_tiles, 0.0)
    b_tile, b_share = find_tile(b_largest, b_mass, inverse_temperature, uniform53(b_word0, b_word1))
    o_token = b_tile.to(tl.int64)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    b_logits = gather_logits(p_hidden, p_weight, p_bias, o_row, o_token, m_row, vocab_size, E, BLOCK_E)
    if DISALLOW:
        b_labels = tl.load(p_labels + o_row, mask=m_row, other=0)
        b_labels = tl.minimum(tl.maximum(b_labels, 0), vocab_size - 1)
        b_logits = tl.where(o_token == b_labels[:, None], -float("inf"), b_logits)
    b_token = b_tile * BLOCK + find_in_tile(b_logits, inverse_temperature, b_share)
    tl.store(p_sampled + o_row, b_token.to(tl.int64), mask=m_row)


@triton.jit
def make_gradient(b_logits, b_largest, b_log_total, b_labels, b_coefficients, o_token):
    """coefficient * (softmax - onehot) for a tile, 0 where the coefficient is, whatever the logits are."""
    b_softmax = tl.exp(b_logits - b_largest[:, None] - b_log_total[:, None])
    b_delta = b_softmax - (o_token[None, :] == b_labels[:, None]).to(tl.float32)
    return tl.where(b_coefficients[:, None] == 0.0, 0.0, b_delta * b_coefficients[:, None])


@triton.jit(do_not_specialize=["num_rows"])
def d_weight_kernel(
    p_hidden,
    p_weight,
    p_bias,
    p_labels,
    p_lse,
    p_coefficients,
    p_d_weight,
    p_d_bias,
    num_rows,
    vocab_size,
    E: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SLICE: tl.constexpr,
):
    """d_weight and d_bias of one tile of tokens and one slice of E: a loop over all rows."""
    o_token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    o_slice = tl.program_id(1) * SLICE + tl.arange(0, SLICE)
    m_token, m_slice = o_token < vocab_size, o_slice < E
    b_d_weight = tl.zeros([BLOCK, SLICE], tl.float32)
    b_d_bias = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_rows, ROWS):
        o_row = start + tl.arange(0, ROWS).to(tl.int64)
        m_row = o_row < num_rows
        b_coefficients = tl.load(p_coefficients + o_row, mask=m_row, other=0.0)
        b_largest = tl.load(p_lse + o_row, mask=m_row, other=0.0)
        b_log_total = tl.load(p_lse + num_rows.to(tl.int64) + o_row, mask=m_row, other=0.0)
        b_labels = tl.minimum(tl.maximum(tl.load(p_labels + o_row, mask=m_row, other=0), 0), vocab_size - 1)
        m_row = m_row & (b_coefficients != 0.0)  # an unused row may hold NaN, and 0 * NaN is no 0
        b_logits = make_logits(p_hidden, p_weight, p_bias, o_row, o_token, m_row, vocab_size, E, BLOCK_E, PRECISION)
        b_gradient = make_gradient(b_logits, b_largest, b_log_total, b_labels, b_coefficients, o_token)
        b_hidden = tl.load(
            p_hidden + o_row[:, None] * E + o_slice[None, :], mask=m_row[:, None] & m_slice[None, :], other=0.0
        )
        b_d_bias += tl.sum(b_gradient, axis=0)
        b_gradient = tl.trans(b_gradient.to(b_hidden.dtype))
        b_d_weight = tl.dot(b_gradient, b_hidden, b_d_weight, input_precision=PRECISION)
    o_result = o_token[:, None] * E + o_slice[None, :]
    tl.store(
        p_d_weight + o_result, b_d_weight.to(p_d_weight.dtype.element_ty), mask=m_token[:, None] & m_slice[None, :]
    )
    if tl.program_id(1) == 0:
        tl.store(p_d_bias + o_token, b_d_bias.to(p_d_bias.dtype.element_ty), mask=m_token)


@triton.jit(do_not_specialize=["num_rows"])
def d_hidden_kernel(
    p_hidden,
    p_weight,
    p_bias,
    p_labels,
    p_lse,
    p_coefficients,
    p_parts,
    num_rows,
    vocab_size,
    tokens_per_split,
    E: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SLICE: tl.constexpr,
):
    """One part of the vocabulary's share in d_hidden, for a block of rows and one slice of E; stored in float32."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i_split = tl.program_id(1)
    o_slice = tl.program_id(2) * SLICE + tl.arange(0, SLICE)
    m_row, m_slice = o_row < num_rows, o_slice < E
    b_coefficients = tl.load(p_coefficients + o_row, mask=m_row, other=0.0)
    b_largest = tl.load(p_lse + o_row, mask=m_row, other=0.0)
    b_log_total = tl.load(p_lse + num_rows.to(tl.int64) + o_row, mask=m_row, other=0.0)
    b_labels = tl.minimum(tl.maximum(tl.load(p_labels + o_row, mask=m_row, other=0), 0), vocab_size - 1)
    b_d_hidden = tl.zeros([ROWS, SLICE], tl.float32)
    begin = i_split * tokens_per_split
    for start in range(begin, tl.minimum(begin + tokens_per_split, vocab_size), BLOCK):
        o_token = start + tl.arange(0, BLOCK).to(tl.int64)
        b_logits = make_logits(p_hidden, p_weight, p_bias, o_row, o_token, m_row, vocab_size, E, BLOCK_E, PRECISION)
        b_gradient = make_gradient(b_logits, b_largest, b_log_total, b_labels, b_coefficients, o_token)
        b_weight = tl.load(
            p_weight + o_token[:, None] * E + o_slice[None, :],
            mask=(o_token < vocab_size)[:, None] & m_slice[None, :],
            other=0.0,
        )
        b_d_hidden = tl.dot(b_gradient.to(b_weight.dtype), b_weight, b_d_hidden, input_precision=PRECISION)
    o_result = (i_split * num_rows.to(tl.int64) + o_row)[:, None] * E + o_slice[None, :]
    tl.store(p_parts + o_result, b_d_hidden, mask=m_row[:, None] & m_slice[None, :])


def precision(is_amd: bool = torch.version.hip is not None) -> str:
    """How float32 is multiplied: by three TF32 products, with the error of float32; AMD has an instruction for it."""
    return "ieee" if is_amd else "tf32x3"


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    seed: Tensor,
    row_ids: Tensor | None,
    inverse_temperature: float,
    disallow_correct: bool,
    stream: int,
    with_argmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """nll, lse, sampled_ids, argmax_ids; all tensors are contiguous, and there is at least one row."""
    (rows, width), vocab_size = hidden.shape, weight.shape[0]
    measure, finish = _MEASURE[max(hidden.element_size(), 2)], _FINISH[max(hidden.element_size(), 2)]
    tiles = triton.cdiv(vocab_size, measure.block)
    own_law = disallow_correct or inverse_temperature != 1.0

    def floats(*shape: int) -> Tensor:
        return hidden.new_empty(shape, dtype=torch.float32)

    label_logit, nll, lse = floats(rows), floats(rows), floats(2, rows)
    largest, mass = floats(rows, tiles), floats(rows, tiles)
    law_largest, law_mass = (floats(rows, tiles), floats(rows, tiles)) if own_law else (largest, mass)
    sampled_ids, argmax_ids = labels.new_empty(rows), labels.new_empty(rows if with_argmax else 0)
    tile_argmax = labels.new_empty((rows, tiles) if with_argmax else 0, dtype=torch.int32)
    with torch.cuda.device_of(hidden):
        measure_kernel[(triton.cdiv(rows, measure.rows) * tiles,)](
            hidden,
            weight,
            bias,
            labels,
            label_logit,
            largest,
            mass,
            law_largest,
            law_mass,
            tile_argmax,
            rows,
            vocab_size,
            tiles,
            inverse_temperature,
            E=width,
            OWN_LAW=own_law,
            DISALLOW=disallow_correct,
            HAS_ARGMAX=with_argmax,
            PRECISION=precision(),
            ROWS=measure.rows,
            BLOCK=measure.block,
            BLOCK_E=measure.block_e,
            num_warps=measure.warps,
            num_stages=measure.stages,
        )
        finish_kernel[(triton.cdiv(rows, finish.rows),)](
            hidden,
            weight,
            bias,
            labels,
            label_logit,
            largest,
            mass,
            law_largest,
            law_mass,
            tile_argmax,
            seed,
            labels if row_ids is None else row_ids,
            nll,
            lse,
            sampled_ids,
            argmax_ids,
            rows,
            vocab_size,
            tiles,
            inverse_temperature,
            stream,
            E=width,
            HAS_ROW_IDS=row_ids is not None,
            DISALLOW=disallow_correct,
            HAS_ARGMAX=with_argmax,
            ROWS=finish.rows,
            BLOCK=measure.block,
            TILES=triton.next_power_of_2(tiles),
            BLOCK_E=finish.block_e,
            num_warps=finish.warps,
        )
    return nll, lse, sampled_ids, argmax_ids


def backward(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, coefficients: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of sum(coefficients * nll); all tensors are contiguous, and there is at least one row."""
    (rows, width), vocab_size = hidden.shape, weight.shape[0]
    by_weight, by_hidden = _D_WEIGHT[max(hidden.element_size(), 2)], _D_HIDDEN[max(hidden.element_size(), 2)]
    width_slice = min(_SLICE, max(triton.next_power_of_2(width), 16))
    slices = triton.cdiv(width, width_slice)
    per_split = triton.cdiv(vocab_size, by_hidden.block * _SPLITS) * by_hidden.block
    splits = triton.cdiv(vocab_size, per_split)
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
    parts = hidden.new_empty((splits, rows, width), dtype=torch.float32)
    inputs = (hidden, weight, bias, labels, lse, coefficients)
    with torch.cuda.device_of(hidden):
        d_weight_kernel[(triton.cdiv(vocab_size, by_weight.block), slices)](
            *inputs,
            d_weight,
            d_bias,
            rows,
            vocab_size,
            E=width,
            PRECISION=precision(),
            ROWS=by_weight.rows,
            BLOCK=by_weight.block,
            BLOCK_E=by_weight.block_e,
            SLICE=width_slice,
            num_warps=by_weight.warps,
            num_stages=by_weight.stages,
        )
        d_hidden_kernel[(triton.cdiv(rows, by_hidden.rows), splits, slices)](
            *inputs,
            parts,
            rows,
            vocab_size,
            per_split,
            E=width,
            PRECISION=precision(),
            ROWS=by_hidden.rows,
            BLOCK=by_hidden.block,
            BLOCK_E=by_hidden.block_e,
            SLICE=width_slice,
            num_warps=by_hidden.warps,
            num_stages=by_hidden.stages,
        )
    return parts.sum(dim=0).to(hidden.dtype), d_weight, d_bias
