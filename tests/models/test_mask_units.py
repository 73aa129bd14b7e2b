"""The joint model on what loaders give besides ids: units to mask whole, token types, padding of fixed shapes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from electra_fast.models import ElectraConfig, ElectraForJointPreTraining
from electra_fast.ops import mask_tokens
from electra_fast.ops.random import row_ids_for

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
CONFIG = ElectraConfig(vocab_size=60, embedding_size=8, max_position_embeddings=64, **SIZES)
SPECIAL = (2, 3, 4)  # [CLS], [SEP], [MASK]


@pytest.fixture
def model(rng_seed: int) -> ElectraForJointPreTraining:
    return ElectraForJointPreTraining(CONFIG, CONFIG, mask_token_id=4, never_mask_ids=SPECIAL, mask_prob=0.3)


def random_batch(seed: int) -> dict:
    g = np.random.default_rng(seed)
    lengths = g.integers(8, 40, 6)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = g.integers(5, 60, starts[-1])
    ids[starts[:-1]], ids[starts[1:] - 1] = 2, 3
    return {
        "input_ids": torch.from_numpy(ids),
        "cu_seqlens": torch.from_numpy(starts).int(),
        "sequence_ids": torch.from_numpy(g.integers(0, 10**6, 6)),
        "token_type_ids": torch.from_numpy((np.arange(starts[-1]) % 17 > 8).astype(np.int64)),
        "unit_starts": torch.from_numpy(g.random(starts[-1]) < 0.4),
        "seed": seed,
        "mask_seed": seed + 1,
        "max_seqlen": 40,
    }


@pytest.mark.parametrize("objective", ["joint", "generator", "discriminator"])
def test_units_are_masked_whole_and_the_loss_is_a_mean_of_what_was_masked(model, rng_seed: int, objective: str) -> None:
    batch = random_batch(rng_seed)
    out = model(**batch, objective=objective)
    expected = mask_tokens(
        batch["input_ids"],
        batch["cu_seqlens"],
        mask_token_id=4,
        never_mask_ids=SPECIAL,
        num_masked=len(out.masked.positions),
        mask_prob=0.3,
        max_per_sequence=int(0.305 * 64),
        seed=rng_seed + 1,
        row_ids=row_ids_for(batch["sequence_ids"], batch["cu_seqlens"], len(batch["input_ids"])),
        unit_starts=batch["unit_starts"],
    )
    for ours, theirs in zip(out.masked, expected, strict=True):
        assert torch.equal(ours, theirs)
    masked = set(expected.positions[expected.weights > 0].tolist())
    starts = batch["unit_starts"].clone()
    starts[batch["cu_seqlens"][:-1].long()] = True
    candidates = ~torch.isin(batch["input_ids"], torch.tensor(SPECIAL))
    for unit in np.split(np.arange(len(starts)), np.flatnonzero(starts.numpy())[1:]):
        inside = [i in masked for i in unit if candidates[i]]
        assert all(inside) or not any(inside)
    if out.generator_loss is not None:
        packing = model.packing(batch["input_ids"], None, batch["cu_seqlens"], 40)
        names = ("sequence_ids", "token_type_ids", "unit_starts", "seed", "mask_seed")
        corruption = model.corrupt(batch["input_ids"], packing, **{name: batch[name] for name in names})
        mean = corruption.nll[expected.weights > 0].double().mean()  # of fewer than the slots
        assert len(masked) < len(expected.positions)
        torch.testing.assert_close(out.generator_loss.double(), mean, rtol=1e-5, atol=0)


def test_padded_input_takes_units_too(model, rng_seed: int) -> None:
    """The same text padded has the masks and the loss of the packed one."""
    batch = random_batch(rng_seed)
    model.eval().max_per_sequence = 12
    packed = model(**batch)
    starts = batch["cu_seqlens"].tolist()
    padded = {
        name: torch.zeros(6, 45, dtype=batch[name].dtype) for name in ("input_ids", "token_type_ids", "unit_starts")
    }
    mask = torch.zeros(6, 45, dtype=torch.long)
    for row, (start, stop) in enumerate(itertools.pairwise(starts)):
        here = slice(0, stop - start)
        mask[row, here] = 1
        for name, values in padded.items():
            values[row, here] = batch[name][start:stop]
    seeds = {name: batch[name] for name in ("sequence_ids", "seed", "mask_seed")}
    out = model(**padded, attention_mask=mask, **seeds)
    used = packed.masked.weights > 0
    assert torch.equal(out.masked.positions[out.masked.weights > 0], packed.masked.positions[used])
    torch.testing.assert_close(out.generator_loss, packed.generator_loss, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"unit_starts has shape \(6, 44\), input_ids \(6, 45\)"):
        model(**(padded | {"unit_starts": padded["unit_starts"][:, 1:]}), attention_mask=mask, **seeds)


def test_padding_of_fixed_shapes_changes_nothing(model, rng_seed: int) -> None:
    batch = random_batch(rng_seed)
    g = np.random.default_rng(rng_seed)
    tail, empty = int(g.integers(1, 50)), int(g.integers(1, 9))
    count = len(batch["input_ids"])
    longer = batch | {
        "input_ids": torch.cat([batch["input_ids"], torch.zeros(tail, dtype=torch.long)]),
        "cu_seqlens": torch.cat([batch["cu_seqlens"], torch.full((empty,), count, dtype=torch.int32)]),
        "sequence_ids": torch.cat([batch["sequence_ids"], torch.zeros(empty, dtype=torch.long)]),
        "token_type_ids": torch.cat([batch["token_type_ids"], torch.zeros(tail, dtype=torch.long)]),
        "unit_starts": torch.cat([batch["unit_starts"], torch.ones(tail, dtype=torch.bool)]),
    }
    plain = model(**batch)
    plain.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    out = model(**longer)
    out.loss.backward()
    assert torch.equal(out.corrupted_ids[:count], plain.corrupted_ids)
    assert int(out.rtd.count) == count
    torch.testing.assert_close(out.loss, plain.loss, rtol=1e-6, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
