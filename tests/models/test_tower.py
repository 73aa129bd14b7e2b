"""A tower on flat tokens against transformers' own, and its dropout against the batch it happens to be in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations

from electra_fast import ElectraConfig, optimize
from electra_fast.models import initialize_weights
from electra_fast.models.layers import FlatBatch, is_observed, is_plain
from electra_fast.models.tower import encode
from electra_fast.ops.random import row_ids_for
from electra_fast.packing import packing_of_full, packing_of_lengths, packing_of_mask, packing_without_padding
from tests.models.stock import our_attention


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
    # A key's bias has no gradient but the rounding of terms as large as those of others.
    largest = max(float(gradient.norm()) for gradient in expected_grads if gradient is not None)
    for (name, _), ours, theirs in zip(tower.named_parameters(), grads, expected_grads, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm()) + 1e-6 * largest, name


@our_attention()
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


# --- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_packing_without_padding_keeps_the_real_tokens_in_order(dtype, rng_seed):
    """Padding anywhere: the tokens that NumPy's boolean index gives, each back at its place, and no tail."""
    mask = torch.rand(7, 19) < 0.5
    mask[:, 3] = True
    packing = packing_without_padding(mask.to(dtype) * 3)
    padded = torch.randn(7, 19, 5)
    flat = packing.unpad(padded)
    assert np.array_equal(flat.numpy(), padded.numpy()[mask.numpy()])
    assert packing.is_real.all()
    assert packing.cu_seqlens.dtype == torch.int32
    assert packing.cu_seqlens.tolist() == np.cumsum([0, *mask.numpy().sum(axis=1)]).tolist()
    assert torch.equal(packing.pad(flat), torch.where(mask[:, :, None], padded, 0.0))
    assert torch.equal(packing.pad(flat, fill=7)[~mask], torch.full((int((~mask).sum()), 5), 7.0))
    full = packing_without_padding(torch.ones(4, 6))
    assert full.padding_mask is None
    assert full.pad(full.unpad(padded[:4, :6])).equal(padded[:4, :6])


def test_packing_without_padding_refuses():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert packing_without_padding(mask, refuse=True) is None
    assert packing_without_padding(mask, refuse=torch.tensor(True)) is None
    assert packing_without_padding(mask, refuse=torch.tensor(False)) is not None
    assert packing_without_padding(mask * torch.tensor([[1], [0]])) is None


@our_attention()
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("named", [False, True])
def test_some_rows_are_those_of_all_rows(dropout, named, rng_seed):
    """The same values within rounding (a matrix product of fewer rows may sum otherwise), the same dropout."""
    tower = optimize(tower_of(dropout=dropout))
    lengths = (17, 3, 9, 24)
    packing = packing_of_lengths(torch.tensor(np.cumsum((0, *lengths)), dtype=torch.int32), sum(lengths), max(lengths))
    row_ids = torch.randperm(sum(lengths)) + 2**33 if named else None
    batch = FlatBatch(packing, torch.tensor(rng_seed), row_ids)
    ids = torch.randint(1, 200, (sum(lengths),))
    rows = torch.tensor([0, 17, 20, 29, 52, 5, 5])
    upstream = torch.randn(len(rows), 32)

    results = []
    for wanted in (None, rows):
        hidden_states = encode(tower, batch, input_ids=ids, rows=wanted)
        if wanted is None:
            hidden_states = hidden_states[rows]
        results.append((hidden_states, torch.autograd.grad(hidden_states, list(tower.parameters()), upstream)))
    (expected, expected_grads), (found, grads) = results
    assert found.shape == (len(rows), 32)
    # A bit of dropout that differs would show: it changes a hidden state by a tenth of its size at least.
    assert float((found - expected).detach().abs().max()) <= 2e-5
    largest = max(float(gradient.abs().max()) for gradient in expected_grads)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max()) + 1e-6 * largest


class LinearOfAnother(nn.Linear):
    pass


