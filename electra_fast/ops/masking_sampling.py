"""Choosing positions to mask, and writing the replacements sampled for them: the ends of ELECTRA's chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from electra_fast.ops import _backends
from electra_fast.ops._checks import check_tensor
from electra_fast.ops._register import register
from electra_fast.ops.random import as_seed, philox, sequence_of_tokens, threshold

MAX_SEQUENCE_LENGTH = 8192
MASKING_STREAM = 0


class MaskedTokens(NamedTuple):
    """Masked ids and the M slots of masked positions, ascending; unused slots come last: position 0, weight 0.

    Padded, [T] and [M] become [B, S] and [B, max_masked], and positions count within the row.
    """

    input_ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [M]
    labels: Tensor  # int64 [M]: the true token at the position
    weights: Tensor  # float32 [M]: 1 for a masked position, 0 for an unused slot


# --- mask_tokens ------------------------------------------------------------------------------------------------------


def mask_tokens_reference(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Plain PyTorch on any device: static shapes; no sync, except one a round where there are units."""
    num_tokens, device = input_ids.shape[0], input_ids.device
    tokens = torch.arange(num_tokens, device=device)
    sequences = sequence_of_tokens(cu_seqlens, tokens)  # [T]
    num_sequences = cu_seqlens.shape[0] - 1
    candidates = sequences < num_sequences
    for never in never_mask_ids:
        candidates &= input_ids != never
    keys, decisions, _, _ = philox(seed, tokens if row_ids is None else row_ids, 0, MASKING_STREAM)

    starts = cu_seqlens.long()
    lengths = torch.cat([starts.diff(), starts.new_zeros(1)])  # [B + 1], nothing to mask after the last sequence
    budgets = torch.round(lengths.float() * mask_prob).long().clamp(1, max_per_sequence)
    if unit_starts is None:
        picked = _pick_tokens(candidates, keys, sequences, starts, budgets)
    else:
        picked = _pick_units(candidates, keys, sequences, budgets, unit_starts)

    counts = picked.cumsum(0)  # [T]
    replaced = picked & (counts <= num_masked) & (decisions < replace_below)
    masked_ids = torch.where(replaced, mask_token_id, input_ids)
    if num_tokens == 0:
        empty = input_ids.new_zeros(num_masked)
        return masked_ids, empty, empty.clone(), empty.float()
    slots = torch.arange(num_masked, device=device)
    used = slots < counts[-1]
    positions = torch.where(used, torch.searchsorted(counts, slots + 1), 0)
    return masked_ids, positions, input_ids[positions], used.float()


def _pick_tokens(candidates: Tensor, keys: Tensor, sequences: Tensor, starts: Tensor, budgets: Tensor) -> Tensor:
    """Which tokens [T] are masked: in each sequence as many as `budgets` [B + 1] says, those with the smallest keys."""
    # Within its sequence, candidates first, by key: a stable sort leaves ties in the order of positions.
    order = torch.argsort(((2 * sequences + ~candidates) << 32) + keys, stable=True)
    of_sorted = sequences[order]
    rank = torch.arange(order.shape[0], device=order.device) - starts[of_sorted]
    return torch.empty_like(candidates).scatter_(0, order, candidates[order] & (rank < budgets[of_sorted]))


def _pick_units(candidates: Tensor, keys: Tensor, sequences: Tensor, budgets: Tensor, unit_starts: Tensor) -> Tensor:
    """Which tokens [T] are masked where units are masked whole."""
    num_tokens, outside = candidates.shape[0], budgets.shape[0] - 1
    begins = unit_starts.clone()
    begins[:1] = True
    begins[1:] |= sequences[1:] != sequences[:-1]
    units = begins.cumsum(0) - 1  # [T], numbered by position; the tables below have T rows, which is enough
    sizes = torch.zeros_like(keys).scatter_add_(0, units, candidates.long())
    tokens = torch.arange(num_tokens, device=keys.device)
    firsts = torch.full_like(keys, num_tokens - 1)
    firsts.scatter_reduce_(0, units, torch.where(candidates, tokens, num_tokens - 1), "amin")

    # Sequence after sequence, units in key order, those without candidates last; a stable sort keeps ties in position.
    owners = torch.where(sizes > 0, sequences[firsts], outside)
    order = torch.argsort((owners << 32) + keys[firsts], stable=True)
    owners, sizes = owners[order], sizes[order]
    heads = torch.searchsorted(owners, torch.arange(outside + 1, device=keys.device))  # [B + 1]
    taken, left = sizes == 0, budgets
    while True:
        # A round takes those that fit up to the first for which the others have left no room: it is skipped, and what
        # is left for the next round is smaller than it.
        fits = ~taken & (sizes <= left[owners])
        running = torch.cat([heads.new_zeros(1), (sizes * fits).cumsum(0)])
        new = fits & (running[1:] - running[heads][owners] <= left[owners])
        if not new.any():
            break
        taken = taken | new
        left = left.scatter_add(0, owners, -sizes * new)
    return candidates & torch.empty_like(taken).scatter_(0, order, taken)[units]


