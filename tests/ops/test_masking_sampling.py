"""mask_tokens and sample_tokens: exact on every backend, against NumPy."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from electra_fast import ops
from electra_fast.ops import _backends, random
from tests.ops import numpy_oracle
from tests.ops.backends import BACKENDS, KERNELS, needs_cpp, needs_interpreter, poison_new_tensors

CLS, SEP, MASK = 2, 3, 4
NEVER = (CLS, SEP, MASK)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_batch(g: np.random.Generator, *, sequences: int, longest: int, tail: int = 0):
    """Ragged sequences, some empty, ids of a vocabulary so small that never_mask_ids is hit often."""
    lengths = g.integers(0, longest + 1, sequences)
    lengths[g.random(sequences) < 0.2] = 0
    cu_seqlens = np.concatenate([[0], lengths.cumsum()])
    return g.integers(0, 40, cu_seqlens[-1] + tail), cu_seqlens


def random_options(g: np.random.Generator, num_tokens: int) -> dict:
    return {
        "mask_token_id": MASK,
        "never_mask_ids": NEVER[: g.integers(0, 4)],
        "num_masked": int(g.integers(0, num_tokens // 4 + 4)),
        "mask_prob": float(g.choice([0.0, 0.15, 0.5, 1.0, g.random()])),
        "replace_prob": float(g.choice([0.0, 0.85, 1.0, g.random()])),
        "max_per_sequence": None if g.random() < 0.5 else int(g.integers(1, 20)),
        "seed": int(g.integers(-(2**63), 2**63)),
        # A few row ids only, hence many equal keys, in one case of five.
        "row_ids": None if g.random() < 0.3 else g.integers(*g.choice(ROW_IDS), num_tokens, dtype=np.int64),
        "unit_starts": None if g.random() < 0.3 else random_units(g, num_tokens),
    }


ROW_IDS = [(-(2**63), 2**63 - 1)] * 4 + [(0, 5)]


def random_units(g: np.random.Generator, num_tokens: int) -> np.ndarray:
    return g.random(num_tokens) < g.choice([0.0, 0.1, 0.4, 0.7, 1.0])


def run(ids: np.ndarray, cu_seqlens: np.ndarray, dtype=torch.int32, device="cpu", **options) -> ops.MaskedTokens:
    for name in ("row_ids", "unit_starts"):
        if options.get(name) is not None:
            options[name] = torch.from_numpy(options[name]).to(device)
    return ops.mask_tokens(torch.from_numpy(ids).to(device), torch.from_numpy(cu_seqlens).to(device, dtype), **options)


def assert_equal(got: ops.MaskedTokens, expected: numpy_oracle.Masked) -> None:
    for name, ours, truth in zip(expected._fields, got, expected, strict=True):
        assert ours.dtype == (torch.float32 if name == "weights" else torch.int64), name
        assert np.array_equal(ours.cpu().numpy(), truth), name


# --- mask_tokens ------------------------------------------------------------------------------------------------------


# Why each shape: no sequence at all; one token a sequence; lengths around the kernels' tile of 256 and block of 512;
# many sequences (several threads); one sequence over several blocks; the longest allowed.
SHAPES = [(0, 1), (9, 1), (12, 5), (4, 300), (3, 600), (900, 120), (1, 1500), (2, 8192)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("has_units", [False, True])
@pytest.mark.parametrize(("sequences", "longest"), SHAPES)
def test_mask_tokens_equals_numpy(backend, sequences, longest, has_units, rng_seed):
    if backend.interpreted:
        sequences, longest = min(sequences, 3), min(longest, 1100)  # takes minutes for more
    g = np.random.default_rng(rng_seed)
    with ops.use_backend(backend.name):
        for tail in (7,) if backend.interpreted else (0, 7):
            ids, cu_seqlens = random_batch(g, sequences=sequences, longest=longest, tail=tail)
            options = random_options(g, len(ids)) | {"unit_starts": random_units(g, len(ids)) if has_units else None}
            expected = numpy_oracle.mask_tokens(ids, cu_seqlens, **options)
            for threads, dtype in ((1, torch.int32), (2, torch.int64), (3, torch.int32)):
                torch.set_num_threads(threads)
                assert_equal(run(ids, cu_seqlens, dtype, backend.device, **options), expected)
                if backend.name == "triton":
                    break


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_sequences_than_a_grid_has_rows(backend, rng_seed):
    if backend.interpreted:
        pytest.skip("takes minutes")
    g = np.random.default_rng(rng_seed)
    ids, cu_seqlens = g.integers(0, 9, 140_000), np.arange(0, 140_001, 2)  # a launch grid has 65,535 on its other axes
    options = random_options(g, len(ids)) | {"num_masked": 60_000}
    with ops.use_backend(backend.name):
        got = run(ids, cu_seqlens, device=backend.device, **options)
    assert_equal(got, numpy_oracle.mask_tokens(ids, cu_seqlens, **options))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_output_element_is_written(backend, rng_seed, monkeypatch):
    g = np.random.default_rng(rng_seed)
    ids, cu_seqlens = random_batch(g, sequences=4, longest=33, tail=5)
    for unit_starts in (None, random_units(g, len(ids))):
        options = random_options(g, len(ids)) | {"num_masked": 150, "unit_starts": unit_starts}
        expected = numpy_oracle.mask_tokens(ids, cu_seqlens, **options)
        with monkeypatch.context() as patch, ops.use_backend(backend.name):
            poison_new_tensors(patch)
            got = run(ids, cu_seqlens, device=backend.device, **options)
        assert_equal(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask_prob", [0.15, 0.1, 0.25, 0.5, 1 / 3])
def test_counts_round_half_to_even(backend, mask_prob):
    # Every short length; some long ones, where float32 and float64 differ in the rounding. The interpreter is slow, so
    # tests/kernels/test_masking_sampling.py tests the kernel's rule over all lengths.
    lengths = np.arange(10, 60, 10) if backend.interpreted else np.array([*range(1, 60), 1010, 2710, 4090, 8190, 8192])
    expected = np.maximum(1, np.rint(lengths.astype(np.float32) * np.float32(mask_prob))).astype(int)
    cu_seqlens = np.concatenate([[0], lengths.cumsum()])
    ids = np.full(cu_seqlens[-1], 9)
    options = {"mask_token_id": MASK, "never_mask_ids": (), "num_masked": len(ids), "mask_prob": mask_prob, "seed": 1}
    with ops.use_backend(backend.name):
        masked = run(ids, cu_seqlens, device=backend.device, **options)
    positions = masked.positions[masked.weights > 0].cpu().numpy()
    assert np.array_equal(np.histogram(positions, cu_seqlens)[0], expected)
    assert len(set(positions.tolist())) == expected.sum()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("has_units", [False, True])
def test_masks_follow_the_row_ids_through_permuted_cut_and_padded_batches(backend, has_units, rng_seed):
    g = np.random.default_rng(rng_seed)
    count = 3 if backend.interpreted else 10
    lengths = g.integers(3, 40, count)
    texts = [g.integers(0, 50, n) for n in lengths]
    units = [g.random(n) < 0.5 for n in lengths]
    names = g.integers(0, 2**40, count)
    options = {"mask_token_id": MASK, "never_mask_ids": NEVER, "mask_prob": 0.3, "seed": 11}

    def masks_of(order: np.ndarray) -> dict[int, list[int]]:
        cu_seqlens = np.concatenate([[0], lengths[order].cumsum()])
        ids = np.concatenate([texts[i] for i in order])
        rows = random.row_ids_for(torch.from_numpy(names[order]), torch.from_numpy(cu_seqlens), len(ids)).numpy()
        unit_starts = np.concatenate([units[i] for i in order]) if has_units else None
        masked = run(
            ids, cu_seqlens, device=backend.device, row_ids=rows, unit_starts=unit_starts, num_masked=200, **options
        )
        return {i: masked.input_ids[b:e].tolist() for i, b, e in zip(order, cu_seqlens, cu_seqlens[1:], strict=False)}

    with ops.use_backend(backend.name):
        whole = masks_of(np.arange(count))
        assert masks_of(g.permutation(count)) == whole
        assert masks_of(np.arange(1)) | masks_of(np.arange(1, count)) == whole

        padded = np.zeros((count, 45), np.int64)
        left = g.integers(0, 5, count)
        kept = np.zeros((count, 45), bool)
        rows = np.zeros((count, 45), np.int64)
        starts = g.random((count, 45)) < 0.5  # what it says of padding counts for nothing
        for i, text in enumerate(texts):
            span = slice(left[i], left[i] + len(text))
            padded[i, span], kept[i, span], starts[i, span] = text, True, units[i]
            rows[i, span] = names[i] * 2**16 + np.arange(len(text))
        padded, kept, rows, starts = (
            torch.from_numpy(array).to(backend.device) for array in (padded, kept, rows, starts)
        )
        result = ops.mask_tokens_padded(
            padded, kept, max_masked=15, row_ids=rows, unit_starts=starts if has_units else None, **options
        )
    for i in range(count):
        assert result.input_ids[i][kept[i]].tolist() == whole[i]
        assert result.input_ids[i][~kept[i]].eq(0).all()


@pytest.mark.parametrize("max_masked", [0, 1, 3, 30])
def test_padded_slots_and_overflow(max_masked, rng_seed):
    g = np.random.default_rng(rng_seed)
    batch_size, length = 7, 29
    ids = g.integers(0, 30, (batch_size, length))
    kept = g.random((batch_size, length)) < 0.8
    kept[2] = False
    flat_kept = kept.flatten()
    cu_seqlens = np.concatenate([[0], kept.sum(1).cumsum()])
    options = {"mask_token_id": MASK, "never_mask_ids": NEVER, "mask_prob": 0.3, "replace_prob": 0.5, "seed": 5}
    flat = numpy_oracle.mask_tokens(
        ids.flatten()[flat_kept], cu_seqlens, num_masked=300, max_per_sequence=None, row_ids=None, **options
    )
    got = ops.mask_tokens_padded(torch.from_numpy(ids), torch.from_numpy(kept).long(), max_masked=max_masked, **options)

    places = np.flatnonzero(flat_kept)[flat.positions[flat.weights > 0]]
    values = flat.input_ids[flat.positions[flat.weights > 0]]
    expected = ids.copy()
    for row in range(batch_size):
        mine = places // length == row
        columns = places[mine][:max_masked] % length
        expected[row, columns] = values[mine][:max_masked]
        unused = max_masked - len(columns)
        assert got.positions[row].tolist() == [*columns, *[0] * unused]
        assert got.weights[row].tolist() == [1.0] * len(columns) + [0.0] * unused
        assert got.labels[row].tolist() == [ids[row, column] for column in got.positions[row]]
    assert np.array_equal(got.input_ids.numpy(), expected)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_padded_takes_empty_batches(shape):
    got = ops.mask_tokens_padded(
        torch.zeros(shape, dtype=torch.int64),
        torch.ones(shape, dtype=torch.bool),
        mask_token_id=MASK,
        never_mask_ids=NEVER,
        max_masked=4,
        seed=1,
    )
    assert got.input_ids.shape == shape
    assert got.positions.tolist() == got.labels.tolist() == [[0] * 4] * shape[0]
    assert not got.weights.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("num_tokens", "cu_seqlens"), [(0, [0]), (0, [0, 0, 0]), (5, [0]), (5, [0, 0])])
def test_mask_tokens_takes_empty_input(backend, num_tokens, cu_seqlens):
    ids = np.arange(10, 10 + num_tokens)
    with ops.use_backend(backend.name):
        for num_masked in (0, 3):
            units = np.ones(num_tokens, bool) if num_masked else None
            options = {"mask_token_id": MASK, "never_mask_ids": (), "num_masked": num_masked, "seed": 1}
            masked = run(ids, np.array(cu_seqlens), device=backend.device, unit_starts=units, **options)
            assert masked.input_ids.tolist() == ids.tolist()
            assert masked.positions.tolist() == [0] * num_masked
            assert masked.labels.tolist() == [10 if num_tokens else 0] * num_masked
            assert masked.weights.tolist() == [0.0] * num_masked


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_first_position(backend):
    # One row id for all tokens gives one key for all.
    ids, rows = np.full(600, 9), np.full(600, 3)
    ids[:2] = SEP
    options = {"mask_token_id": MASK, "never_mask_ids": NEVER, "num_masked": 300, "mask_prob": 0.1, "row_ids": rows}
    with ops.use_backend(backend.name):
        masked = run(ids, np.array([0, 20, 600]), device=backend.device, seed=8, **options)
    assert masked.positions[masked.weights > 0].tolist() == [2, 3, *range(20, 78)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_token_its_own_unit_is_no_units(backend, rng_seed):
    g = np.random.default_rng(rng_seed)
    ids, cu_seqlens = random_batch(g, sequences=6, longest=300, tail=5)
    options = random_options(g, len(ids)) | {"unit_starts": None}
    with ops.use_backend(backend.name):
        without = run(ids, cu_seqlens, device=backend.device, **options)
        each = run(ids, cu_seqlens, device=backend.device, **(options | {"unit_starts": np.ones(len(ids), bool)}))
    assert all(torch.equal(a, b) for a, b in zip(without, each, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_units_are_masked_whole_and_none_that_fits_is_left(backend, rng_seed):
    g = np.random.default_rng(rng_seed)
    ids, unit_starts = g.integers(0, 9, 500), g.random(500) < 0.4
    options = {"mask_token_id": MASK, "never_mask_ids": NEVER, "num_masked": 500, "mask_prob": 0.1, "seed": rng_seed}
    with ops.use_backend(backend.name):
        masked = run(ids, np.array([0, 500]), device=backend.device, unit_starts=unit_starts, **options)
    picked = np.zeros(500, bool)
    picked[masked.positions[masked.weights > 0].cpu().numpy()] = True
    left = 50 - picked.sum()
    assert 0 <= left < 50
    assert not (picked & np.isin(ids, NEVER)).any()
    unit_starts[0] = True
    for unit in np.split(np.arange(500), np.flatnonzero(unit_starts)[1:]):
        candidates = unit[~np.isin(ids[unit], NEVER)]
        assert picked[candidates].all() or not picked[candidates].any()
        assert picked[candidates].any() or len(candidates) == 0 or len(candidates) > left


@pytest.mark.parametrize("backend", BACKENDS)
def test_units_that_just_do_not_fit_one_after_another(backend, rng_seed):
    # In key order units of 1, k, 1, k - 1, 1, ... tokens: each large one is skipped, the worst case for rounds.
    k = 6
    sizes = [size for large in range(k, 0, -1) for size in (1, large)]
    starts = np.cumsum([0, *sizes[:-1]])
    length = sum(sizes) + 24  # the rest is one unit
    rows = np.random.default_rng(rng_seed).integers(-(2**63), 2**63, length, dtype=np.int64)
    keys = numpy_oracle.philox(5, rows, 0, 0)[0]
    first, rest = np.append(starts, sum(sizes)), np.setdiff1d(np.arange(length), [*starts, sum(sizes)])
    rows = rows[keys.argsort()]
    rows[np.concatenate([first, rest])] = rows.copy()
    unit_starts = np.isin(np.arange(length), first)
    options = {"mask_token_id": MASK, "never_mask_ids": (), "num_masked": length, "mask_prob": 1.0, "seed": 5}
    with ops.use_backend(backend.name):
        masked = run(
            np.full(length, 9),
            np.array([0, length]),
            device=backend.device,
            row_ids=rows,
            unit_starts=unit_starts,
            max_per_sequence=k,
            **options,
        )
    assert masked.positions[masked.weights > 0].tolist() == starts[::2].tolist()  # the k units of one token


@pytest.mark.parametrize("backend", BACKENDS)
def test_tied_units_go_by_position(backend):
    options = {"mask_token_id": MASK, "never_mask_ids": NEVER, "num_masked": 12, "mask_prob": 0.5, "seed": 8}
    ids, unit_starts = np.full(12, 9), np.zeros(12, bool)
    ids[[0, 1, 4, 11]] = SEP
    unit_starts[[0, 3, 6, 9, 10]] = True  # candidates 2 | 3, 5 | 6, 7, 8 | 9 | 10: of k = 6 all but the last
    unit_starts[0] = False  # the first token begins a unit whatever it says
    with ops.use_backend(backend.name):
        masked = run(
            ids, np.array([0, 12]), device=backend.device, row_ids=np.full(12, 3), unit_starts=unit_starts, **options
        )
        assert masked.positions[masked.weights > 0].tolist() == [2, 3, 5, 6, 7, 8]
        unit_starts[3] = False  # 2, 3, 5 | 6, 7, 8 | 9 | 10
        unit_starts[5] = True  # 2, 3 | 5 | 6, 7, 8 | 9 | 10
        options["max_per_sequence"] = 5  # 2, 3, 5, then no room for 6, 7, 8
        masked = run(
            ids, np.array([0, 12]), device=backend.device, row_ids=np.full(12, 3), unit_starts=unit_starts, **options
        )
        assert masked.positions[masked.weights > 0].tolist() == [2, 3, 5, 9, 10]


def test_never_masked_ids_and_replaced_share():
    g = np.random.default_rng(0)  # fixed: the bounds are statistical
    ids = g.integers(0, 8, 40_000)
    cu_seqlens = np.arange(0, 40_001, 100)
    masked = run(ids, cu_seqlens, mask_token_id=MASK, never_mask_ids=NEVER, num_masked=6000, replace_prob=0.85, seed=3)
    assert masked.weights.sum() == 6000
    assert not np.isin(masked.labels.numpy(), NEVER).any()
    became_mask = masked.input_ids[masked.positions] == MASK
    assert (masked.input_ids[masked.positions][~became_mask] == masked.labels[~became_mask]).all()
    assert abs(became_mask.float().mean().item() - 0.85) < 4 * math.sqrt(0.85 * 0.15 / 6000)
    # Each candidate of a sequence is as likely as any other: counts per position in the sequence, 15 expected a seed.
    columns = np.zeros(100)
    for seed in range(20):
        picks = run(np.full(40_000, 9), cu_seqlens, mask_token_id=MASK, never_mask_ids=(), num_masked=6000, seed=seed)
        columns += np.bincount(picks.positions.numpy() % 100, minlength=100)
    expected = 20 * 400 * 0.15
    chi_square = ((columns - expected) ** 2 / (expected * 0.85)).sum()
    assert chi_square < 99 + 5 * math.sqrt(2 * 99)


def test_default_backend_is_the_fastest_present_and_seed_none_follows_torch():
    ids, cu_seqlens = np.arange(10, 110), np.array([0, 50, 100])
    options = {"mask_token_id": MASK, "never_mask_ids": NEVER, "num_masked": 15}
    results = []
    for _ in range(2):
        torch.manual_seed(17)
        results.append([run(ids, cu_seqlens, seed=None, **options).positions.tolist() for _ in range(2)])
    assert results[0] == results[1]
    assert results[0][0] != results[0][1]


BAD_CALLS = [
    ({"input_ids": torch.zeros(8, dtype=torch.int32)}, TypeError, "input_ids"),
    ({"input_ids": torch.zeros(2, 4, dtype=torch.int64)}, ValueError, "input_ids"),
    ({"cu_seqlens": torch.tensor([0.0, 8.0])}, TypeError, "cu_seqlens"),
    ({"cu_seqlens": torch.tensor([[0, 8]])}, ValueError, "cu_seqlens"),
    ({"cu_seqlens": torch.zeros(0, dtype=torch.int32)}, ValueError, "cu_seqlens"),
    ({"cu_seqlens": torch.tensor([0, 5, 4, 8])}, ValueError, "cu_seqlens"),
    ({"cu_seqlens": torch.tensor([1, 8])}, ValueError, "cu_seqlens"),
    ({"cu_seqlens": torch.tensor([0, 9])}, ValueError, "cu_seqlens"),
    ({"cu_seqlens": torch.tensor([0, -9, 8])}, ValueError, "cu_seqlens"),
    ({"cu_seqlens": torch.tensor([0, 8], device="meta")}, ValueError, "cu_seqlens lies on"),
    ({"row_ids": torch.arange(7)}, ValueError, "row_ids"),
    ({"row_ids": torch.arange(8).int()}, TypeError, "row_ids"),
    ({"unit_starts": torch.ones(7, dtype=torch.bool)}, ValueError, "unit_starts"),
    ({"unit_starts": torch.ones(8, dtype=torch.uint8)}, TypeError, "unit_starts"),
    ({"unit_starts": torch.ones(8, dtype=torch.bool, device="meta")}, ValueError, "unit_starts lies on"),
    ({"num_masked": -1}, ValueError, "num_masked"),
    ({"mask_prob": 1.5}, ValueError, "mask_prob"),
    ({"mask_prob": float("nan")}, ValueError, "mask_prob"),
    ({"replace_prob": -0.1}, ValueError, "replace_prob"),
    ({"max_per_sequence": 0}, ValueError, "max_per_sequence"),
    ({"seed": torch.zeros(1, dtype=torch.int64)}, TypeError, "seed"),
    ({"input_ids": torch.zeros(9000, dtype=torch.int64), "cu_seqlens": torch.tensor([0, 8193])}, ValueError, "8192"),
]


@pytest.mark.parametrize("backend", BACKENDS[:3])  # on CUDA values are not checked
@pytest.mark.parametrize(("change", "error", "message"), BAD_CALLS)
def test_mask_tokens_refuses_bad_input(backend, change, error, message):
    call = {
        "input_ids": torch.zeros(8, dtype=torch.int64),
        "cu_seqlens": torch.tensor([0, 8]),
        "mask_token_id": MASK,
        "never_mask_ids": NEVER,
        "num_masked": 2,
        "seed": 1,
    } | change
    with ops.use_backend(backend.name), pytest.raises(error, match=message):
        ops.mask_tokens(call.pop("input_ids"), call.pop("cu_seqlens"), **call)


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_input(backend, rng_seed):
    g = np.random.default_rng(rng_seed)
    ids, rows = g.integers(0, 30, 200), g.integers(0, 2**40, 200)
    tensors = [
        torch.from_numpy(array).to(backend.device)
        for array in (ids, np.array([0, 0, 50, 50, 100, 100]), rows, random_units(g, 200))
    ]
    options = {"mask_token_id": MASK, "never_mask_ids": NEVER, "num_masked": 30, "seed": 1}

    def call(ids, cu_seqlens, rows, units):
        masked = ops.mask_tokens(ids, cu_seqlens, row_ids=rows, unit_starts=units, **options)
        slots = torch.stack([masked.positions, masked.labels + 1], 1)
        return *masked, *ops.corrupt_tokens(ids, slots[:, 0], slots[:, 1], masked.weights.repeat_interleave(2)[::2])

    with ops.use_backend(backend.name):
        got = call(*(tensor[::2] for tensor in tensors))
        expected = call(*(tensor[::2].clone() for tensor in tensors))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@needs_interpreter
def test_wrong_sequences_unchecked_reach_no_memory_outside(rng_seed):
    # As on CUDA, where nothing checks what cu_seqlens holds; the interpreter would crash, or trample the guards.
    from electra_fast.kernels.masking_sampling import mask_tokens_triton

    g = np.random.default_rng(rng_seed)
    guarded = torch.full((3, 90), 7)
    ids = guarded[1]
    for bounds in ([0, 50, 20, 90], [-40, 10, 400], [2**31 - 1, 0, -(2**31), 90]):
        for unit_starts in (None, torch.from_numpy(g.random(90) < 0.4)):
            masked = mask_tokens_triton(
                ids, torch.tensor(bounds, dtype=torch.int32), torch.tensor(3), None, unit_starts, MASK, (), 20, 0.3,
                2**31, 8192, 0,
            )  # fmt: skip
            assert ((masked[1] >= 0) & (masked[1] < 90)).all()
            assert (guarded == 7).all()


@pytest.mark.parametrize("backend", KERNELS)
def test_a_chain_on_one_backend_is_the_chain_on_the_reference(backend, rng_seed):
    g = np.random.default_rng(rng_seed)
    ids, cu_seqlens = random_batch(g, sequences=7, longest=40)
    options = {"mask_token_id": MASK, "never_mask_ids": NEVER, "num_masked": 30, "seed": 4}

    def chain() -> list[torch.Tensor]:
        masked = run(ids, cu_seqlens, device=backend.device, **options)
        samples = (masked.labels + masked.positions) % 40
        tokens = torch.from_numpy(ids).to(backend.device)
        return [*masked, *ops.corrupt_tokens(tokens, masked.positions, samples, masked.weights)]

    with ops.use_backend(backend.name):
        ours = chain()
    with ops.use_backend("reference"):
        reference = chain()
    assert all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True))


# --- torch.compile, threads, processes --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_gives_the_same_bits_for_any_token_count(backend, rng_seed):
    g = np.random.default_rng(rng_seed)

    def step(ids, cu_seqlens, seed, rows, units):
        options = {"mask_token_id": MASK, "never_mask_ids": NEVER, "num_masked": 8, "seed": seed, "row_ids": rows}
        words = ops.mask_tokens(ids, cu_seqlens, unit_starts=units, **options)
        masked = ops.mask_tokens(ids, cu_seqlens, **options)
        return *words, *masked, *ops.corrupt_tokens(ids, masked.positions, masked.labels + 1, masked.weights)

    torch._dynamo.reset()
    # The operators are opaque to the compiler, so one backend under inductor is enough.
    compiler = "inductor" if backend.name == "cpp" else "aot_eager"
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=compiler)
    with ops.use_backend(backend.name), torch._dynamo.config.patch(error_on_recompile=True):
        for num_tokens, num_sequences in ((30, 3), (41, 2)):
            cuts = np.sort(g.integers(0, num_tokens, num_sequences - 1))
            call = (
                torch.from_numpy(g.integers(5, 50, num_tokens)),
                torch.tensor([0, *cuts, num_tokens], dtype=torch.int32),
                torch.tensor(int(g.integers(2**60))),
                torch.from_numpy(g.integers(0, 2**60, num_tokens)),
                torch.from_numpy(g.random(num_tokens) < 0.5),
            )
            call = tuple(tensor.to(backend.device) for tensor in call)
            for ours, truth in zip(compiled(*call), step(*call), strict=True):
                assert torch.equal(ours, truth)


def test_opcheck(rng_seed):
    g = np.random.default_rng(rng_seed)
    ids, cu_seqlens, seed = torch.from_numpy(g.integers(0, 30, 50)), torch.tensor([0, 20, 44]), torch.tensor(3)
    for rows, units in ((None, None), (torch.arange(50), torch.from_numpy(g.random(50) < 0.5))):
        arguments = (ids, cu_seqlens, seed, rows, units, MASK, NEVER, 9, 0.15, 2**31, 20)
        torch.library.opcheck(torch.ops.electra_fast.mask_tokens.default, arguments)
    slots = torch.arange(9)
    torch.library.opcheck(torch.ops.electra_fast.corrupt_tokens.default, (ids, slots, slots + 5, torch.ones(9)))
    for disallow in (None, torch.tensor([1, 2, 3])):
        torch.library.opcheck(
            torch.ops.electra_fast.sample_tokens.default, (torch.randn(3, 7), seed, None, disallow, 1.0, 2)
        )


def test_fake_tensors_and_dispatch_modes_reach_the_operator():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    def call() -> ops.MaskedTokens:
        return ops.mask_tokens(
            torch.full((20,), 9), torch.tensor([0, 20]), mask_token_id=MASK, never_mask_ids=(), num_masked=4, seed=1
        )

    with FakeTensorMode():
        assert [tuple(result.shape) for result in call()] == [(20,), (4,), (4,), (4,)]
    with Watch():
        call()
    assert "electra_fast.mask_tokens.default" in seen


def test_two_python_threads_at_once(rng_seed):
    g = np.random.default_rng(rng_seed)
    ids, cu_seqlens = random_batch(g, sequences=900, longest=100)
    all_options = [random_options(g, len(ids)) for _ in range(2)]
    expected = [numpy_oracle.mask_tokens(ids, cu_seqlens, **options) for options in all_options]
    failures = []

    def work(index: int) -> None:
        try:
            with ops.use_backend(("reference", "cpp")[index] if _backends._extension_error() is None else "reference"):
                for _ in range(20):
                    assert_equal(run(ids, cu_seqlens, **all_options[index]), expected[index])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@needs_cpp
def test_threads_with_small_stacks_take_the_longest_sequences():
    # 128 KB, the default under musl; a kernel with its tables on the stack dies of it, hence a process of its own.
    script = """
