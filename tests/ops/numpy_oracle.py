"""Philox and masking in NumPy, written from the papers and not from our code: what every backend must equal."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np


def philox(seed: int, row_ids: np.ndarray, column_block: int, stream: int) -> np.ndarray:
    """Philox-4x32-10: uint32 [4, rows]."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    rows = np.asarray(row_ids, np.int64).astype(np.uint64)
    c0, c1 = np.full_like(rows, column_block), rows & low
    c2, c3 = rows >> shift, np.full_like(rows, stream)
    key0, key1 = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF)
    for _ in range(10):
        product0, product1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (product1 >> shift) ^ c1 ^ key0, product1 & low
        c2, c3 = (product0 >> shift) ^ c3 ^ key1, product0 & low
        key0, key1 = (key0 + np.uint64(0x9E3779B9)) & low, (key1 + np.uint64(0xBB67AE85)) & low
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


class Masked(NamedTuple):
    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def mask_tokens(
    input_ids: np.ndarray,
    cu_seqlens: np.ndarray,
    *,
    mask_token_id: int,
    never_mask_ids: tuple[int, ...],
    num_masked: int,
    mask_prob: float,
    replace_prob: float,
    max_per_sequence: int | None,
    seed: int,
    row_ids: np.ndarray | None,
    unit_starts: np.ndarray | None = None,
) -> Masked:
    rows = np.arange(len(input_ids)) if row_ids is None else row_ids
    keys, decisions, _, _ = philox(seed, rows, 0, 0)
    picked: list[int] = []
    for begin, end in itertools.pairwise(cu_seqlens):
        budget = int(np.rint(np.float32(end - begin) * np.float32(mask_prob)))
        budget = max(1, budget if max_per_sequence is None else min(budget, max_per_sequence))
        units: list[list[int]] = []  # the candidates of each
        for i in range(begin, end):
            if i == begin or unit_starts is None or unit_starts[i]:
                units.append([])
            if input_ids[i] not in never_mask_ids:
                units[-1].append(i)
        left = min(budget, sum(map(len, units)))
        for unit in sorted(filter(None, units), key=lambda unit: (keys[unit[0]], unit[0])):
            if len(unit) <= left:
                picked += unit
                left -= len(unit)
    picked = sorted(picked)[:num_masked]

    masked_ids = input_ids.copy()
    for i in picked:
        if int(decisions[i]) < round(replace_prob * 2**32):
            masked_ids[i] = mask_token_id
    positions = np.array(picked + [0] * (num_masked - len(picked)), np.int64)
    labels = input_ids[positions] if len(input_ids) else np.zeros_like(positions)
    return Masked(masked_ids, positions, labels, (np.arange(num_masked) < len(picked)).astype(np.float32))
