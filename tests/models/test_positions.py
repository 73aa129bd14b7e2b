"""Longer position tables: NumPy's interpolation is the oracle, and stock transformers loads what was saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from electra_fast import ElectraConfig, ElectraForJointPreTraining, ElectraForMaskedLM, optimize
from electra_fast.models import resize_position_embeddings

OLD = 20


def config_of(kind: type = ElectraConfig, **more: object) -> transformers.PretrainedConfig:
    sizes = {"embedding_size": 24} if kind is ElectraConfig else {}
    return kind(
        vocab_size=150,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=OLD,
        **sizes,
        **more,
    )


def interpolated(table: torch.Tensor, length: int) -> np.ndarray:
    old = table.detach().double().numpy()
    places = np.arange(length) * (len(old) - 1) / (length - 1)
    return np.stack([np.interp(places, np.arange(len(old)), column) for column in old.T], axis=1)


# One more row, a multiple, a prime, and a table of many times the size.
@pytest.mark.parametrize("length", [OLD + 1, 2 * OLD, 53, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_table_is_interpolated(length: int, dtype: torch.dtype, rng_seed: int) -> None:
    model = ElectraForMaskedLM(config_of()).to(dtype)
    table = model.electra.embeddings.position_embeddings
    old = table.weight.detach().clone()
    assert resize_position_embeddings(model, length) is model
    new = table.weight.detach()
    assert (new.shape, new.dtype, table.num_embeddings) == ((length, 24), dtype, length)
    # A place is rounded to float32 (a 2^-24th of at most OLD rows), a row to its dtype.
    error = np.abs(new.double().numpy() - interpolated(old, length))
    assert error.max() <= float(old.abs().max()) * (2 * OLD * 2**-24 + torch.finfo(dtype).eps)
    assert torch.equal(new[0], old[0])
    assert float((new[-1] - old[-1]).abs().max()) <= 2 * torch.finfo(dtype).eps * float(old.abs().max())


@pytest.mark.parametrize(
    ("name", "kind"), [("ElectraForTokenClassification", ElectraConfig), ("BertModel", transformers.BertConfig)]
)
@pytest.mark.parametrize("length", [47, 7])
def test_stock_loads_what_was_saved(name: str, kind: type, length: int, tmp_path: Path, rng_seed: int) -> None:
    model = optimize(getattr(transformers, name)(config_of(kind))).eval()
    resize_position_embeddings(model, length).save_pretrained(tmp_path)
    stock = getattr(transformers, name).from_pretrained(tmp_path).eval()
    assert type(stock) is not type(model)
    assert stock.config.max_position_embeddings == length
    ids = torch.randint(0, 150, (3, length))
    mask = torch.arange(length) < torch.tensor([length, 5, 1])[:, None]
    expected, got = (each(ids, attention_mask=mask.long())[0][mask] for each in (stock, model))
    assert float((expected - got).detach().abs().max()) <= 2e-5
    assert model.state_dict().keys() == stock.state_dict().keys()  # the buffers are still not among them
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        model(torch.randint(0, 150, (1, length + 1)))


def test_shorter_table_changes_nothing_for_what_fits(rng_seed: int) -> None:
    model = ElectraForMaskedLM(config_of()).eval()
    ids = torch.randint(0, 150, (2, 9))
    before = model(ids).logits
    assert torch.equal(resize_position_embeddings(model, 9)(ids).logits, before)


@pytest.mark.parametrize("tie", ["shared", "untied", "all"])
def test_towers_stay_tied(tie: str, tmp_path: Path, rng_seed: int) -> None:
    model = ElectraForJointPreTraining(config_of(), config_of(), tie=tie, mask_token_id=4, never_mask_ids=(2, 3, 4))
    expected = interpolated(model.generator.electra.embeddings.position_embeddings.weight, 45)
    resize_position_embeddings(model, 45)
    tables = [tower.electra.embeddings.position_embeddings for tower in (model.generator, model.discriminator)]
    assert (tables[0].weight is tables[1].weight) == (tie != "untied")
    assert np.abs(tables[0].weight.detach().numpy() - expected).max() < 1e-6
    for tower in (model.generator, model.discriminator):
        assert tower.config.max_position_embeddings == tower.electra.config.max_position_embeddings == 45
        assert tower.electra.embeddings.position_ids.shape == (1, 45)

    ids = torch.randint(5, 150, (2, 45))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids, seed=rng_seed).loss.backward()
    optimizer.step()
    moved = np.abs(tables[1].weight.detach().numpy()[-1]).max()
    assert tables[1].weight.grad[-1].abs().max() > 0
    assert moved > 0

    model.eval().save_pretrained(tmp_path)
    again = ElectraForJointPreTraining.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(ids, seed=1).loss, model(ids, seed=1).loss)


def test_an_optimizer_from_before_does_not_train_the_new_table() -> None:
    """As the docstring warns; one made afterwards does."""
    model = ElectraForMaskedLM(config_of())
    before = {id(p) for p in torch.optim.SGD(model.parameters(), lr=0.1).param_groups[0]["params"]}
    resize_position_embeddings(model, 30)
    table = model.electra.embeddings.position_embeddings.weight
    assert id(table) not in before
    assert any(p is table for p in torch.optim.SGD(model.parameters(), lr=0.1).param_groups[0]["params"])


def test_a_frozen_table_stays_frozen() -> None:
    model = ElectraForMaskedLM(config_of()).requires_grad_(False)
    assert not resize_position_embeddings(model, 30).electra.embeddings.position_embeddings.weight.requires_grad


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="at least 1; got 0"):
        resize_position_embeddings(ElectraForMaskedLM(config_of()), 0)
    with pytest.raises(ValueError, match="Linear has no ELECTRA or BERT model"):
        resize_position_embeddings(torch.nn.Linear(2, 2), 600)


def test_a_repeated_table_leaves_short_texts_as_they_were(rng_seed):
    model = transformers.ElectraForPreTraining(config_of()).eval()
    ids = torch.randint(5, 150, (2, OLD))
    with torch.no_grad():
        before = model(ids).logits
        table = model.electra.embeddings.position_embeddings.weight.clone()
        resize_position_embeddings(model, 53, how="repeat")
        assert torch.equal(model(ids).logits, before)
    longer = model.electra.embeddings.position_embeddings.weight
    assert torch.equal(longer, table[torch.arange(53) % OLD])
    with pytest.raises(ValueError, match="how must be repeat or interpolate; got 'twice'"):
        resize_position_embeddings(model, 60, how="twice")
