"""Attention over packed sequences: one launch forward; backward one for dq, by queries, and one for dk and dv, by keys.

electra_fast/ops/attention.py says what is computed. Programs are (block of the longest sequence, sequence, head), so
nothing waits for the lengths: blocks past a sequence's end stop at once, and one more "sequence" fills the tail with
zeros. Each result is summed by one program in a fixed order, so it is the same in every run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from electra_fast.kernels.philox import philox
from electra_fast.ops.random import threshold

MAX_HEAD_DIM = 128

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


class _Launch(NamedTuple):
    block_m: int  # queries
    block_n: int  # keys
    num_warps: int
    num_stages: int


# By bytes of an element and padded head size: the largest blocks found that spill on no target of
# tests/kernels/ahead_of_time.py. Not measured: no GPU has run them.
_FORWARD = {
    (2, 64): _Launch(64, 32, 4, 1),  # 64 keys spill on gfx942, two stages on sm_100
    (2, 128): _Launch(64, 32, 4, 2),
    (4, 64): _Launch(32, 32, 4, 1),  # float32 multiplies without tensor cores, with operands in registers
    (4, 128): _Launch(16, 16, 8, 1),
}
_DQ = {  # two operands stay through the loop
    (2, 64): _Launch(64, 32, 4, 1),
    (2, 128): _Launch(32, 32, 4, 1),
    (4, 64): _Launch(16, 16, 4, 1),
    (4, 128): _Launch(16, 16, 8, 1),
}
_DKDV = {  # and two accumulators
    (2, 64): _Launch(32, 32, 4, 1),  # 64 queries spill on sm_120
    (2, 128): _Launch(32, 32, 4, 1),
    (4, 64): _Launch(16, 32, 8, 1),
    (4, 128): _Launch(16, 32, 8, 1),
}


# --- Device functions -------------------------------------------------------------------------------------------------


@triton.jit
def sequence_bounds(p_cu_seqlens, i_sequence, num_sequences, num_tokens):
    """First token and length; for the one past the last sequence, those of the tail."""
    is_sequence = i_sequence < num_sequences
    begin = tl.load(p_cu_seqlens + i_sequence).to(tl.int64)
    end = tl.load(p_cu_seqlens + i_sequence + 1, mask=is_sequence, other=0).to(tl.int64)
    # Clamped, so that a wrong cu_seqlens reads and writes nothing outside.
    total = num_tokens.to(tl.int64)
    begin = tl.minimum(tl.maximum(begin, 0), total)
    end = tl.where(is_sequence, tl.minimum(end, total), total)
    return begin, tl.maximum(end - begin, 0).to(tl.int32)


@triton.jit
def load_rows(p_x, o_row, length, token_stride, o_dim, DIM: tl.constexpr):
    """[rows, dim], zeros outside; `p_x` points at the sequence's first row of one head."""
    m_x = (o_row < length)[:, None] & (o_dim < DIM)[None, :]
    return tl.load(p_x + o_row.to(tl.int64)[:, None] * token_stride + o_dim[None, :], mask=m_x, other=0.0)


@triton.jit
def store_rows(p_x, o_row, length, token_stride, o_dim, b_x, DIM: tl.constexpr):
    m_x = (o_row < length)[:, None] & (o_dim < DIM)[None, :]
    p_row = p_x + o_row.to(tl.int64)[:, None] * token_stride + o_dim[None, :]
    tl.store(p_row, b_x.to(p_x.dtype.element_ty), mask=m_x)


@triton.jit
def fill_tail(p_x, i_block, length, token_stride, o_dim, BLOCK: tl.constexpr, DIM: tl.constexpr, num_blocks):
    """Zeros; the tail may be longer than a sequence, so the blocks take turns."""
    b_zero = tl.zeros([BLOCK, o_dim.shape[0]], tl.float32)
    for start in range(i_block * BLOCK, length, num_blocks * BLOCK):
        store_rows(p_x, start + tl.arange(0, BLOCK), length, token_stride, o_dim, b_zero, DIM)