import threading, torch
from electra_fast import ops
def work():
    ids = torch.full((8192,), 9)
    for units in (None, torch.arange(8192) % 3 == 0):
        options = dict(mask_token_id=4, never_mask_ids=(), num_masked=2000, seed=1, unit_starts=units)
        print(int(ops.mask_tokens(ids, torch.tensor([0, 8192]), **options).weights.sum()))
torch.set_num_threads(1)
ops.mask_tokens(torch.arange(9), torch.tensor([0, 9]), mask_token_id=4, never_mask_ids=(), num_masked=2, seed=1)
threading.stack_size(128 * 1024)
with ops.use_backend("cpp"):
    thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ELECTRA_FAST_BACKEND": "cpp"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["1229", "1229"]  # round(8192 * 0.15): 409 units of three, and the last, of two


class Masking(torch.utils.data.Dataset):
    """A dataset whose workers mask."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        ids, cu_seqlens = torch.full((40_000,), 9), torch.arange(0, 40_001, 100)
        masked = ops.mask_tokens(ids, cu_seqlens, mask_token_id=MASK, never_mask_ids=(), num_masked=6000, seed=index)
        return torch.cat(ops.corrupt_tokens(ids, masked.positions, masked.labels + index % 2, masked.weights))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_data_loader_workers_mask_too():
    torch.set_num_threads(2)
    here = [Masking()[index] for index in range(6)]  # the parent's threads are running when it forks
    loader = torch.utils.data.DataLoader(
        Masking(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=200
    )
    for ours, theirs in zip(here, loader, strict=True):
        assert torch.equal(ours, theirs)


@needs_cpp
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_one_openmp_runtime_is_loaded():
    script = """
