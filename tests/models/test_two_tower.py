"""Electric's generator: what each prediction can see, against plain transformers with written-out masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from electra_fast import ElectraConfig
from electra_fast.models import initialize_weights
from electra_fast.models.electra import ElectraModel
from electra_fast.models.layers import FlatBatch
from electra_fast.models.two_tower import TwoTowerGenerator
from electra_fast.packing import packing_of_lengths, packing_of_mask

LENGTHS = (9, 1, 14, 2)
CU_SEQLENS = torch.tensor([0, 9, 10, 24, 26], dtype=torch.int32)


@pytest.fixture
def generator(rng_seed) -> TwoTowerGenerator:
    config = ElectraConfig(
        vocab_size=50,
        embedding_size=12,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    model = TwoTowerGenerator(config)
    model.embeddings = ElectraModel(config).embeddings
    initialize_weights(model, std=0.3)  # so that every part of it shows
    return model.eval()


def predict(generator: nn.Module, ids: Tensor) -> Tensor:
    packing = packing_of_lengths(CU_SEQLENS, len(ids), max(LENGTHS))
    return generator(generator.embeddings, ids, FlatBatch(packing, None, None))


def sequence_of(token: int) -> range:
    index = int(torch.searchsorted(CU_SEQLENS.long(), token, right=True))
    return range(int(CU_SEQLENS[index - 1]), int(CU_SEQLENS[index]))


@torch.no_grad()
def test_no_prediction_sees_its_own_token_or_another_text(generator, rng_seed):
    """To the last bit; and every other token of the sequence it does see."""
    ids = torch.randint(5, 50, (26,))
    before = predict(generator, ids)
    for t in range(26):
        changed = ids.clone()
        changed[t] = 5 + (ids[t] - 4) % 45
        assert changed[t] != ids[t]
        is_same = (predict(generator, changed) == before).all(dim=1)
        mine = torch.zeros(26, dtype=torch.bool)
        mine[list(sequence_of(t))] = True
        mine[t] = False
        assert torch.equal(is_same, ~mine), t


@torch.no_grad()
def test_each_tower_sees_its_own_side_only(generator, rng_seed):
    """With the other tower's half of the head cut off."""
    width = generator.left_to_right.config.hidden_size
    ids = torch.randint(5, 50, (26,))
    weight = generator.predictions.dense.weight
    for half, is_visible in (
        (slice(width, None), lambda source, target: source < target),
        (slice(None, width), lambda source, target: source > target),
    ):
        kept = weight.clone()
        weight[:, half] = 0.0
        before = predict(generator, ids)
        for t in sequence_of(15):
            changed = ids.clone()
            changed[t] = 5 + (ids[t] - 4) % 45
            is_same = (predict(generator, changed) == before).all(dim=1)
            expected = [not (target in sequence_of(15) and is_visible(t, target)) for target in range(26)]
            assert is_same.tolist() == expected, t
        weight.copy_(kept)


@torch.no_grad()
def test_padding_and_packing_give_the_same(generator, rng_seed):
    ids = torch.randint(5, 50, (26,))
    packed = predict(generator, ids)
    for is_left in (False, True):
        mask = torch.arange(14) < torch.tensor(LENGTHS)[:, None]
        mask = mask.flip(1) if is_left else mask
        padded = torch.zeros(4, 14, dtype=torch.long)
        padded[mask] = ids
        packing = packing_of_mask(mask)
        # Positions are columns in a padded batch: on the left they are not those of packed text.
        got = generator(generator.embeddings, packing.unpad(padded), FlatBatch(packing, None, None))[:26]
        if is_left:
            assert torch.equal((got - packed).abs().amax(1)[10:24] < 1e-5, torch.ones(14, dtype=torch.bool))
        else:
            assert float((got - packed).abs().max()) <= 1e-5


def test_dropout_is_named_by_the_seed(generator, rng_seed):
    """But for attention's, which PyTorch's generator draws."""
    generator.train()
    ids = torch.randint(5, 50, (26,))
    packing = packing_of_lengths(CU_SEQLENS, 26, 14)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        flat = FlatBatch(packing, torch.tensor(seed), torch.arange(26))
        results.append(generator(generator.embeddings, ids, flat, stream=7))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
