"""mask_tokens and corrupt_tokens on the device, in launches of fixed shape.

mask_tokens: draw, pick, a cumulative sum, write. Where there are units, number and order them and pick whole ones.
corrupt_tokens: copy, write the samples. electra_fast/ops/masking_sampling.py says what is computed.
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
_COPY = (1024, 4)  # 8 ids a thread: enough loads in flight to fill the memory's pipe
_CORRUPT = (256, 4)  # one slot a thread: scattered accesses wait for memory, as in the search

_NEVER = tl.constexpr(1 << 32)  # above every key: the token is no candidate
# A unit's place in the order: its key above the index of its first candidate, which is below MAX_SEQUENCE_LENGTH.
_INDEX_BITS = tl.constexpr(13)
_ORDER_BITS = tl.constexpr(32 + 13)
_NO_UNIT = tl.constexpr(1 << (32 + 13 + 1))  # above every bound that the search tries


# num_tokens may be specialised, to three kernels at most: without knowing that 16 divides it, loads are of one token.
@triton.jit(do_not_specialize=["replace_below", "stream"])
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


@triton.jit
def budget_of(n, mask_prob, max_per_sequence):
    """The most positions that a sequence of n tokens gets."""
    return tl.maximum(tl.minimum(round_share(n, mask_prob), max_per_sequence), 1)


@triton.jit
def sequence_of_program(p_cu_seqlens, num_tokens, num_sequences):
    """Where program i's sequence begins and ends; one program more than sequences has the tokens after the last."""
    i_sequence = tl.program_id(0)
    is_sequence = i_sequence < num_sequences
    num_tokens = num_tokens.to(tl.int64)
    begin = tl.load(p_cu_seqlens + i_sequence).to(tl.int64)
    end = tl.load(p_cu_seqlens + i_sequence + 1, mask=is_sequence, other=0).to(tl.int64)
    # Clamped, so that a wrong cu_seqlens reads and writes nothing outside.
    begin = tl.minimum(tl.maximum(begin, 0), num_tokens)
    return begin, tl.where(is_sequence, tl.minimum(end, num_tokens), num_tokens), is_sequence


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
    begin, end, is_sequence = sequence_of_program(p_cu_seqlens, num_tokens, num_sequences)
    search_end = tl.where(is_sequence, end, begin)

    budget = budget_of(end - begin, mask_prob, max_per_sequence)
    picks = tl.minimum(budget, count_below(p_keys, begin, search_end, _NEVER, BLOCK))

    # The largest bound with no more than `picks` keys below it, bit by bit, or the first that has just as many.
    bound = tl.zeros([], tl.int64)
    step = tl.full([], 1, tl.int64) << 31
    below = tl.zeros([], tl.int32)
    while (step > 0) & (below < picks):
        count = count_below(p_keys, begin, search_end, bound + step, BLOCK)
        bound += tl.where(count <= picks, step, 0)
        below = tl.where(count <= picks, count, below)
        step = step >> 1
    ties = picks - below  # of the tokens whose key is the bound

    seen = tl.zeros([], tl.int32)
    for start in range(begin, end, BLOCK):
        o_token = start + tl.arange(0, BLOCK)
        b_keys = tl.load(p_keys + o_token, mask=o_token < end, other=_NEVER)
        b_tied = (b_keys == bound).to(tl.int32)
        b_picked = (b_keys < bound) | ((b_tied == 1) & (seen + tl.cumsum(b_tied) <= ties))
        tl.store(p_picked + o_token, b_picked.to(tl.int32), mask=o_token < end)
        seen += tl.sum(b_tied)


@triton.jit(do_not_specialize=["num_tokens", "num_sequences"])
def number_units_kernel(
    p_cu_seqlens,
    p_keys,
    p_unit_starts,
    p_units,
    p_before,
    p_candidates,
    num_tokens,
    num_sequences,
    BLOCK: tl.constexpr,
):
    """One program a sequence: each token's unit, the candidates before each unit, and a list of the candidates.

    All are numbered within the sequence. Sequence i has places begin + i to end + i in `before` [T + B], one more than
    it may have units: the last says how many candidates there are.
    """
    begin, end, _ = sequence_of_program(p_cu_seqlens, num_tokens, num_sequences)
    p_before += begin + tl.program_id(0)
    num_units = tl.zeros([], tl.int32)
    num_candidates = tl.zeros([], tl.int32)
    for start in range(begin, end, BLOCK):
        o_token = start + tl.arange(0, BLOCK)
        m_token = o_token < end
        m_start = m_token & ((tl.load(p_unit_starts + o_token, mask=m_token, other=0) != 0) | (o_token == begin))
        m_candidate = tl.load(p_keys + o_token, mask=m_token, other=_NEVER) < _NEVER
        b_unit = num_units + tl.cumsum(m_start.to(tl.int32)) - 1
        b_before = num_candidates + tl.cumsum(m_candidate.to(tl.int32)) - m_candidate.to(tl.int32)
        tl.store(p_units + o_token, b_unit, mask=m_token)
        tl.store(p_before + b_unit, b_before, mask=m_start)
        tl.store(p_candidates + begin + b_before, (o_token - begin).to(tl.int32), mask=m_candidate)
        num_units += tl.sum(m_start.to(tl.int32))
        num_candidates += tl.sum(m_candidate.to(tl.int32))
    tl.store(p_before + num_units, num_candidates)


