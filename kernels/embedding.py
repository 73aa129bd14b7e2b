"""embedding_layer_norm: one launch forward; backward each token's gradient, then its sums over the rows of each table.

electra_fast/ops/embedding.py says what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from electra_fast.kernels.rows import dropout_factors, standardise, standardise_backward, sum_blocks
from electra_fast.ops.random import threshold


class Launch(NamedTuple):
    rows: int  # tokens that a program works on at a time
    columns: int  # a power of 2: the width and what is masked
    warps: int


# Reasoned, not measured: no GPU has run them yet. Elements of a tile for four warps:
_FORWARD_TILE = 2048  # 16 a thread: loads of 128 bits, and four Philox calls that hide each other
_BACKWARD_TILE = 1024  # 8 a thread: four sums stay in registers; 16 take 230 of them, which leaves 8 warps a processor
_WARPS = 4
_MAX_WARPS = 16
_MAX_ROWS = 32  # narrow rows: a program for so few elements that it is over soon

# The backward adds over a block of tokens in one program. A fixed size, so that the order of additions depends on the
# number of tokens alone: 32 keep 132 multiprocessors busy from 4,096 tokens on, and 1,024 blocks are quickly added.
_MIN_BLOCK = 32
_MAX_BLOCKS = 1024
_FEW_TYPES = 2  # token types whose sums a program can hold beside those of weight and bias
_ONE_PASS_WIDTH = 4096  # wider rows take a launch for dx and one for the sums: together they spill registers

_SEGMENT = 64  # sorted tokens that a program adds, one after another: [MASK] is 13% of tokens and must be cut
_STAGES = 6  # rows on their way while one is added
_JOINED = 32  # partial sums added at a time
_SUM_COLUMNS = 128  # columns a program sums over segments or blocks, 4 for each lane of one warp


def launch_for(width: int, tile: int) -> Launch:
    columns = max(triton.next_power_of_2(width), 4)  # a whole Philox call
    rows = min(max(tile // columns, 1), _MAX_ROWS)
    return Launch(rows, columns, min(max(rows * columns * _WARPS // tile, 1), _MAX_WARPS))


# --- device functions -------------------------------------------------------------------------------------------------


@triton.jit
def load_rows(p_table, b_ids, num_rows, o_column, m_tile, width):
    """Rows of a table in float32 [ROWS, COLUMNS]; ids out of range are clamped."""
    b_ids = tl.minimum(tl.maximum(b_ids, 0), num_rows - 1)
    return tl.load(p_table + b_ids[:, None] * width + o_column[None, :], mask=m_tile, other=0.0).to(tl.float32)


@triton.jit
def summed_rows(
    p_word,
    p_token_type,
    p_position,
    p_input_ids,
    p_token_type_ids,
    p_position_ids,
    num_words,
    num_types,
    num_positions,
    width,
    o_token,
    m_token,
    o_column,
    m_tile,
    HAS_TYPE_IDS: tl.constexpr,
):
    """The three embeddings added [ROWS, COLUMNS], in the order of ElectraEmbeddings, and the token types [ROWS]."""
    b_types = tl.zeros_like(o_token)
    if HAS_TYPE_IDS:
        b_types = tl.load(p_token_type_ids + o_token, mask=m_token, other=0)
    b_words = tl.load(p_input_ids + o_token, mask=m_token, other=0)
    b_positions = tl.load(p_position_ids + o_token, mask=m_token, other=0)
    b_rows = load_rows(p_word, b_words, num_words, o_column, m_tile, width)
    b_rows += load_rows(p_token_type, b_types, num_types, o_column, m_tile, width)
    b_rows += load_rows(p_position, b_positions, num_positions, o_column, m_tile, width)
    return b_rows, tl.minimum(tl.maximum(b_types, 0), num_types - 1)


@triton.jit
def factors_of_tokens(
    p_seed, p_row_ids, o_token, m_token, drop_below, scale, stream, HAS_ROW_IDS: tl.constexpr, COLUMNS: tl.constexpr
):
    b_row_ids = tl.load(p_row_ids + o_token, mask=m_token, other=0) if HAS_ROW_IDS else o_token
    return dropout_factors(tl.load(p_seed), b_row_ids, stream, drop_below, scale, COLUMNS)


# --- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["num_tokens", "num_words", "num_types", "num_positions", "drop_below", "stream"])
def forward_kernel(
    p_word,
    p_token_type,
    p_position,
    p_weight,
    p_bias,
    p_input_ids,
    p_token_type_ids,
    p_position_ids,
    p_seed,
    p_row_ids,
    p_y,
    p_stats,
    num_tokens,
    num_words,
    num_types,
    num_positions,
    width,
    eps,
    drop_below,
    scale,
    stream,
    HAS_TYPE_IDS: tl.constexpr,
    HAS_ROW_IDS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    o_token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_column = tl.arange(0, COLUMNS)
    m_token, m_column = o_token < num_tokens, o_column < width
    m_tile = m_token[:, None] & m_column[None, :]
    b_rows, _ = summed_rows(
        p_word,
        p_token_type,
        p_position,
        p_input_ids,
        p_token_type_ids,
        p_position_ids,
        num_words,
        num_types,
        num_positions,
        width,
        o_token,
        m_token,
        o_column,
        m_tile,
        HAS_TYPE_IDS,
    )
    b_x_hat, b_mean, b_rstd = standardise(b_rows, m_column, width, eps)
    b_weight = tl.load(p_weight + o_column, mask=m_column, other=0.0)
    b_y = b_x_hat * b_weight[None, :] + tl.load(p_bias + o_column, mask=m_column, other=0.0)[None, :]
    if HAS_DROPOUT:
        b_y *= factors_of_tokens(p_seed, p_row_ids, o_token, m_token, drop_below, scale, stream, HAS_ROW_IDS, COLUMNS)
    tl.store(p_y + o_token[:, None] * width + o_column[None, :], b_y.to(p_y.dtype.element_ty), mask=m_tile)
    tl.store(p_stats + o_token, b_mean, mask=m_token)
    tl.store(p_stats + num_tokens + o_token, b_rstd, mask=m_token)


@triton.jit(
    do_not_specialize=["num_tokens", "num_words", "num_types", "num_positions", "block", "drop_below", "stream"]
)
def backward_kernel(
    p_dy,
    p_word,
    p_token_type,
    p_position,
    p_weight,
    p_stats,
    p_input_ids,
    p_token_type_ids,
    p_position_ids,
    p_seed,
    p_row_ids,
    p_dx,
    p_sums,
    num_tokens,
    num_words,
    num_types,
    num_positions,
    width,
    block,
    drop_below,
    scale,
    stream,
    HAS_TYPE_IDS: tl.constexpr,
    HAS_ROW_IDS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    WRITES_DX: tl.constexpr,
    SUMS: tl.constexpr,
    SUMS_TYPES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of each token's sum [T, E], and over blocks of tokens what dweight, dbias and dtoken_type sum."""
    i_block = tl.program_id(0).to(tl.int64)
    o_column = tl.arange(0, COLUMNS)
    m_column = o_column < width
    b_weight = tl.load(p_weight + o_column, mask=m_column, other=0.0)
    b_dweight = tl.zeros([ROWS, COLUMNS], tl.float32)
    b_dbias = tl.zeros([ROWS, COLUMNS], tl.float32)
    b_type0 = tl.zeros([ROWS, COLUMNS], tl.float32)
    b_type1 = tl.zeros([ROWS, COLUMNS], tl.float32)
    end = tl.minimum((i_block + 1) * block, num_tokens)
    for begin in range(i_block * block, end, ROWS):
        o_token = begin + tl.arange(0, ROWS)
        m_token = o_token < end
        m_tile = m_token[:, None] & m_column[None, :]
        o_tile = o_token[:, None] * width + o_column[None, :]
        b_factors = tl.full([ROWS, COLUMNS], 1.0, tl.float32)
        if HAS_DROPOUT:  # before anything else holds registers
            b_factors = factors_of_tokens(
                p_seed, p_row_ids, o_token, m_token, drop_below, scale, stream, HAS_ROW_IDS, COLUMNS
            )
        b_dy = tl.load(p_dy + o_tile, mask=m_tile, other=0.0).to(tl.float32) * b_factors
        b_rows, b_types = summed_rows(
            p_word,
            p_token_type,
            p_position,
            p_input_ids,
            p_token_type_ids,
            p_position_ids,
            num_words,
            num_types,
            num_positions,
            width,
            o_token,
            m_token,
            o_column,
            m_tile,
            HAS_TYPE_IDS,
        )
        b_mean = tl.load(p_stats + o_token, mask=m_token, other=0.0)
        b_rstd = tl.load(p_stats + num_tokens + o_token, mask=m_token, other=0.0)
        # A single column is constant: no gradient, where 1 / sqrt(eps) would multiply what rounding leaves.
        b_rstd = tl.where(width > 1, b_rstd, 0.0)
        b_x_hat = tl.where(m_tile, (b_rows - b_mean[:, None]) * b_rstd[:, None], 0.0)
        if WRITES_DX:
            b_dx = standardise_backward(b_dy, b_x_hat, b_weight, b_rstd, width)
            tl.store(p_dx + o_tile, b_dx.to(p_dx.dtype.element_ty), mask=m_tile)
        if SUMS:
            b_dweight += b_dy * b_x_hat
            b_dbias += b_dy
        if SUMS_TYPES:
            b_type0 += tl.where(m_tile & (b_types == 0)[:, None], b_dx, 0.0)
            b_type1 += tl.where(m_tile & (b_types == 1)[:, None], b_dx, 0.0)

    if SUMS:
        p_sums += i_block * 4 * width + o_column
        tl.store(p_sums, tl.sum(b_dweight, 0), mask=m_column)
        tl.store(p_sums + width, tl.sum(b_dbias, 0), mask=m_column)
        tl.store(p_sums + 2 * width, tl.sum(b_type0, 0), mask=m_column)
        tl.store(p_sums + 3 * width, tl.sum(b_type1, 0), mask=m_column)