import re, torch
from electra_fast import ops
from electra_fast.ops import _backends
torch.set_num_threads(2)
with ops.use_backend("cpp"):
    ids, cu_seqlens = torch.full((40_000,), 9), torch.arange(0, 40_001, 100)
    ops.mask_tokens(ids, cu_seqlens, mask_token_id=4, never_mask_ids=(), num_masked=6000, seed=1)
runtimes = {line.split()[-1] for line in open("/proc/self/maps") if re.search(r"lib(g|i|)omp[-.\\d]", line)}
print(_backends.extension().has_openmp(), len(runtimes), len(list(__import__("os").listdir("/proc/self/task"))))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    has_openmp, runtimes, threads = result.stdout.split()
    assert (has_openmp, runtimes) == ("True", "1")
    assert int(threads) >= 2


# --- sample_tokens ----------------------------------------------------------------------------------------------------


def sample_in_float64(logits: np.ndarray, temperature: float, disallow, seed: int, stream: int, rows: np.ndarray):
    """The inverse CDF, and how far each row's uniform number lies from the nearest step of the CDF."""
    scores = logits.astype(np.float64) / temperature
    if disallow is not None:
        scores[np.arange(len(scores)), disallow] = -np.inf
    masses = np.exp(scores - scores.max(1, keepdims=True))
    cdf = masses.cumsum(1) / masses.sum(1, keepdims=True)
    words = numpy_oracle.philox(seed, rows, 0, stream).astype(np.uint64)
    uniform = ((words[0] >> np.uint64(5)) * 2**26 + (words[1] >> np.uint64(6))).astype(np.float64) * 2.0**-53
    return (cdf <= uniform[:, None]).sum(1), np.abs(cdf - uniform[:, None]).min(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (40, 2), (300, 257), (64, 30522)])