@triton.jit(do_not_specialize=["num_tokens", "num_sequences"])
def order_units_kernel(
    p_cu_seqlens,
    p_keys,
    p_units,
    p_before,
    p_candidates,
    p_orders,
    p_sizes,
    p_picked,
    num_tokens,
    num_sequences,
    BLOCK: tl.constexpr,
):
    """Each candidate gets its unit's place in the order and its size; no token is picked yet."""
    begin, end, is_sequence = sequence_of_program(p_cu_seqlens, num_tokens, num_sequences)
    p_before += begin + tl.program_id(0)
    for start in range(begin, end, BLOCK):
        o_token = start + tl.arange(0, BLOCK)
        m_token = o_token < end
        m_candidate = is_sequence & (tl.load(p_keys + o_token, mask=m_token, other=_NEVER) < _NEVER)
        # What is read under a wrong cu_seqlens, where sequences overlap, may be anything: hence the second conditions.
        o_unit = tl.load(p_units + o_token, mask=m_candidate, other=0)
        m_unit = m_candidate & (o_unit >= 0) & (begin + o_unit < num_tokens)
        b_before = tl.load(p_before + o_unit, mask=m_unit, other=0)
        b_size = tl.load(p_before + o_unit + 1, mask=m_unit, other=0) - b_before
        m_before = m_unit & (b_before >= 0) & (begin + b_before < num_tokens)
        b_first = tl.load(p_candidates + begin + b_before, mask=m_before, other=0).to(tl.int64)
        m_first = m_before & (b_first >= 0) & (begin + b_first < num_tokens)
        b_key = tl.load(p_keys + begin + b_first, mask=m_first, other=0)
        tl.store(p_orders + o_token, tl.where(m_first, (b_key << _INDEX_BITS) + b_first, _NO_UNIT), mask=m_token)
        tl.store(p_sizes + o_token, b_size, mask=m_token)
        tl.store(p_picked + o_token, 0, mask=m_token)


@triton.jit
def fitting_units(p_orders, p_sizes, o_token, end, low, high, left):
    """Which tokens are of units in [low, high) of at most `left` candidates."""
    m_token = o_token < end
    b_order = tl.load(p_orders + o_token, mask=m_token, other=_NO_UNIT)
    b_size = tl.load(p_sizes + o_token, mask=m_token, other=0)
    return (b_order >= low) & (b_order < high) & (b_size <= left)


@triton.jit
def count_fitting(p_orders, p_sizes, begin, end, low, high, left, BLOCK: tl.constexpr):
    """How many candidates these units have together."""
    b_count = tl.zeros([BLOCK], tl.int32)
    for start in range(begin, end, BLOCK):
        o_token = start + tl.arange(0, BLOCK)
        b_count += fitting_units(p_orders, p_sizes, o_token, end, low, high, left).to(tl.int32)
    return tl.sum(b_count)


@triton.jit(do_not_specialize=["num_tokens", "num_sequences", "max_per_sequence"])
def pick_units_kernel(
    p_cu_seqlens,
    p_orders,
    p_sizes,
    p_picked,
    num_tokens,
    num_sequences,
    mask_prob,
    max_per_sequence,
    BLOCK: tl.constexpr,
):
    """One program a sequence picks whole units in their order, in rounds.

    A round takes, of the units that fit into what is left, those before the first for which the others leave no room.
    That one is larger than what is left then, so those that end rounds get smaller and smaller: as their sizes are
    distinct and add up to at most 8,192, there are at most 128 rounds; and at most k + 1, as each but the last takes
    something. Words in text need two or three.
    """
    begin, end, _ = sequence_of_program(p_cu_seqlens, num_tokens, num_sequences)
    left = budget_of(end - begin, mask_prob, max_per_sequence).to(tl.int32)
    low = tl.zeros([], tl.int64)
    taken = tl.full([], 1, tl.int32)
    while (left > 0) & (taken > 0):
        # The largest bound up to which there is room for all that fit, bit by bit, or the first that leaves none over.
        high = tl.zeros([], tl.int64)
        step = tl.full([], 1, tl.int64) << _ORDER_BITS
        taken = tl.zeros([], tl.int32)
        while (step > 0) & (taken < left):
            count = count_fitting(p_orders, p_sizes, begin, end, low, high + step, left, BLOCK)
            high += tl.where(count <= left, step, 0)
            taken = tl.where(count <= left, count, taken)
            step = step >> 1
        for start in range(begin, end, BLOCK):
            o_token = start + tl.arange(0, BLOCK)
            tl.store(p_picked + o_token, 1, mask=fitting_units(p_orders, p_sizes, o_token, end, low, high, left))
        low = high
        left -= taken


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
    unit_starts: Tensor | None,
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
            if unit_starts is None:
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
            else:
                _pick_units(cu_seqlens, keys, unit_starts, picked, mask_prob, max_per_sequence)
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


