"""corrupt_tokens: exact on every backend, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from electra_fast import ops
from electra_fast.ops import masking_sampling
from tests.ops.backends import BACKENDS, poison_new_tensors


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_corruption(g: np.random.Generator, num_tokens: int, num_slots: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Arguments, and the corrupted ids; a third of the slots unused, with any position at all."""
    ids, sampled = g.integers(0, 5, num_tokens), g.integers(0, 5, num_slots)
    used = g.permutation(num_slots) < min(2 * num_slots // 3, num_tokens)
    positions = g.integers(-(2**40), 2**40, num_slots)
    positions[used] = g.permutation(num_tokens)[: used.sum()]
    expected = ids.copy()
    expected[positions[used]] = sampled[used]
    return [ids, positions, sampled, used.astype(np.float32)], expected


@pytest.mark.parametrize("backend", BACKENDS)
# Why each shape: nothing at all; no slot; no token; one; around the kernels' blocks of 1,024 and 256; several threads.
@pytest.mark.parametrize(
    ("num_tokens", "num_slots"), [(0, 0), (5, 0), (0, 3), (1, 1), (1023, 257), (1025, 256), (200_000, 30_000)]
)
def test_corrupt_tokens_equals_numpy(backend, num_tokens, num_slots, rng_seed, monkeypatch):
    if backend.interpreted:
        num_tokens, num_slots = min(num_tokens, 3000), min(num_slots, 500)
    g = np.random.default_rng(rng_seed)
    arrays, expected = random_corruption(g, num_tokens, num_slots)
    tensors = [torch.from_numpy(array).to(backend.device) for array in arrays]
    before = [tensor.clone() for tensor in tensors]
    for threads in (1, 3):
        torch.set_num_threads(threads)
        with monkeypatch.context() as patch, ops.use_backend(backend.name):
            poison_new_tensors(patch)
            corrupted, is_replaced = ops.corrupt_tokens(*tensors)
        assert (corrupted.dtype, is_replaced.dtype) == (torch.int64, torch.bool)
        assert np.array_equal(corrupted.cpu().numpy(), expected)
        assert np.array_equal(is_replaced.cpu().numpy(), expected != arrays[0])  # an equal sample counts as real
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


@pytest.mark.parametrize("backend", BACKENDS[:3])  # on CUDA values are not checked
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input_ids": torch.zeros(5, dtype=torch.int32)}, TypeError, "input_ids"),
        ({"input_ids": torch.zeros(5, 1, dtype=torch.int64)}, ValueError, "input_ids"),
        ({"positions": torch.tensor([0.0, 1.0])}, TypeError, "positions"),
        ({"positions": torch.tensor([0, 5])}, ValueError, r"positions must lie in \[0, T\).*T = 5; got 5"),
        ({"positions": torch.tensor([-1, 2])}, ValueError, "positions must lie in .* got -1"),
        ({"sampled_ids": torch.tensor([1, 2], dtype=torch.int32)}, TypeError, "sampled_ids"),
        ({"sampled_ids": torch.tensor([1])}, ValueError, "sampled_ids"),
        ({"sampled_ids": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "sampled_ids lies on"),
        ({"weights": torch.ones(3)}, ValueError, "weights"),
        ({"weights": torch.ones(2, dtype=torch.bool)}, TypeError, "weights"),
    ],
)
def test_corrupt_tokens_refuses_bad_input(backend, change, error, message):
    call = {
        "input_ids": torch.arange(5),
        "positions": torch.tensor([0, 4]),
        "sampled_ids": torch.tensor([1, 2]),
        "weights": torch.ones(2),
    } | change
    with ops.use_backend(backend.name), pytest.raises(error, match=message):
        ops.corrupt_tokens(**call)


@pytest.mark.parametrize("backend", BACKENDS[2:])
def test_positions_out_of_range_write_nothing_where_they_are_not_checked(backend):
    from electra_fast.kernels.masking_sampling import corrupt_tokens_triton

    arguments = [torch.arange(5), torch.tensor([-1, 5, 2**62, 3]), torch.full((4,), 9), torch.ones(4)]
    arguments = [tensor.to(backend.device) for tensor in arguments]
    call = masking_sampling.corrupt_tokens_reference if backend.name == "reference" else corrupt_tokens_triton
    corrupted, is_replaced = call(*arguments)
    assert corrupted.tolist() == [0, 1, 2, 9, 4]
    assert is_replaced.tolist() == [False, False, False, True, False]