def test_samples_equal_the_inverse_cdf(rows, vocab, dtype, rng_seed):
    g = np.random.default_rng(rng_seed)
    logits = torch.from_numpy(g.normal(0, 3, (rows, vocab))).to(dtype)
    for disallow, temperature in ((None, 1.0), (g.integers(0, vocab, rows), 0.7)):
        if disallow is not None and vocab == 1:
            continue
        names = g.integers(-(2**63), 2**63, rows, dtype=np.int64)
        seed, stream = int(g.integers(-(2**63), 2**63)), int(g.integers(2**31))
        got = ops.sample_tokens(
            logits,
            temperature=temperature,
            disallow=None if disallow is None else torch.from_numpy(disallow),
            seed=seed,
            stream=stream,
            row_ids=torch.from_numpy(names),
        ).numpy()
        expected, distance = sample_in_float64(logits.double().numpy(), temperature, disallow, seed, stream, names)
        # Float32 masses move a step of the CDF by some 1e-6 at most; there either neighbour is right.
        clear = distance > (1e-12 if dtype == torch.float64 else 2e-6)
        assert np.array_equal(got[clear], expected[clear])
        assert clear.mean() > 0.5 or vocab == 1  # whose only step is 1, which a number may be near
        assert ((got >= 0) & (got < vocab)).all()
        assert disallow is None or (got != disallow).all()