def _pick_units(
    cu_seqlens: Tensor, keys: Tensor, unit_starts: Tensor, picked: Tensor, mask_prob: float, max_per_sequence: int
) -> None:
    num_tokens, num_sequences = keys.shape[0], cu_seqlens.shape[0] - 1
    units, candidates, sizes = (torch.empty_like(picked) for _ in range(3))
    before = picked.new_empty(num_tokens + num_sequences)
    orders = torch.empty_like(keys)
    block, warps = _PICK
    if num_sequences > 0:
        number_units_kernel[(num_sequences,)](
            cu_seqlens,
            keys,
            unit_starts,
            units,
            before,
            candidates,
            num_tokens,
            num_sequences,
            BLOCK=block,
            num_warps=warps,
        )
    order_units_kernel[(num_sequences + 1,)](
        cu_seqlens,
        keys,
        units,
        before,
        candidates,
        orders,
        sizes,
        picked,
        num_tokens,
        num_sequences,
        BLOCK=block,
        num_warps=warps,
    )
    if num_sequences > 0:
        pick_units_kernel[(num_sequences,)](
            cu_seqlens,
            orders,
            sizes,
            picked,
            num_tokens,
            num_sequences,
            mask_prob,
            max_per_sequence,
            BLOCK=block,
            num_warps=warps,
        )


@triton.jit  # num_tokens specialised as in draw_kernel
def copy_kernel(p_input_ids, p_corrupted_ids, p_is_replaced, num_tokens, BLOCK: tl.constexpr):
    """Every token as it is, none replaced."""
    o_token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_token = o_token < num_tokens
    tl.store(p_corrupted_ids + o_token, tl.load(p_input_ids + o_token, mask=m_token, other=0), mask=m_token)
    tl.store(p_is_replaced + o_token, tl.zeros([BLOCK], tl.int1), mask=m_token)


@triton.jit(do_not_specialize=["num_tokens", "num_slots"])
def corrupt_kernel(
    p_input_ids,
    p_positions,
    p_sampled_ids,
    p_weights,
    p_corrupted_ids,
    p_is_replaced,
    num_tokens,
    num_slots,
    BLOCK: tl.constexpr,
):
    """One element a slot writes its sample; unused ones, and positions out of range, write nothing."""
    o_slot = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_slot = o_slot < num_slots
    b_position = tl.load(p_positions + o_slot, mask=m_slot, other=0)
    b_weight = tl.load(p_weights + o_slot, mask=m_slot, other=0.0)
    b_sample = tl.load(p_sampled_ids + o_slot, mask=m_slot, other=0)
    m_write = (b_weight > 0) & (b_position >= 0) & (b_position < num_tokens)
    b_id = tl.load(p_input_ids + b_position, mask=m_write, other=0)
    tl.store(p_corrupted_ids + b_position, b_sample, mask=m_write)
    tl.store(p_is_replaced + b_position, b_sample != b_id, mask=m_write)


def corrupt_tokens_triton(
    input_ids: Tensor, positions: Tensor, sampled_ids: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Launches the kernels; arguments as `corrupt_tokens_reference` takes them, checked."""
    num_tokens, num_slots = input_ids.shape[0], positions.shape[0]
    corrupted_ids, is_replaced = torch.empty_like(input_ids), torch.empty_like(input_ids, dtype=torch.bool)
    if num_tokens == 0:
        return corrupted_ids, is_replaced
    with torch.cuda.device_of(input_ids):
        block, warps = _COPY
        copy_kernel[(triton.cdiv(num_tokens, block),)](
            input_ids, corrupted_ids, is_replaced, num_tokens, BLOCK=block, num_warps=warps
        )
        if num_slots > 0:
            block, warps = _CORRUPT
            corrupt_kernel[(triton.cdiv(num_slots, block),)](
                input_ids,
                positions,
                sampled_ids,
                weights,
                corrupted_ids,
                is_replaced,
                num_tokens,
                num_slots,
                BLOCK=block,
                num_warps=warps,
            )
    return corrupted_ids, is_replaced