def altered(change: str) -> nn.Module:
    module = nn.Linear(3, 3)
    if change == "subclass":
        return LinearOfAnother(3, 3)
    if change == "parametrised":
        return parametrizations.weight_norm(module)
    if change == "forward hook":
        module.register_forward_hook(lambda module, args, result: None)
    elif change == "forward pre-hook":
        module.register_forward_pre_hook(lambda module, args: None)
    elif change == "backward hook":
        module.register_full_backward_hook(lambda module, grad_input, grad_output: None)
    elif change == "backward pre-hook":
        module.register_full_backward_pre_hook(lambda module, grad_output: None)
    elif change == "own forward":
        module.forward = lambda x: x
    return module


CHANGES = ("subclass", "parametrised", "forward hook", "forward pre-hook", "backward hook", "backward pre-hook")


def test_what_is_plain():
    assert is_plain(nn.Linear(3, 3), nn.Linear)
    assert not is_plain(nn.Linear(3, 3, bias=False), nn.Linear)  # its callers read a bias
    assert not is_plain(nn.Linear(3, 3), nn.LayerNorm)
    for change in (*CHANGES, "own forward"):
        assert not is_plain(altered(change), nn.Linear), change
    assert is_plain(nn.Dropout(0.3), nn.Dropout)
    assert not is_plain(nn.Dropout(1.0), nn.Dropout)
    assert not is_plain(nn.AlphaDropout(0.3), nn.Dropout)


def test_what_is_observed():
    for change in CHANGES:
        module = nn.Sequential(nn.Linear(3, 3), nn.Sequential(altered(change)))
        assert is_observed(module) == ("hook" in change), change
    # transformers' own hooks record outputs; they stay and don't count.
    module = nn.Sequential(nn.Linear(3, 3))

    def hook(module: nn.Module, args: object, result: object) -> None:
        return None

    handle = module[0].register_forward_hook(hook)
    hook.__module__ = "transformers.utils.output_capturing"
    assert not is_observed(module)
    hook.__module__ = "transformers_of_mine"
    assert is_observed(module)
    handle.remove()
    assert not is_observed(module)


# What is altered somewhere in the tower must take part: the result is that of the stock tower, altered in the same way.
@pytest.mark.parametrize("change", [*CHANGES, "own forward", "another scale", "dropout of all"])
@pytest.mark.parametrize("place", ["query", "attention.output.dense", "output.dense", "LayerNorm"])
def test_altered_modules_take_part(change, place, rng_seed):
    stock = tower_of()
    torch.manual_seed(rng_seed)
    alter(stock, place, change)
    fast = tower_of()
    torch.manual_seed(rng_seed)
    alter(fast, place, change)
    fast.load_state_dict(stock.state_dict())
    optimize(fast)
    ids, mask = ragged(rng_seed, (17, 1, 50, 8))
    expected = stock(ids, attention_mask=mask).last_hidden_state[mask]
    assert float((fast(ids, attention_mask=mask).last_hidden_state[mask] - expected).detach().abs().max()) <= 2e-5


def alter(tower: transformers.ElectraModel, place: str, change: str) -> None:
    layer = tower.encoder.layer[1]
    name, child = {
        "query": ("query", layer.attention.self),
        "attention.output.dense": ("dense", layer.attention.output),
        "output.dense": ("dense", layer.output),
        "LayerNorm": ("LayerNorm", layer.attention.output),
    }[place]
    module = getattr(child, name)
    if change == "parametrised":
        parametrizations.weight_norm(module, dim=0)
    elif "hook" in change:
        if change.startswith("forward"):
            module.register_forward_hook(lambda module, args, result: 2 * result)
        else:
            module.register_full_backward_hook(lambda module, grad_input, grad_output: None)
    elif change == "own forward":
        forward = module.forward
        module.forward = lambda x: 2 * forward(x)
    elif change == "subclass":
        kind = type(module)
        module.__class__ = type("Doubled", (kind,), {"forward": lambda self, x: 2 * kind.forward(self, x)})
    elif change == "another scale":
        layer.attention.self.scaling = 0.1
    elif change == "dropout of all":
        layer.output.dropout.p = 1.0
        layer.output.dropout.train()