def test_samples_have_the_law_of_the_softmax():
    g = np.random.default_rng(1)  # fixed: the bound is statistical
    logits = torch.from_numpy(g.normal(0, 2, 50)).float()
    drawn = ops.sample_tokens(logits.expand(200_000, 50), seed=12)
    expected = torch.softmax(logits.double(), 0).numpy() * 200_000
    counts = np.bincount(drawn.numpy(), minlength=50)
    usual = expected >= 5
    chi_square = ((counts - expected)[usual] ** 2 / expected[usual]).sum()
    assert chi_square < usual.sum() + 5 * math.sqrt(2 * usual.sum())


def test_a_uniform_at_its_end_finds_a_token_with_a_mass(monkeypatch):
    monkeypatch.setattr("electra_fast.ops.sampling.uniform53", lambda *words: torch.ones(2, dtype=torch.float64))
    logits = torch.tensor([[0.0, 1.0, -math.inf], [-math.inf, 0.0, 2.0]])
    assert ops.sample_tokens(logits, seed=1).tolist() == [1, 2]
    assert ops.sample_tokens(logits, disallow=torch.tensor([1, 2]), seed=1).tolist() == [0, 1]


def test_sampling_under_compile_gives_the_same_bits(rng_seed):
    torch._dynamo.reset()
    compiled = torch.compile(ops.sample_tokens, fullgraph=True, dynamic=True)
    for rows in (5, 9):
        logits, seed = torch.randn(rows, 300, requires_grad=True), torch.tensor(rng_seed)
        assert torch.equal(compiled(logits, seed=seed), ops.sample_tokens(logits, seed=seed))


@pytest.mark.parametrize(
    ("logits", "options", "error", "message"),
    [
        (torch.zeros(3), {}, TypeError, "logits"),
        (torch.zeros(3, 4, dtype=torch.int64), {}, TypeError, "logits"),
        (torch.zeros(3, 0), {}, ValueError, "logits"),
        (torch.zeros(3, 1), {"disallow": torch.zeros(3, dtype=torch.int64)}, ValueError, "logits"),
        (torch.zeros(3, 4), {"disallow": torch.zeros(2, dtype=torch.int64)}, ValueError, "disallow"),
        (torch.zeros(3, 4), {"row_ids": torch.zeros(3)}, TypeError, "row_ids"),
        (torch.zeros(3, 4), {"temperature": 0.0}, ValueError, "temperature"),
        (torch.zeros(3, 4), {"stream": -1}, ValueError, "stream"),
    ],
)
def test_sample_tokens_refuses_bad_input(logits, options, error, message):
    with pytest.raises(error, match=message):
        ops.sample_tokens(logits, seed=1, **options)
