"""pad and unpad against boolean indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from electra_fast.packing import packing_of_full, packing_of_lengths, packing_of_mask


@pytest.mark.parametrize("tail", [0, 5])
def test_flat_and_back(tail, rng_seed):
    g = np.random.default_rng(rng_seed)
    lengths = [*g.integers(0, 9, 6), 9]
    cu_seqlens = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
    total = int(cu_seqlens[-1])
    packing = packing_of_lengths(cu_seqlens, total + tail, 9)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    padded = torch.from_numpy(g.normal(size=(7, 9, 3)))
    assert torch.equal(packing.padding_mask, mask)
    flat = packing.unpad(padded)
    assert torch.equal(flat[:total], padded[mask])
    assert not flat[total:].any()
    assert torch.equal(packing.is_real, torch.arange(total + tail) < total)
    assert torch.equal(packing.pad(flat), padded * mask[..., None])
    assert (packing.pad(flat, fill=8)[~mask] == 8).all()


def test_any_mask(rng_seed):
    g = np.random.default_rng(rng_seed)
    mask = torch.from_numpy(g.random((5, 11)) < 0.6)
    mask[2] = False
    padded = torch.from_numpy(g.integers(1, 99, (5, 11)))
    packing = packing_of_mask(mask.long())
    flat = packing.unpad(padded)
    assert torch.equal(flat[: int(mask.sum())], padded[mask])
    assert torch.equal(packing.pad(flat), padded * mask)
    assert torch.equal(packing.cu_seqlens, torch.tensor([0, *mask.sum(1).cumsum(0)], dtype=torch.int32))


def test_without_padding_nothing_moves():
    packing = packing_of_full(3, 4, torch.device("cpu"))
    padded = torch.arange(12).view(3, 4)
    assert packing.unpad(padded).data_ptr() == padded.data_ptr()
    assert packing.pad(packing.unpad(padded)).data_ptr() == padded.data_ptr()
    assert packing.cu_seqlens.tolist() == [0, 4, 8, 12]
