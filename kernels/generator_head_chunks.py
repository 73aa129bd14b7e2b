"""The generator's head by chunks of rows: PyTorch's matrix products, and two kernels on the logits between them.

The rival of kernels/generator_head.py, whose functions it mirrors. The logits of a chunk are in memory, in float32, for
as long as it takes to measure them, sample from them and turn them into their gradient in place.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from electra_fast.kernels.generator_head import make_gradient
from electra_fast.kernels.philox import philox
from electra_fast.kernels.sampling import _LOWEST, blocks, find_in_tile, find_tile, measure_tile, uniform53

# Rows whose logits exist at a time: 62 MB at ELECTRA's vocabulary, and enough programs for every SM. Reasoned, not
# measured.
_CHUNK = 512
_WARPS = 8  # as sample_kernel, whose loop over tiles this is
_BLOCK = 4096  # tokens of a program of the gradient: 16 a thread


@triton.jit
def load_logits(p_logits, p_bias, o_row, o_token, m_row, vocab_size):
    """Logits with their bias for tokens [rows or 1, BLOCK]; -inf outside the vocabulary."""
    m_token = o_token < vocab_size
    b_logits = tl.load(
        p_logits + o_row[:, None] * vocab_size + o_token, mask=m_token & m_row[:, None], other=-float("inf")
    )
    return b_logits + tl.load(p_bias + o_token, mask=m_token, other=0.0).to(tl.float32)


@triton.jit
def load_labels(p_labels, o_row, m_row, vocab_size):
    """Clamped, so that a wrong label reads nothing outside."""
    return tl.minimum(tl.maximum(tl.load(p_labels + o_row, mask=m_row, other=0), 0), vocab_size - 1)


@triton.jit(do_not_specialize=["first_row", "num_rows", "inverse_temperature", "stream"])
def rows_kernel(
    p_logits,
    p_bias,
    p_labels,
    p_seed,
    p_row_ids,
    p_nll,
    p_largest,
    p_log_total,
    p_sampled,
    p_argmax,
    first_row,
    num_rows,
    vocab_size,
    inverse_temperature,
    stream,
    HAS_ROW_IDS: tl.constexpr,
    OWN_LAW: tl.constexpr,
    DISALLOW: tl.constexpr,
    HAS_ARGMAX: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """Loss, sample and argmax of ROWS rows of a chunk: one pass over their logits, and one tile again."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    m_row = o_row < num_rows
    b_labels = load_labels(p_labels, o_row, m_row, vocab_size)
    b_left_out = b_labels if DISALLOW else b_labels * 0 - 1
    o_tile = tl.arange(0, TILES)[None, :]
    b_largest = tl.full([ROWS, TILES], _LOWEST, tl.float32)
    b_mass = tl.zeros([ROWS, TILES], tl.float32)
    b_law_largest, b_law_mass = b_largest, b_mass
    b_top = tl.full([ROWS], _LOWEST, tl.float32)
    b_argmax = tl.zeros([ROWS], tl.int32)
    for i_tile in range(tl.cdiv(vocab_size, BLOCK)):
        o_token = i_tile * BLOCK + tl.arange(0, BLOCK)[None, :]
        b_logits = load_logits(p_logits, p_bias, o_row, o_token, m_row, vocab_size)
        b_tile_largest, b_tile_mass = measure_tile(b_logits, 1.0)
        b_largest = tl.where(o_tile == i_tile, b_tile_largest[:, None], b_largest)
        b_mass = tl.where(o_tile == i_tile, b_tile_mass[:, None], b_mass)
        if HAS_ARGMAX:
            b_tile_argmax = i_tile * BLOCK + tl.argmax(b_logits, axis=1)
            b_argmax = tl.where(b_tile_largest > b_top, b_tile_argmax, b_argmax)
        b_top = tl.maximum(b_top, b_tile_largest)
        if OWN_LAW:
            b_logits = tl.where(o_token == b_left_out[:, None], -float("inf"), b_logits)
            b_tile_largest, b_tile_mass = measure_tile(b_logits, inverse_temperature)
            b_law_largest = tl.where(o_tile == i_tile, b_tile_largest[:, None], b_law_largest)
            b_law_mass = tl.where(o_tile == i_tile, b_tile_mass[:, None], b_law_mass)

    b_total = tl.sum(b_mass.to(tl.float64) * tl.exp(b_largest - b_top[:, None]).to(tl.float64), axis=1)
    b_log_total = tl.log(b_total)
    b_label_logit = tl.load(p_logits + o_row * vocab_size + b_labels, mask=m_row, other=0.0)
    b_label_logit += tl.load(p_bias + b_labels).to(tl.float32)
    tl.store(p_nll + o_row, (b_log_total - (b_label_logit.to(tl.float64) - b_top)).to(tl.float32), mask=m_row)
    tl.store(p_largest + o_row, b_top, mask=m_row)
    tl.store(p_log_total + o_row, b_log_total.to(tl.float32), mask=m_row)
    if HAS_ARGMAX:
        tl.store(p_argmax + o_row, tl.minimum(b_argmax, vocab_size - 1).to(tl.int64), mask=m_row)

    b_row_ids = tl.load(p_row_ids + o_row, mask=m_row, other=0) if HAS_ROW_IDS else first_row + o_row
    b_word0, b_word1, _, _ = philox(tl.load(p_seed), b_row_ids, 0, stream)
    if OWN_LAW:
        b_largest, b_mass = b_law_largest, b_law_mass
    b_tile, b_share = find_tile(b_largest, b_mass, inverse_temperature, uniform53(b_word0, b_word1))
    o_token = b_tile[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    b_logits = load_logits(p_logits, p_bias, o_row, o_token, m_row, vocab_size)
    if DISALLOW:
        b_logits = tl.where(o_token == b_left_out[:, None], -float("inf"), b_logits)
    b_token = b_tile * BLOCK + find_in_tile(b_logits, inverse_temperature, b_share)
    tl.store(p_sampled + o_row, b_token.to(tl.int64), mask=m_row)


@triton.jit
def gradient_kernel(
    p_logits,
    p_bias,
    p_labels,
    p_largest,
    p_log_total,
    p_coefficients,
    vocab_size,
    BLOCK: tl.constexpr,
):
    """The gradient of one row's logits in place of them, for a block of tokens."""
    o_row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    o_token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_row = o_row >= 0
    b_logits = load_logits(p_logits, p_bias, o_row, o_token[None, :], m_row, vocab_size)
    b_labels = load_labels(p_labels, o_row, m_row, vocab_size)
    b_largest, b_log_total = tl.load(p_largest + o_row), tl.load(p_log_total + o_row)
    b_gradient = make_gradient(b_logits, b_largest, b_log_total, b_labels, tl.load(p_coefficients + o_row), o_token)
    tl.store(
        p_logits + o_row[:, None] * vocab_size + o_token[None, :], b_gradient, mask=(o_token < vocab_size)[None, :]
    )


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
    num_rows, vocab_size = hidden.shape[0], weight.shape[0]
    nll, lse = (hidden.new_empty(shape, dtype=torch.float32) for shape in (num_rows, (2, num_rows)))
    sampled_ids, argmax_ids = labels.new_empty(num_rows), labels.new_empty(num_rows if with_argmax else 0)
    rows, block, tiles = blocks(vocab_size)
    with torch.cuda.device_of(hidden):
        for part, logits in _chunks(hidden, weight):
            rows_kernel[(triton.cdiv(logits.shape[0], rows),)](
                logits,
                bias,
                labels[part],
                seed,
                labels if row_ids is None else row_ids[part],
                nll[part],
                lse[0, part],
                lse[1, part],
                sampled_ids[part],
                argmax_ids[part],
                part.start,
                logits.shape[0],
                vocab_size,
                inverse_temperature,
                stream,
                HAS_ROW_IDS=row_ids is not None,
                OWN_LAW=disallow_correct or inverse_temperature != 1.0,
                DISALLOW=disallow_correct,
                HAS_ARGMAX=with_argmax,
                ROWS=rows,
                BLOCK=block,
                TILES=tiles,
                num_warps=_WARPS,
            )
    return nll, lse, sampled_ids, argmax_ids


def backward(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, coefficients: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of sum(coefficients * nll); all tensors are contiguous, and there is at least one row."""
    vocab_size = weight.shape[0]
    block = min(triton.next_power_of_2(vocab_size), _BLOCK)
    d_hidden = torch.empty_like(hidden)
    # Sums over chunks, in float32.
    d_weight, d_bias = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (weight, bias))
    with torch.cuda.device_of(hidden):
        for part, logits in _chunks(hidden, weight):
            gradient_kernel[(logits.shape[0], triton.cdiv(vocab_size, block))](
                logits,
                bias,
                labels[part],
                lse[0, part],
                lse[1, part],
                coefficients[part],
                vocab_size,
                BLOCK=block,
                num_warps=_WARPS,
            )
            d_bias += logits.sum(dim=0)
            d_logits = logits.to(hidden.dtype)
            d_hidden[part] = _product(d_logits, weight)
            # An unused row may hold NaN, and 0 * NaN is no 0.
            used_hidden = hidden[part].masked_fill((coefficients[part] == 0).unsqueeze(1), 0.0)
            d_weight += _product(d_logits.t(), used_hidden)
    return d_hidden, d_weight.to(weight.dtype), d_bias.to(bias.dtype)


def _chunks(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The chunks of rows, and their logits without bias in one workspace."""
    num_rows = hidden.shape[0]
    workspace = hidden.new_empty((min(num_rows, _CHUNK), weight.shape[0]), dtype=torch.float32)
    for start in range(0, num_rows, _CHUNK):
        part = slice(start, min(start + _CHUNK, num_rows))
        yield part, _product(hidden[part], weight.t(), out=workspace[: part.stop - start])


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b in float32, rounded nowhere before."""
    if a.dtype == torch.float32:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        out = a.new_empty((a.shape[0], b.shape[1]), dtype=torch.float32) if out is None else out
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)