@triton.jit
def load_row_ids(p_row_ids, begin, o_row, length, HAS_ROW_IDS: tl.constexpr):
    if HAS_ROW_IDS:
        return tl.load(p_row_ids + begin + o_row, mask=o_row < length, other=0)
    else:
        return begin + o_row


@triton.jit
def is_dropped(seed, b_row_ids, i_head, start, stream, last_dropped, M: tl.constexpr, N: tl.constexpr):
    """Whether the probability of each of N keys from `start`, a multiple of 4, is dropped: [M, N]."""
    o_block = i_head * 16384 + start // 4 + tl.arange(0, N // 4)
    b_rows = b_row_ids[:, None] + tl.zeros([1, N // 4], tl.int64)
    w0, w1, w2, w3 = philox(seed, b_rows, o_block[None, :], stream)
    b_words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [M, N])
    return b_words <= last_dropped.to(tl.uint32)


@triton.jit
def multiply(b_a, b_b):
    """Float32 sums; "ieee" because the default rounds float32 factors to 11 bits."""
    return tl.dot(b_a, b_b, input_precision="ieee")


@triton.jit
def multiply_queries(b_query, b_key):
    """query key^T, where the queries stay through a loop: in float32 they would stay in registers as left factors."""
    if b_query.dtype == tl.float32:
        return tl.trans(multiply(b_key, tl.trans(b_query)))
    else:
        return multiply(b_query, tl.trans(b_key))


# --- Kernels ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["num_tokens", "num_sequences", "num_blocks", "last_dropped", "stream"])
def forward_kernel(
    p_q,
    p_k,
    p_v,
    p_cu_seqlens,
    p_seed,
    p_row_ids,
    p_out,
    p_lse,
    num_tokens,
    num_sequences,
    num_blocks,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    out_token,
    scale,
    last_dropped,
    keep_scale,
    stream,
    DROPOUT: tl.constexpr,
    HAS_ROW_IDS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A block of queries against all keys of its sequence, with the softmax taken as they come."""
    i_sequence, i_block = tl.program_id(0) // num_blocks, tl.program_id(0) % num_blocks
    i_head = tl.program_id(1)
    begin, length = sequence_bounds(p_cu_seqlens, i_sequence, num_sequences, num_tokens)
    o_dim = tl.arange(0, BLOCK_D)
    p_out += begin * out_token + i_head * DIM
    p_lse += i_head.to(tl.int64) * num_tokens + begin
    if i_sequence == num_sequences:
        fill_tail(p_out, i_block, length, out_token, o_dim, BLOCK_M, DIM, num_blocks)
        for start in range(i_block * BLOCK_M, length, num_blocks * BLOCK_M):
            o_tail = start + tl.arange(0, BLOCK_M)
            tl.store(p_lse + o_tail, tl.zeros([BLOCK_M], tl.float32), mask=o_tail < length)
        return
    if i_block * BLOCK_M >= length:
        return

    o_query = i_block * BLOCK_M + tl.arange(0, BLOCK_M)
    b_q = load_rows(p_q + begin * q_token + i_head * q_head, o_query, length, q_token, o_dim, DIM)
    p_k += begin * k_token + i_head * k_head
    p_v += begin * v_token + i_head * v_head
    if DROPOUT:
        seed = tl.load(p_seed)
        b_row_ids = load_row_ids(p_row_ids, begin, o_query, length, HAS_ROW_IDS)
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, length, BLOCK_N):
        o_key = start + tl.arange(0, BLOCK_N)
        b_k = load_rows(p_k, o_key, length, k_token, o_dim, DIM)
        b_scores = multiply_queries(b_q, b_k) * (scale * _LOG2_E)
        b_scores = tl.where((o_key < length)[None, :], b_scores, float("-inf"))
        b_top = tl.maximum(b_max, tl.max(b_scores, 1))
        b_shrink = tl.exp2(b_max - b_top)
        b_probability = tl.exp2(b_scores - b_top[:, None])
        b_sum = b_sum * b_shrink + tl.sum(b_probability, 1)
        b_max = b_top
        if DROPOUT:
            b_dropped = is_dropped(seed, b_row_ids, i_head, start, stream, last_dropped, BLOCK_M, BLOCK_N)
            b_probability = tl.where(b_dropped, 0.0, b_probability)
        b_v = load_rows(p_v, o_key, length, v_token, o_dim, DIM)
        b_out = b_out * b_shrink[:, None] + multiply(b_probability.to(b_v.dtype), b_v)
    b_factor = keep_scale / b_sum if DROPOUT else 1.0 / b_sum
    store_rows(p_out, o_query, length, out_token, o_dim, b_out * b_factor[:, None], DIM)
    tl.store(p_lse + o_query, (b_max + tl.log2(b_sum)) * _LN_2, mask=o_query < length)


@triton.jit(do_not_specialize=["num_tokens", "num_sequences", "num_blocks", "last_dropped", "stream"])
def dq_kernel(
    p_d_out,
    p_q,
    p_k,
    p_v,
    p_out,
    p_lse,
    p_cu_seqlens,
    p_seed,
    p_row_ids,
    p_dq,
    p_delta,
    num_tokens,
    num_sequences,
    num_blocks,
    d_out_token,
    d_out_head,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    out_token,
    scale,
    last_dropped,
    keep_scale,
    stream,
    DROPOUT: tl.constexpr,
    HAS_ROW_IDS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dq for a block of queries; also delta [heads, T], the sum of d_out * out, which the next kernel needs."""
    i_sequence, i_block = tl.program_id(0) // num_blocks, tl.program_id(0) % num_blocks
    i_head = tl.program_id(1)
    begin, length = sequence_bounds(p_cu_seqlens, i_sequence, num_sequences, num_tokens)
    o_dim = tl.arange(0, BLOCK_D)
    p_dq += begin * out_token + i_head * DIM
    if i_sequence == num_sequences:
        fill_tail(p_dq, i_block, length, out_token, o_dim, BLOCK_M, DIM, num_blocks)
        return
    if i_block * BLOCK_M >= length:
        return

    o_query = i_block * BLOCK_M + tl.arange(0, BLOCK_M)
    b_q = load_rows(p_q + begin * q_token + i_head * q_head, o_query, length, q_token, o_dim, DIM)
    p_d_out += begin * d_out_token + i_head * d_out_head
    b_d_out = load_rows(p_d_out, o_query, length, d_out_token, o_dim, DIM)
    b_out = load_rows(p_out + begin * out_token + i_head * DIM, o_query, length, out_token, o_dim, DIM)
    o_statistic = i_head.to(tl.int64) * num_tokens + begin + o_query
    b_lse = tl.load(p_lse + o_statistic, mask=o_query < length, other=0.0) * _LOG2_E
    b_delta = tl.sum(b_d_out.to(tl.float32) * b_out.to(tl.float32), 1)
    tl.store(p_delta + o_statistic, b_delta, mask=o_query < length)
    p_k += begin * k_token + i_head * k_head
    p_v += begin * v_token + i_head * v_head
    if DROPOUT:
        seed = tl.load(p_seed)
        b_row_ids = load_row_ids(p_row_ids, begin, o_query, length, HAS_ROW_IDS)
    b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, length, BLOCK_N):
        o_key = start + tl.arange(0, BLOCK_N)
        b_v = load_rows(p_v, o_key, length, v_token, o_dim, DIM)
        b_d_probability = multiply_queries(b_d_out, b_v)
        if DROPOUT:
            b_dropped = is_dropped(seed, b_row_ids, i_head, start, stream, last_dropped, BLOCK_M, BLOCK_N)
            b_d_probability = tl.where(b_dropped, 0.0, b_d_probability * keep_scale)
        b_k = load_rows(p_k, o_key, length, k_token, o_dim, DIM)
        b_probability = tl.exp2(multiply_queries(b_q, b_k) * (scale * _LOG2_E) - b_lse[:, None])
        b_d_score = b_probability * (b_d_probability - b_delta[:, None])
        # Keys outside have scores of 0; their factor in this product is 0 too, unless the probability overflowed.
        b_d_score = tl.where((o_key < length)[None, :], b_d_score, 0.0)
        b_dq += multiply(b_d_score.to(b_k.dtype), b_k)
    store_rows(p_dq, o_query, length, out_token, o_dim, b_dq * scale, DIM)


@triton.jit(do_not_specialize=["num_tokens", "num_sequences", "num_blocks", "last_dropped", "stream"])
def dkdv_kernel(
    p_d_out,
    p_q,
    p_k,
    p_v,
    p_lse,
    p_delta,
    p_cu_seqlens,
    p_seed,
    p_row_ids,
    p_dk,
    p_dv,
    num_tokens,
    num_sequences,
    num_blocks,
    d_out_token,
    d_out_head,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    out_token,
    scale,
    last_dropped,
    keep_scale,
    stream,
    DROPOUT: tl.constexpr,
    HAS_ROW_IDS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dk and dv for a block of keys, over all queries of the sequence."""
    i_sequence, i_block = tl.program_id(0) // num_blocks, tl.program_id(0) % num_blocks
    i_head = tl.program_id(1)
    begin, length = sequence_bounds(p_cu_seqlens, i_sequence, num_sequences, num_tokens)
    o_dim = tl.arange(0, BLOCK_D)
    p_dk += begin * out_token + i_head * DIM
    p_dv += begin * out_token + i_head * DIM
    if i_sequence == num_sequences:
        fill_tail(p_dk, i_block, length, out_token, o_dim, BLOCK_N, DIM, num_blocks)
        fill_tail(p_dv, i_block, length, out_token, o_dim, BLOCK_N, DIM, num_blocks)
        return
    first_key = i_block * BLOCK_N
    if first_key >= length:
        return

    o_key = first_key + tl.arange(0, BLOCK_N)
    b_k = load_rows(p_k + begin * k_token + i_head * k_head, o_key, length, k_token, o_dim, DIM)
    b_v = load_rows(p_v + begin * v_token + i_head * v_head, o_key, length, v_token, o_dim, DIM)
    p_q += begin * q_token + i_head * q_head
    p_d_out += begin * d_out_token + i_head * d_out_head
    o_statistics = i_head.to(tl.int64) * num_tokens + begin
    b_dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(0, length, BLOCK_M):
        o_query = start + tl.arange(0, BLOCK_M)
        m_query = o_query < length
        b_q = load_rows(p_q, o_query, length, q_token, o_dim, DIM)
        b_d_out = load_rows(p_d_out, o_query, length, d_out_token, o_dim, DIM)
        # Queries outside get no probability at all.
        b_lse = tl.load(p_lse + o_statistics + o_query, mask=m_query, other=float("inf")) * _LOG2_E
        b_delta = tl.load(p_delta + o_statistics + o_query, mask=m_query, other=0.0)
        b_probability = tl.exp2(multiply(b_q, tl.trans(b_k)) * (scale * _LOG2_E) - b_lse[:, None])
        b_d_probability = multiply(b_d_out, tl.trans(b_v))
        b_kept = b_probability
        if DROPOUT:
            b_row_ids = load_row_ids(p_row_ids, begin, o_query, length, HAS_ROW_IDS)
            b_dropped = is_dropped(
                tl.load(p_seed), b_row_ids, i_head, first_key, stream, last_dropped, BLOCK_M, BLOCK_N
            )
            b_kept = tl.where(b_dropped, 0.0, b_probability * keep_scale)
            b_d_probability = tl.where(b_dropped, 0.0, b_d_probability * keep_scale)
        b_dv += multiply(tl.trans(b_kept.to(b_d_out.dtype)), b_d_out)
        b_d_score = b_probability * (b_d_probability - b_delta[:, None])
        b_dk += multiply(tl.trans(b_d_score.to(b_q.dtype)), b_q)
    store_rows(p_dk, o_key, length, out_token, o_dim, b_dk * scale, DIM)
    store_rows(p_dv, o_key, length, out_token, o_dim, b_dv, DIM)


# --- Launchers --------------------------------------------------------------------------------------------------------


def varlen_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    max_seqlen: int,
    p: float,
    stream: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Arguments as `varlen_attention_reference` takes them, checked."""
    q, k, v, cu_seqlens = _rows(q), _rows(k), _rows(v), cu_seqlens.contiguous()
    out = q.new_empty(q.shape)
    lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    if q.shape[0] == 0:
        return out, lse
    launch, constants = _launch(_FORWARD, q)
    num_blocks = triton.cdiv(max(max_seqlen, 1), launch.block_m)
    with torch.cuda.device_of(q):
        forward_kernel[(num_blocks * cu_seqlens.shape[0], q.shape[1])](
            q,
            k,
            v,
            cu_seqlens,
            q if seed is None else seed,
            q if row_ids is None else row_ids,
            out,
            lse,
            q.shape[0],
            cu_seqlens.shape[0] - 1,
            num_blocks,
            *_strides(q, k, v),
            out.stride(0),
            scale,
            *_dropout(p),
            stream,
            DROPOUT=p > 0,
            HAS_ROW_IDS=row_ids is not None,
            **constants,
        )
    return out, lse


def varlen_attention_backward_triton(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    row_ids: Tensor | None,
    max_seqlen: int,
    p: float,
    stream: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as `varlen_attention_backward_reference` takes them, checked."""
    d_out, q, k, v, cu_seqlens = _rows(d_out), _rows(q), _rows(k), _rows(v), cu_seqlens.contiguous()
    out = out.contiguous()
    dq, dk, dv = (q.new_empty(q.shape) for _ in range(3))
    if q.shape[0] == 0:
        return dq, dk, dv
    delta = torch.empty_like(lse)
    most, rows = max(max_seqlen, 1), cu_seqlens.shape[0]
    seed, ids = q if seed is None else seed, q if row_ids is None else row_ids
    numbers = (*_strides(d_out, q, k, v), out.stride(0), scale, *_dropout(p), stream)
    options = {"DROPOUT": p > 0, "HAS_ROW_IDS": row_ids is not None}
    with torch.cuda.device_of(q):
        launch, constants = _launch(_DQ, q)
        blocks = triton.cdiv(most, launch.block_m)
        sizes = (q.shape[0], rows - 1, blocks)
        dq_kernel[(blocks * rows, q.shape[1])](
            d_out, q, k, v, out, lse, cu_seqlens, seed, ids, dq, delta, *sizes, *numbers, **options, **constants
        )
        launch, constants = _launch(_DKDV, q)
        blocks = triton.cdiv(most, launch.block_n)
        sizes = (q.shape[0], rows - 1, blocks)
        dkdv_kernel[(blocks * rows, q.shape[1])](
            d_out, q, k, v, lse, delta, cu_seqlens, seed, ids, dk, dv, *sizes, *numbers, **options, **constants
        )
    return dq, dk, dv


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:2])


def _dropout(p: float) -> tuple[int, float]:
    """The largest word that is dropped, and the factor of what is kept."""
    return max(threshold(p) - 1, 0), 1.0 / (1.0 - p) if p < 1 else 0.0


def _launch(table: dict[tuple[int, int], _Launch], q: Tensor) -> tuple[_Launch, dict[str, int]]:
    dim = q.shape[2]
    if dim > MAX_HEAD_DIM:
        raise ValueError(f"varlen_attention: heads have {dim} dimensions; the triton backend takes {MAX_HEAD_DIM}")
    padded = max(triton.next_power_of_2(dim), 16)
    launch = table[q.element_size(), max(padded, 64)]
    return launch, {
        "DIM": dim,
        "BLOCK_M": launch.block_m,
        "BLOCK_N": launch.block_n,
        "BLOCK_D": padded,
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
    }
