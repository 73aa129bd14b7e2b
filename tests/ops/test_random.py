"""Random numbers: known answers, the NumPy oracle, and the derivation of seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from electra_fast.ops import random
from tests.ops import numpy_oracle

# Random123's kat_vectors for philox4x32-10: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def as_int64(high: int, low: int) -> int:
    return int(np.uint64(high << 32 | low).astype(np.int64))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    column_block, low, high, stream = counter
    row, seed = as_int64(high, low), as_int64(key[1], key[0])
    assert tuple(numpy_oracle.philox(seed, np.array([row]), column_block, stream)[:, 0]) == expected
    if stream < 2**31:  # the range ours takes
        words = random.philox(torch.tensor(seed), torch.tensor([row]), column_block, stream)
        assert tuple(word.item() for word in words) == expected


def test_philox_equals_the_oracle(rng_seed):
    g = np.random.default_rng(rng_seed)
    rows = g.integers(-(2**63), 2**63, 1000, dtype=np.int64)
    for seed in (0, -1, int(g.integers(-(2**63), 2**63))):
        column_block, stream = int(g.integers(2**32)), int(g.integers(2**31))
        expected = numpy_oracle.philox(seed, rows, column_block, stream)
        for given in (seed, torch.tensor(seed)):
            words = random.philox(given, torch.from_numpy(rows), column_block, stream)
            assert np.array_equal(torch.stack(words).numpy(), expected)


def test_philox_broadcasts_columns_against_rows(rng_seed):
    rows, blocks = torch.tensor([[3], [-4]]), torch.arange(5)
    words = torch.stack(random.philox(7, rows, blocks, 1))
    assert words.shape == (4, 2, 5)
    for column in range(5):
        expected = numpy_oracle.philox(7, rows[:, 0].numpy(), column, 1)
        assert np.array_equal(words[:, :, column].numpy(), expected)


@pytest.mark.parametrize("stream", [-1, 2**31])
def test_philox_refuses_a_stream_out_of_range(stream):
    with pytest.raises(ValueError, match="stream"):
        random.philox(0, torch.arange(3), 0, stream)


def test_splitmix64_known_answers():
    # The first outputs of the published generator, whose n-th state is seed + n * golden.
    golden = 0x9E3779B97F4A7C15
    assert random.splitmix64(0) % 2**64 == 0xE220A8397B1DCDAF
    assert random.splitmix64(1234567) % 2**64 == 6457827717110365317
    assert random.splitmix64(1234567 + golden) % 2**64 == 3203168211198807973


def test_splitmix64_agrees_on_ints_and_tensors(rng_seed):
    g = np.random.default_rng(rng_seed)
    numbers = [*g.integers(-(2**63), 2**63, 500, dtype=np.int64).tolist(), 0, -1, 2**63 - 1, -(2**63)]
    expected = [random.splitmix64(number) for number in numbers]
    assert random.splitmix64(torch.tensor(numbers)).tolist() == expected
    assert len(set(expected)) == len(set(numbers))
    assert min(expected) < 0 < max(expected)


def test_threshold():
    assert [random.threshold(p) for p in (0.0, 0.5, 1.0)] == [0, 2**31, 2**32]
    assert random.threshold(0.85) == round(0.85 * 2**32) == 3650722202
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="probability"):
            random.threshold(p)


def test_uniform53_ends_and_resolution():
    most = torch.tensor(2**32 - 1)
    zero = torch.tensor(0)
    assert random.uniform53(zero, zero).item() == 0.0
    assert random.uniform53(most, most).item() == 1 - 2.0**-53
    assert random.uniform53(zero, torch.tensor(64)).item() == 2.0**-53
    assert random.uniform53(torch.tensor(32), zero).item() == 2.0**-27


def test_seeds_of_a_run_are_distinct():
    seeds = [
        derive(run, n) for derive in (random.masking_seed, random.step_seed) for run in (0, 1, -5) for n in range(2000)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    bits = np.unpackbits(np.array(seeds, np.int64).view(np.uint8)).reshape(-1, 64).mean(0)
    assert np.abs(bits - 0.5).max() < 5 * 0.5 / np.sqrt(len(seeds))  # five deviations of a fair coin


def test_draw_seed_follows_torch_and_spans_int64():
    torch.manual_seed(5)
    first = [random.draw_seed("cpu").item() for _ in range(64)]
    torch.manual_seed(5)
    assert [random.as_seed(None, "cpu").item() for _ in range(64)] == first
    assert len(set(first)) == 64
    assert min(first) < -(2**60)
    assert max(first) > 2**60


def test_as_seed():
    assert random.as_seed(2**64 - 1, "cpu").item() == -1
    given = torch.tensor(9)
    assert random.as_seed(given, "cpu") is given
    for wrong in (torch.tensor([9]), torch.tensor(9, dtype=torch.int32), 0.5):
        with pytest.raises(TypeError, match="seed"):
            random.as_seed(wrong, "cpu")
    with pytest.raises(ValueError, match="seed lies on"):
        random.as_seed(torch.tensor(9, device="meta"), "cpu")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_row_ids_for(dtype, rng_seed):
    g = np.random.default_rng(rng_seed)
    lengths = g.integers(0, 9, 12)
    lengths[3] = 0
    cu_seqlens = np.concatenate([[0], lengths.cumsum()])
    sequence_ids = g.integers(0, 2**40, 12)
    expected = [name * 2**16 + i for name, n in zip(sequence_ids, lengths, strict=True) for i in range(n)]
    expected += [-(2**16) + i for i in range(4)]
    compiled = torch.compile(random.row_ids_for, fullgraph=True, backend="aot_eager")
    for call in (random.row_ids_for, compiled):
        got = call(torch.from_numpy(sequence_ids), torch.from_numpy(cu_seqlens).to(dtype), len(expected))
        assert got.tolist() == expected