def _mask_tokens_cpp(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    starts = cu_seqlens.long()  # named, so that the copy outlives the call
    masked_ids = torch.empty_like(input_ids)
    positions, labels = input_ids.new_empty(num_masked), input_ids.new_empty(num_masked)
    weights = input_ids.new_empty(num_masked, dtype=torch.float32)
    _backends.extension().mask_tokens(
        input_ids=input_ids.data_ptr(),
        cu_seqlens=starts.data_ptr(),
        row_ids=0 if row_ids is None else row_ids.data_ptr(),
        unit_starts=0 if unit_starts is None else unit_starts.data_ptr(),
        num_tokens=input_ids.shape[0],
        num_sequences=starts.shape[0] - 1,
        seed=seed.item(),
        mask_token_id=mask_token_id,
        never_mask_ids=never_mask_ids,
        num_masked=num_masked,
        mask_prob=mask_prob,
        replace_below=replace_below,
        max_per_sequence=max_per_sequence,
        masked_ids=masked_ids.data_ptr(),
        positions=positions.data_ptr(),
        labels=labels.data_ptr(),
        weights=weights.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return masked_ids, positions, labels, weights


def _mask_tokens_triton(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from electra_fast.kernels.masking_sampling import mask_tokens_triton

    return mask_tokens_triton(*args, MASKING_STREAM)


def _mask_tokens_shapes(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    slots = input_ids.new_empty(num_masked)
    return torch.empty_like(input_ids), slots, torch.empty_like(slots), torch.empty_like(slots, dtype=torch.float32)


def _mask_tokens_check(input_ids: Tensor, cu_seqlens: Tensor, *_: Any) -> None:
    _check_cu_seqlens(cu_seqlens, input_ids.shape[0])


_mask_tokens = register(
    "mask_tokens",
    {"reference": mask_tokens_reference, "cpp": _mask_tokens_cpp, "triton": _mask_tokens_triton},
    operator="mask_tokens",
    shapes=_mask_tokens_shapes,
    check_values=_mask_tokens_check,
)


def mask_tokens(
    input_ids: Tensor,
    cu_seqlens: Tensor,
    *,
    mask_token_id: int,
    never_mask_ids: Sequence[int],
    num_masked: int,
    mask_prob: float = 0.15,
    replace_prob: float = 0.85,
    max_per_sequence: int | None = None,
    seed: Tensor | int | None,
    row_ids: Tensor | None = None,
    unit_starts: Tensor | None = None,
) -> MaskedTokens:
    """Mask a share of the tokens of each sequence: positions drawn uniformly, without replacement.

    A sequence of n tokens (special ones count) gets k = max(1, min(max_per_sequence, round_half_even(n * mask_prob)))
    positions, the product and the rounding in float32, or all its candidates if there are fewer. Candidates are the
    tokens whose id is not in `never_mask_ids`; those with the k smallest random keys are masked.

    With `unit_starts`, units (words, n-gram spans, entities) are masked whole: all candidates of a unit, or none. A
    unit's key is its first candidate's. In the order of keys each unit is taken that has no more candidates than are
    left of k; a larger one is skipped, so that fewer than k may be masked. [MASK] or not is decided token by token.
    For whole-word masking with a WordPiece tokenizer, `unit_starts` is True where the token does not begin with "##".

    Args:
        input_ids: int64 [T], flat tokens of B sequences; tokens after `cu_seqlens[-1]` are never masked.
        cu_seqlens: int32 or int64 [B + 1], where each sequence starts, from 0; equal neighbours are empty sequences.
        mask_token_id: the id of [MASK].
        never_mask_ids: ids never masked, such as [CLS], [SEP], [MASK].
        num_masked: M, the number of slots; positions beyond the M-th, in ascending order, stay unmasked (and may leave
            a unit half masked).
        mask_prob: the share of tokens to mask.
        replace_prob: the probability that a masked position becomes [MASK]; else it keeps its token.
        max_per_sequence: the most positions in one sequence; None is no limit.
        seed: int64 0-d tensor on the device of the data, or an int; None draws one from torch's default generator.
        row_ids: int64 [T], names of the tokens for the random numbers; None is 0..T-1 (see `electra_fast.ops.random`).
        unit_starts: bool [T], True where a unit begins; the first token of a sequence begins one in any case. None:
            each token is a unit.

    Returns:
        `MaskedTokens(input_ids [T], positions [M], labels [M], weights [M])`. Unused slots have position 0, weight 0
        and the label of position 0 (0 if T = 0).

    Raises:
        TypeError, ValueError: a dtype, shape, device or range other than the above, or a sequence of more than 8,192
            tokens. What `cu_seqlens` holds is checked on the CPU; on other devices that would wait for the device, so
            it is checked only with ELECTRA_FAST_DEBUG=1, and a wrong one gives wrong masks, never a wild access.

    Source: ELECTRA paper, sections 2 and 3.1; google-research/electra, pretrain/pretrain_helpers.py (`mask`), which
    draws with replacement and so masks fewer, a defect not kept. Units: google-research/bert,
    create_pretraining_data.py (`do_whole_word_mask`), which skips what does not fit likewise.
    """
    name = "mask_tokens"
    check_tensor(name, "input_ids", input_ids, 1, (torch.int64,), input_ids.device)
    check_tensor(name, "cu_seqlens", cu_seqlens, 1, (torch.int32, torch.int64), input_ids.device)
    if cu_seqlens.shape[0] < 1:
        raise ValueError(f"{name}: cu_seqlens must have B + 1 entries, at least one; got none")
    for argument, tensor, dtype in (("row_ids", row_ids, torch.int64), ("unit_starts", unit_starts, torch.bool)):
        if tensor is None:
            continue
        check_tensor(name, argument, tensor, 1, (dtype,), input_ids.device)
        if tensor.shape != input_ids.shape:
            raise ValueError(f"{name}: {argument} has shape {tuple(tensor.shape)}, input_ids {tuple(input_ids.shape)}")
    if num_masked < 0:
        raise ValueError(f"{name}: num_masked must not be negative; got {num_masked}")
    if not 0.0 <= mask_prob <= 1.0:
        raise ValueError(f"{name}: mask_prob must lie in [0, 1]; got {mask_prob}")
    if not 0.0 <= replace_prob <= 1.0:
        raise ValueError(f"{name}: replace_prob must lie in [0, 1]; got {replace_prob}")
    if max_per_sequence is not None and max_per_sequence < 1:
        raise ValueError(f"{name}: max_per_sequence must be at least 1, or None for no limit; got {max_per_sequence}")
    result = _mask_tokens(
        input_ids.contiguous(),
        cu_seqlens.contiguous(),
        as_seed(seed, input_ids.device),
        None if row_ids is None else row_ids.contiguous(),
        None if unit_starts is None else unit_starts.contiguous(),
        mask_token_id,
        tuple(never_mask_ids),
        num_masked,
        mask_prob,
        threshold(replace_prob),
        MAX_SEQUENCE_LENGTH if max_per_sequence is None else max_per_sequence,
    )
    return MaskedTokens(*result)


def mask_tokens_padded(
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    mask_token_id: int,
    never_mask_ids: Sequence[int],
    max_masked: int,
    mask_prob: float = 0.15,
    replace_prob: float = 0.85,
    max_per_sequence: int | None = None,
    seed: Tensor | int | None,
    row_ids: Tensor | None = None,
    unit_starts: Tensor | None = None,
) -> MaskedTokens:
    """`mask_tokens` for a padded batch, each row one sequence: the tokens that `attention_mask` keeps.

    Args:
        input_ids: int64 [B, S].
        attention_mask: bool or integer [B, S], 0 where there is padding, on either side or between.
        max_masked: the number of slots of each row; its positions beyond that, in ascending order, stay unmasked.
        row_ids: int64 [B, S]; None numbers the kept tokens from 0, row by row, which gives the masks of the same text
            flattened.
        unit_starts: bool [B, S]; what it says of padding counts for nothing.

    Other arguments, and what raises, as in `mask_tokens`.

    Returns:
        `MaskedTokens` of shapes [B, S] and three times [B, max_masked]; positions count within the row, padding
        included.
    """
    name = "mask_tokens_padded"
    check_tensor(name, "input_ids", input_ids, 2, (torch.int64,), input_ids.device)
    for argument, tensor in (("attention_mask", attention_mask), ("row_ids", row_ids), ("unit_starts", unit_starts)):
        if tensor is not None and tensor.shape != input_ids.shape:
            raise ValueError(f"{name}: {argument} has shape {tuple(tensor.shape)}, input_ids {tuple(input_ids.shape)}")
    if attention_mask.is_floating_point() or attention_mask.device != input_ids.device:
        raise TypeError(
            f"{name}: attention_mask must be bool or integer, on {input_ids.device}; "
            f"got {attention_mask.dtype} on {attention_mask.device}"
        )
    if max_masked < 0:
        raise ValueError(f"{name}: max_masked must not be negative; got {max_masked}")

    batch_size, row_length = input_ids.shape
    kept = attention_mask != 0
    # Real tokens first, in order, and the padding as the tail that mask_tokens leaves alone: no shape depends on data.
    order = torch.argsort(~kept.flatten(), stable=True)  # [B * S]
    lengths = kept.sum(1)
    most = MAX_SEQUENCE_LENGTH if max_per_sequence is None else max_per_sequence
    # No row masks more than its share of S, and half a position may be rounded up.
    most = min(most, math.ceil(row_length * mask_prob) + 1, max(row_length, 1))
    flat = mask_tokens(
        input_ids.flatten()[order],
        torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        mask_token_id=mask_token_id,
        never_mask_ids=never_mask_ids,
        num_masked=batch_size * most,
        mask_prob=mask_prob,
        replace_prob=replace_prob,
        max_per_sequence=max_per_sequence,
        seed=seed,
        row_ids=None if row_ids is None else row_ids.flatten()[order],
        unit_starts=None if unit_starts is None else unit_starts.flatten()[order],
    )

    used = flat.weights > 0
    places = order[flat.positions] if order.shape[0] else flat.positions  # [B * most], in the padded batch
    rows = torch.where(used, places // max(row_length, 1), batch_size)  # ascending
    slots = torch.arange(rows.shape[0], device=rows.device)
    rank = slots - torch.searchsorted(rows, rows)  # the how manieth of its row
    fits = used & (rank < max_masked)

    def scatter(size: int, index: Tensor, values: Tensor) -> Tensor:
        """`values` at `index` where it fits; the rest lands on an element that is cut off."""
        return values.new_zeros(size + 1).scatter_(0, torch.where(fits, index, size), values)[:size]

    target = rows * max_masked + rank
    positions = scatter(batch_size * max_masked, target, places % max(row_length, 1)).view(batch_size, max_masked)
    weights = scatter(batch_size * max_masked, target, flat.weights).view(batch_size, max_masked)
    chosen = scatter(batch_size * row_length, places, used).view(batch_size, row_length)
    replacements = flat.input_ids[flat.positions] if order.shape[0] else flat.labels
    written = scatter(batch_size * row_length, places, replacements).view(batch_size, row_length)
    labels = input_ids.gather(1, positions) if row_length else positions
    return MaskedTokens(torch.where(chosen, written, input_ids), positions, labels, weights)


# --- corrupt_tokens ---------------------------------------------------------------------------------------------------


def corrupt_tokens_reference(
    input_ids: Tensor, positions: Tensor, sampled_ids: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch on any device."""
    num_tokens = input_ids.shape[0]
    writes = (weights > 0) & (positions >= 0) & (positions < num_tokens)
    # One element more, where the others write.
    targets = torch.where(writes, positions, num_tokens)
    extended = torch.cat([input_ids, input_ids.new_zeros(1)]).scatter_(0, targets, sampled_ids)
    corrupted_ids = extended[:-1].clone()
    return corrupted_ids, corrupted_ids != input_ids


def _corrupt_tokens_cpp(
    input_ids: Tensor, positions: Tensor, sampled_ids: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    corrupted_ids, is_replaced = _corrupt_tokens_shapes(input_ids, positions, sampled_ids, weights)
    _backends.extension().corrupt_tokens(
        input_ids=input_ids.data_ptr(),
        positions=positions.data_ptr(),
        sampled_ids=sampled_ids.data_ptr(),
        weights=weights.data_ptr(),
        num_tokens=input_ids.shape[0],
        num_slots=positions.shape[0],
        corrupted_ids=corrupted_ids.data_ptr(),
        is_replaced=is_replaced.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return corrupted_ids, is_replaced


def _corrupt_tokens_triton(*args: Any) -> tuple[Tensor, Tensor]:
    from electra_fast.kernels.masking_sampling import corrupt_tokens_triton

    return corrupt_tokens_triton(*args)


def _corrupt_tokens_shapes(
    input_ids: Tensor, positions: Tensor, sampled_ids: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input_ids), torch.empty_like(input_ids, dtype=torch.bool)


def _corrupt_tokens_check(input_ids: Tensor, positions: Tensor, sampled_ids: Tensor, weights: Tensor) -> None:
    num_tokens = input_ids.shape[0]
    if positions.shape[0] == 0:
        return
    lowest, highest = positions.aminmax()
    if lowest >= 0 and highest < num_tokens:
        return
    wrong = positions[(weights > 0) & ((positions < 0) | (positions >= num_tokens))]
    if wrong.shape[0] > 0:
        raise ValueError(
            f"corrupt_tokens: positions must lie in [0, T) where weights are positive, T = {num_tokens}; "
            f"got {wrong[0].item()}"
        )


_corrupt_tokens = register(
    "corrupt_tokens",
    {"reference": corrupt_tokens_reference, "cpp": _corrupt_tokens_cpp, "triton": _corrupt_tokens_triton},
    operator="corrupt_tokens",
    shapes=_corrupt_tokens_shapes,
    check_values=_corrupt_tokens_check,
)


def corrupt_tokens(input_ids: Tensor, positions: Tensor, sampled_ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Write the sampled tokens over the true ones and say which tokens that changed.

    Args:
        input_ids: int64 [T], the true tokens (not the masked ones).
        positions, sampled_ids: int64 [M]; positions with a weight are distinct and lie in [0, T).
        weights: float32 [M]; slots of weight 0 write nothing.

    Returns:
        `(corrupted_ids int64 [T], is_replaced bool [T])`; a sample equal to the true token counts as real.

    Raises:
        TypeError, ValueError: a dtype, shape or device other than the above, or a position out of range. Positions are
            checked on the CPU; on other devices that would wait for the device, so they are checked only with
            ELECTRA_FAST_DEBUG=1, and slots with one out of range write nothing.

    Source: ELECTRA paper, section 2; google-research/electra, run_pretraining.py (`_get_fake_data`).
    """
    name = "corrupt_tokens"
    check_tensor(name, "input_ids", input_ids, 1, (torch.int64,), input_ids.device)
    check_tensor(name, "positions", positions, 1, (torch.int64,), input_ids.device)
    check_tensor(name, "sampled_ids", sampled_ids, 1, (torch.int64,), input_ids.device)
    check_tensor(name, "weights", weights, 1, (torch.float32,), input_ids.device)
    for argument, tensor in (("sampled_ids", sampled_ids), ("weights", weights)):
        if tensor.shape != positions.shape:
            raise ValueError(f"{name}: {argument} has shape {tuple(tensor.shape)}, positions {tuple(positions.shape)}")
    return _corrupt_tokens(
        input_ids.contiguous(), positions.contiguous(), sampled_ids.contiguous(), weights.contiguous()
    )


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_cu_seqlens(cu_seqlens: Tensor, num_tokens: int) -> None:
    shortest, longest = 0, 0
    if cu_seqlens.shape[0] > 1:
        shortest, longest = (length.item() for length in cu_seqlens.long().diff().aminmax())
    if cu_seqlens[0].item() != 0 or shortest < 0 or cu_seqlens[-1].item() > num_tokens:
        raise ValueError(
            f"mask_tokens: cu_seqlens must begin with 0, never decrease and end at most at T = {num_tokens}; "
            f"got {cu_seqlens.tolist()}"
        )
    if longest > MAX_SEQUENCE_LENGTH:
        raise ValueError(
            f"mask_tokens: a sequence in cu_seqlens has {longest} tokens; the most is {MAX_SEQUENCE_LENGTH}: "
            "cut it into pieces"
        )
