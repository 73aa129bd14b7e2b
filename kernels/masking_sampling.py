"""mask_tokens on the device, in four launches of fixed shape: draw, pick, a cumulative sum, write.

electra_fast/ops/masking_sampling.py says what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from electra_fast.kernels.philox import philox

# Launch parameters: (block, warps). Reasoned, not measured: no GPU has run them yet.
_DRAW = (1024, 8)  # 4 tokens a thread hide the multiplications of Philox behind each other
_PICK = (512, 4)  # a usual sequence is one block, so that a counting pass is one load and one reduction
_WRITE = (256, 4)  # one element a thread: the binary search waits for memory, which only more threads hide

_NEVER = tl.constexpr(1 << 32)  # above every key: the token is no candidate


@triton.jit(do_not_specialize=["num_tokens", "replace_below", "stream"])
def draw_kernel(
    p_input_ids,
    p_seed,
    p_row_ids,
    p_keys,
    p_decisions,
    num_tokens,
    replace_below,
    stream,
    NEVER_MASK_IDS: tl.constexpr,
    HAS_ROW_IDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each token's key, and whether [MASK] replaces it if it is picked."""
    o_token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_token = o_token < num_tokens
    b_ids = tl.load(p_input_ids + o_token, mask=m_token, other=0)
    b_rows = tl.load(p_row_ids + o_token, mask=m_token, other=0) if HAS_ROW_IDS else o_token
    b_keys, b_decisions, _, _ = philox(tl.load(p_seed), b_rows, 0, stream)
    b_keys = b_keys.to(tl.int64)
    for i in tl.static_range(len(NEVER_MASK_IDS)):
        b_keys = tl.where(b_ids == NEVER_MASK_IDS[i], _NEVER, b_keys)
    tl.store(p_keys + o_token, b_keys, mask=m_token)
    tl.store(p_decisions + o_token, (b_decisions.to(tl.int64) < replace_below).to(tl.int8), mask=m_token)


@triton.jit
def count_below(p_keys, begin, end, bound, BLOCK: tl.constexpr):
    """How many keys in [begin, end) are smaller than `bound`."""
    b_count = tl.zeros([BLOCK], tl.int32)
    for start in range(begin, end, BLOCK):
        o_token = start + tl.arange(0, BLOCK)
        b_keys = tl.load(p_keys + o_token, mask=o_token < end, other=_NEVER)
        b_count += (b_keys < bound).to(tl.int32)
    return tl.sum(b_count)


@triton.jit
def round_share(n, mask_prob):
    """round_half_even(n * mask_prob), the product in float32."""
    # The float64 product is exact, so rounding it to float32 is the float32 product, whatever the compiler fuses.
    share = (n.to(tl.float64) * tl.full([], mask_prob, tl.float32).to(tl.float64)).to(tl.float32)
    whole = tl.floor(share)
    rest = share - whole
    is_odd = (whole.to(tl.int64) & 1) == 1
    return whole.to(tl.int64) + ((rest > 0.5) | ((rest == 0.5) & is_odd)).to(tl.int64)


@triton.jit(do_not_specialize=["num_tokens", "num_sequences", "max_per_sequence"])
def pick_kernel(
    p_cu_seqlens,
    p_keys,
    p_picked,
    num_tokens,
    num_sequences,
    mask_prob,
    max_per_sequence,
    BLOCK: tl.constexpr,
):
    """One program a sequence marks its smallest keys; one more marks none of the tokens after the last sequence."""
    i_sequence = tl.program_id(0)
    is_sequence = i_sequence < num_sequences
    num_tokens = num_tokens.to(tl.int64)
    begin = tl.load(p_cu_seqlens + i_sequence).to(tl.int64)
    end = tl.load(p_cu_seqlens + i_sequence + 1, mask=is_sequence, other=0).to(tl.int64)
    # Clamped, so that a wrong cu_seqlens reads and writes nothing outside.
    begin = tl.maximum(begin, 0)
    end = tl.where(is_sequence, tl.minimum(end, num_tokens), num_tokens)
    search_end = tl.where(is_sequence, end, begin)

    budget = tl.maximum(tl.minimum(round_share(end - begin, mask_prob), max_per_sequence), 1)
    picks = tl.minimum(budget, count_below(p_keys, begin, search_end, _NEVER, BLOCK))

    # The largest bound with fewer than `picks` keys below it is the picks-th smallest key: find it bit by bit.
    last = tl.zeros([], tl.int64)
    for i in range(32):
        trial = last + (tl.full([], 1, tl.int64) << (31 - i))
        last = tl.where(count_below(p_keys, begin, search_end, trial, BLOCK) < picks, trial, last)
    ties = picks - count_below(p_keys, begin, search_end, last, BLOCK)

    ties = tl.where(is_sequence, ties, 0)
    last = tl.where(is_sequence, last, -1)
    seen = tl.zeros([], tl.int32)
    for start in range(begin, end, BLOCK):
        o_token = start + tl.arange(0, BLOCK)
        b_keys = tl.load(p_keys + o_token, mask=o_token < end, other=_NEVER)
        b_tied = (b_keys == last).to(tl.int32)
        b_picked = (b_keys < last) | ((b_tied == 1) & (seen + tl.cumsum(b_tied) <= ties))
        tl.store(p_picked + o_token, b_picked.to(tl.int32), mask=o_token < end)
        seen += tl.sum(b_tied)