@triton.jit(do_not_specialize=["num_blocks"])
def sum_blocks_kernel(p_sums, p_total, num_blocks, num_columns, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sums [num_blocks, num_columns] of all blocks added."""
    o_column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < num_columns
    b_total = sum_blocks(p_sums, o_column, m_column, num_blocks, num_columns, BLOCKS, COLUMNS)
    tl.store(p_total + o_column, b_total, mask=m_column)


@triton.jit(do_not_specialize=["num_tokens", "padding_idx"])
def sum_segments_kernel(
    p_dx,
    p_sorted_ids,
    p_order,
    p_gradient,
    p_partial,
    num_tokens,
    width,
    padding_idx,
    SEGMENT: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Adds dx over each run of equal ids in one segment of the sorted tokens.

    A run that lies inside the segment is a row of the gradient. Of one that is cut, the part goes to `p_partial`
    [segments, 2, width]: slot 0 where it began in an earlier segment, slot 1 where it begins here.
    """
    i_segment = tl.program_id(0).to(tl.int64)
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < width
    begin = i_segment * SEGMENT
    end = tl.minimum(begin + SEGMENT, num_tokens)
    before = tl.load(p_sorted_ids + begin - 1, mask=begin > 0, other=-1)
    is_cut_before = tl.load(p_sorted_ids + begin) == before
    b_sum = tl.zeros([COLUMNS], tl.float32)
    for i in tl.range(begin, end, num_stages=STAGES):
        row = tl.load(p_sorted_ids + i).to(tl.int64)
        following = tl.load(p_sorted_ids + i + 1, mask=i + 1 < num_tokens, other=-1).to(tl.int64)
        o_dx = tl.load(p_order + i) * width + o_column
        b_sum += tl.load(p_dx + o_dx, mask=m_column, other=0.0).to(tl.float32)
        is_end = row != following
        is_whole = is_end & (is_cut_before == 0) & (row != padding_idx)
        is_part = (is_end & is_cut_before) | ((i + 1 == end) & (is_end == 0))
        slot = tl.where(is_cut_before, 0, 1)
        tl.store(p_gradient + row * width + o_column, b_sum.to(p_gradient.dtype.element_ty), mask=m_column & is_whole)
        tl.store(p_partial + (i_segment * 2 + slot) * width + o_column, b_sum, mask=m_column & is_part)
        b_sum = tl.where(is_end, 0.0, b_sum)
        is_cut_before = is_cut_before & (is_end == 0)


@triton.jit(do_not_specialize=["num_tokens", "padding_idx"])
def join_segments_kernel(
    p_sorted_ids,
    p_gradient,
    p_partial,
    num_tokens,
    width,
    padding_idx,
    SEGMENT: tl.constexpr,
    JOINED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Adds the parts of the run that begins in this segment and is cut at its end, if there is one."""
    i_segment = tl.program_id(0).to(tl.int64)
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < width
    begin = i_segment * SEGMENT
    end = begin + SEGMENT
    row = tl.load(p_sorted_ids + end - 1, mask=end < num_tokens, other=-1).to(tl.int64)
    before = tl.load(p_sorted_ids + begin - 1, mask=(begin > 0) & (end < num_tokens), other=-1).to(tl.int64)
    following = tl.load(p_sorted_ids + end, mask=end < num_tokens, other=-1).to(tl.int64)
    if (end < num_tokens) & (row == following) & (row != before) & (row != padding_idx):
        b_sum = tl.zeros([JOINED, COLUMNS], tl.float32)
        b_first = tl.load(p_partial + (i_segment * 2 + 1) * width + o_column, mask=m_column, other=0.0)
        i_next = i_segment + 1
        num_found = tl.full([], JOINED, tl.int32)
        while num_found == JOINED:
            o_segment = i_next + tl.arange(0, JOINED)
            m_segment = o_segment * SEGMENT < num_tokens
            m_segment &= tl.load(p_sorted_ids + o_segment * SEGMENT, mask=m_segment, other=-1) == row
            o_partial = o_segment[:, None] * 2 * width + o_column[None, :]
            b_sum += tl.load(p_partial + o_partial, mask=m_segment[:, None] & m_column[None, :], other=0.0)
            num_found = tl.sum(m_segment.to(tl.int32))
            i_next += JOINED
        b_sum = b_first + tl.sum(b_sum, 0)
        tl.store(p_gradient + row * width + o_column, b_sum.to(p_gradient.dtype.element_ty), mask=m_column)


# --- launches ---------------------------------------------------------------------------------------------------------


def embedding_layer_norm_triton(
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    bias: Tensor,
    input_ids: Tensor,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    padding_idx: int,
    p: float,
    eps: float,
    stream: int,
) -> tuple[Tensor, Tensor]:
    """Launches the forward; arguments and results as `embedding_layer_norm_reference` has them."""
    num_tokens, width = input_ids.shape[0], word.shape[1]
    y = word.new_empty(num_tokens, width)
    stats = word.new_empty(2, num_tokens, dtype=torch.float32)
    if num_tokens == 0:
        return y, stats
    launch = launch_for(width, _FORWARD_TILE)
    with torch.cuda.device_of(word):
        forward_kernel[(triton.cdiv(num_tokens, launch.rows),)](
            word,
            token_type,
            position,
            weight,
            bias,
            input_ids,
            input_ids if token_type_ids is None else token_type_ids,
            position_ids,
            input_ids if seed is None else seed,
            input_ids if row_ids is None else row_ids,
            y,
            stats,
            num_tokens,
            word.shape[0],
            token_type.shape[0],
            position.shape[0],
            width,
            eps,
            threshold(p),
            1 / (1 - p),
            stream,
            HAS_TYPE_IDS=token_type_ids is not None,
            HAS_ROW_IDS=row_ids is not None,
            HAS_DROPOUT=p > 0,
            ROWS=launch.rows,
            COLUMNS=launch.columns,
            num_warps=launch.warps,
        )
    return y, stats


def embedding_layer_norm_backward_triton(
    dy: Tensor,
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    stats: Tensor,
    input_ids: Tensor,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    padding_idx: int,
    p: float,
    stream: int,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launches the backward; arguments and results as `embedding_layer_norm_backward_reference` has them."""
    num_tokens, width = input_ids.shape[0], word.shape[1]
    needs_word, needs_type, needs_position, needs_weight, needs_bias = needed
    few_types = token_type.shape[0] <= _FEW_TYPES and width <= _ONE_PASS_WIDTH
    launch = launch_for(width, _BACKWARD_TILE)
    block = max(_MIN_BLOCK, triton.cdiv(num_tokens, _MAX_BLOCKS))
    num_blocks = triton.cdiv(num_tokens, block)
    dy = dy.contiguous()
    dx = torch.empty_like(dy)
    sums = weight.new_empty(num_blocks, 4, width)
    total = weight.new_empty(4, width)
    with torch.cuda.device_of(word):
        passes = [(True, True)] if width <= _ONE_PASS_WIDTH else [(True, False), (False, True)]
        for writes_dx, sums_too in passes if num_tokens > 0 else []:
            backward_kernel[(num_blocks,)](
                dy,
                word,
                token_type,
                position,
                weight,
                stats,
                input_ids,
                input_ids if token_type_ids is None else token_type_ids,
                position_ids,
                input_ids if seed is None else seed,
                input_ids if row_ids is None else row_ids,
                dx,
                sums,
                num_tokens,
                word.shape[0],
                token_type.shape[0],
                position.shape[0],
                width,
                block,
                threshold(p),
                1 / (1 - p),
                stream,
                HAS_TYPE_IDS=token_type_ids is not None,
                HAS_ROW_IDS=row_ids is not None,
                HAS_DROPOUT=p > 0,
                WRITES_DX=writes_dx,
                SUMS=sums_too,
                SUMS_TYPES=few_types and needs_type,
                ROWS=launch.rows,
                COLUMNS=launch.columns,
                num_warps=launch.warps,
            )
        sum_blocks_kernel[(triton.cdiv(4 * width, _SUM_COLUMNS),)](
            sums, total, num_blocks, 4 * width, BLOCKS=_JOINED, COLUMNS=_SUM_COLUMNS, num_warps=_WARPS
        )
        dtoken_type = word.new_empty(0)
        if needs_type and few_types:
            dtoken_type = total[2 : 2 + token_type.shape[0]].to(word.dtype, copy=True)
        elif needs_type:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            dtoken_type = _table_gradient(dx, types, token_type)
        return (
            _table_gradient(dx, input_ids, word, padding_idx) if needs_word else word.new_empty(0),
            dtoken_type,
            _table_gradient(dx, position_ids, position) if needs_position else word.new_empty(0),
            total[0].clone() if needs_weight else weight.new_empty(0),
            total[1].clone() if needs_bias else weight.new_empty(0),
        )


def _table_gradient(dx: Tensor, ids: Tensor, table: Tensor, padding_idx: int = -1) -> Tensor:
    """Row r is the sum of dx [T, E] over the tokens whose id is r, in their order."""
    gradient = torch.zeros_like(table)
    num_tokens, width = dx.shape
    if num_tokens == 0:
        return gradient
    # A radix sort takes time by the byte of its keys.
    num_rows = table.shape[0]
    narrow = torch.int16 if num_rows <= 2**15 else torch.int32 if num_rows <= 2**31 else torch.int64
    sorted_ids, order = torch.sort(ids.clamp(0, num_rows - 1).to(narrow), stable=True)
    columns = min(triton.next_power_of_2(width), _SUM_COLUMNS)
    num_segments = triton.cdiv(num_tokens, _SEGMENT)
    grid = (num_segments, triton.cdiv(width, columns))
    partial = dx.new_empty(num_segments, 2, width, dtype=torch.float32)
    sum_segments_kernel[grid](
        dx,
        sorted_ids,
        order,
        gradient,
        partial,
        num_tokens,
        width,
        padding_idx,
        SEGMENT=_SEGMENT,
        COLUMNS=columns,
        STAGES=_STAGES,
        num_warps=1,
    )
    join_segments_kernel[grid](
        sorted_ids,
        gradient,
        partial,
        num_tokens,
        width,
        padding_idx,
        SEGMENT=_SEGMENT,
        JOINED=_JOINED,
        COLUMNS=columns,
        num_warps=_WARPS,
    )
    return gradient
