"""A tower on flat tokens against transformers' own, and its dropout against the batch it happens to be in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from electra_fast import ElectraConfig, optimize
from electra_fast.models import initialize_weights
from electra_fast.models.layers import FlatBatch
from electra_fast.models.tower import encode
from electra_fast.ops.random import row_ids_for
from electra_fast.packing import packing_of_full, packing_of_lengths, packing_of_mask


def tower_of(*, embedding_size: int = 24, dropout: float = 0.0) -> transformers.ElectraModel:
    config = ElectraConfig(
        vocab_size=200,
        embedding_size=embedding_size,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=72,
        max_position_embeddings=50,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    tower = transformers.ElectraModel(config)
    initialize_weights(tower, std=0.2)
    return tower


def ragged(seed: int, lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    g = np.random.default_rng(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.from_numpy(g.integers(1, 200, mask.shape)) * mask
    return ids, mask


# One width below the hidden size (projected) and one equal to it (not projected); a row of one token; full rows.
@pytest.mark.parametrize("embedding_size", [24, 32])
@pytest.mark.parametrize("lengths", [(17, 1, 50, 8), (23, 23)])
def test_hidden_states_and_gradients_equal_stock(embedding_size, lengths, rng_seed):
    tower = tower_of(embedding_size=embedding_size)
    ids, mask = ragged(rng_seed, lengths)
    types = torch.randint(0, 2, ids.shape)
    upstream = torch.randn(int(mask.sum()), 32)

    expected = tower(ids, attention_mask=mask, token_type_ids=types).last_hidden_state[mask]
    expected_grads = torch.autograd.grad(expected, list(tower.parameters()), upstream, allow_unused=True)

    packing = packing_of_full(*ids.shape, ids.device) if mask.all() else packing_of_mask(mask)
    optimize(tower)
    batch = FlatBatch(packing, None, None)
    flat = encode(tower, batch, input_ids=packing.unpad(ids), token_type_ids=packing.unpad(types))[packing.is_real]
    grads = torch.autograd.grad(flat, list(tower.parameters()), upstream, allow_unused=True)

    assert float((flat - expected).detach().abs().max()) <= 2e-5
    for (name, _), ours, theirs in zip(tower.named_parameters(), grads, expected_grads, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm()) + 1e-5, name


def test_dropout_follows_the_text_through_padding_packing_and_order(rng_seed):
    tower = optimize(tower_of(dropout=0.3))
    lengths = (17, 3, 9, 24)
    ids, mask = ragged(rng_seed, lengths)
    names = torch.tensor([5, 900, 2**33, 7])
    seed = torch.tensor(rng_seed)

    padded = packing_of_mask(mask)
    rows = row_ids_for(names, padded.cu_seqlens, ids.numel())
    expected = encode(tower, FlatBatch(padded, seed, rows), input_ids=padded.unpad(ids))[padded.is_real]

    cu_seqlens = torch.tensor(np.cumsum((0, *lengths)), dtype=torch.int32)
    packed = packing_of_lengths(cu_seqlens, sum(lengths), max(lengths))
    rows = row_ids_for(names, cu_seqlens, sum(lengths))
    assert (
        float((encode(tower, FlatBatch(packed, seed, rows), input_ids=ids[mask]) - expected).detach().abs().max())
        <= 2e-5
    )

    alone = packing_of_full(1, 9, ids.device)
    rows = row_ids_for(names[2:3], alone.cu_seqlens, 9)
    third = encode(tower, FlatBatch(alone, seed, rows), input_ids=ids[2, :9])
    assert float((third - expected[20:29]).detach().abs().max()) <= 2e-5

    others = encode(tower, FlatBatch(alone, seed + 1, rows), input_ids=ids[2, :9])
    assert float((others - third).detach().abs().max()) > 0.1
    dropped = encode(tower, FlatBatch(alone, seed, rows), input_ids=ids[2, :9], stream=10)
    assert float((dropped - third).detach().abs().max()) > 0.1
    tower.eval()
    quiet = encode(tower, FlatBatch(alone, None, None), input_ids=ids[2, :9])
    assert torch.equal(quiet, encode(tower, FlatBatch(alone, seed, None), input_ids=ids[2, :9], stream=3))