@triton.jit(do_not_specialize=["num_tokens", "num_masked", "mask_token_id", "search_steps"])
def write_kernel(
    p_input_ids,
    p_picked,
    p_decisions,
    p_counts,
    p_masked_ids,
    p_positions,
    p_labels,
    p_weights,
    num_tokens,
    num_masked,
    mask_token_id,
    search_steps,
    BLOCK: tl.constexpr,
):
    """Element i writes token i, and slot i, whose position is where the running count of picks reaches i + 1."""
    o_element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_token = o_element < num_tokens
    b_ids = tl.load(p_input_ids + o_element, mask=m_token, other=0)
    b_picked = tl.load(p_picked + o_element, mask=m_token, other=0)
    b_replace = tl.load(p_decisions + o_element, mask=m_token, other=0)
    b_counts = tl.load(p_counts + o_element, mask=m_token, other=0)
    b_replaced = (b_picked == 1) & (b_replace == 1) & (b_counts <= num_masked)
    tl.store(p_masked_ids + o_element, tl.where(b_replaced, mask_token_id.to(tl.int64), b_ids), mask=m_token)

    m_slot = o_element < num_masked
    num_picked = tl.load(p_counts + num_tokens - 1, mask=num_tokens > 0, other=0)
    m_used = m_slot & (o_element < num_picked)
    b_low = tl.zeros([BLOCK], tl.int64)
    b_high = b_low + num_tokens
    for _ in range(search_steps):
        b_middle = (b_low + b_high) >> 1
        m_open = b_low < b_high
        b_reached = tl.load(p_counts + b_middle, mask=m_open, other=0) > o_element
        b_low = tl.where(m_open & (b_reached == 0), b_middle + 1, b_low)
        b_high = tl.where(m_open & b_reached, b_middle, b_high)
    b_position = tl.where(m_used, b_low, 0)
    b_label = tl.load(p_input_ids + b_position, mask=m_slot & (num_tokens > 0), other=0)
    tl.store(p_positions + o_element, b_position, mask=m_slot)
    tl.store(p_labels + o_element, b_label, mask=m_slot)
    tl.store(p_weights + o_element, m_used.to(tl.float32), mask=m_slot)


def mask_tokens_triton(
    input_ids: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    row_ids: Tensor | None,
    mask_token_id: int,
    never_mask_ids: Sequence[int],
    num_masked: int,
    mask_prob: float,
    replace_below: int,
    max_per_sequence: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launches the kernels; arguments as `mask_tokens_reference` takes them, checked."""
    num_tokens, num_sequences = input_ids.shape[0], cu_seqlens.shape[0] - 1
    keys, masked_ids = torch.empty_like(input_ids), torch.empty_like(input_ids)
    decisions = torch.empty_like(input_ids, dtype=torch.int8)
    picked = torch.empty_like(input_ids, dtype=torch.int32)
    positions, labels = input_ids.new_empty(num_masked), input_ids.new_empty(num_masked)
    weights = input_ids.new_empty(num_masked, dtype=torch.float32)
    elements = max(num_tokens, num_masked)
    if elements == 0:
        return masked_ids, positions, labels, weights

    with torch.cuda.device_of(input_ids):
        if num_tokens > 0:
            block, warps = _DRAW
            draw_kernel[(triton.cdiv(num_tokens, block),)](
                input_ids,
                seed,
                input_ids if row_ids is None else row_ids,
                keys,
                decisions,
                num_tokens,
                replace_below,
                stream,
                NEVER_MASK_IDS=tuple(never_mask_ids),
                HAS_ROW_IDS=row_ids is not None,
                BLOCK=block,
                num_warps=warps,
            )
            block, warps = _PICK
            pick_kernel[(num_sequences + 1,)](
                cu_seqlens,
                keys,
                picked,
                num_tokens,
                num_sequences,
                mask_prob,
                max_per_sequence,
                BLOCK=block,
                num_warps=warps,
            )
        block, warps = _WRITE
        write_kernel[(triton.cdiv(elements, block),)](
            input_ids,
            picked,
            decisions,
            picked.cumsum(0),
            masked_ids,
            positions,
            labels,
            weights,
            num_tokens,
            num_masked,
            mask_token_id,
            num_tokens.bit_length(),
            BLOCK=block,
            num_warps=warps,
        )
    return masked_ids, positions, labels, weights
