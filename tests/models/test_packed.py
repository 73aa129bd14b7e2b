"""Packed sequences: each as if it were alone, and none with a bit from another."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.stock import PACKED_HEADS, VOCABULARY, double_copy, fast_copy, labels_for, stock_model

RESULT, GRADIENT, ROUNDING = 2e-5, 1e-4, 1e-6  # see test_equality.py

LENGTHS = (9, 1, 23, 4, 16)
ENDS = torch.tensor((0, *LENGTHS)).cumsum(0)


def packed_batch(lengths: tuple[int, ...] = LENGTHS, *, tail: int = 0) -> dict[str, Any]:
    """Random tokens [1, T] and what says where each sequence ends; `tail` tokens belong to none."""
    cu_seqlens = torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)
    shape = (1, sum(lengths) + tail)
    return {
        "input_ids": torch.randint(0, VOCABULARY, shape),
        "token_type_ids": torch.randint(0, 2, shape),
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def documents(name: str) -> list[dict[str, Tensor]]:
    """Each with labels of its own, [1, S]; positions of answers all lie inside."""
    found = []
    for length in LENGTHS:
        document = {"input_ids": torch.randint(0, VOCABULARY, (1, length))}
        document["token_type_ids"] = torch.randint(0, 2, (1, length))
        document |= labels_for(name, torch.ones(1, length, dtype=torch.bool))
        for key in ("start_positions", "end_positions"):
            if key in document:
                document[key] = torch.randint(0, length, (1,))
        found.append(document)
    return found


def packed(name: str, found: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The documents as one packed batch: labels of tokens [1, T], of sequences [B]."""
    batch = packed_batch()
    for key in found[0]:
        values = [document[key] for document in found]
        batch[key] = torch.cat(values, dim=1 if values[0].dim() == 2 else 0)
    if "LM" in name and "Masked" not in name:
        # transformers shifts labels over the whole row, so its collators leave out the first of each sequence.
        batch["labels"][0, ENDS[:-1]] = -100
    return batch


def loss_of_documents(name: str, losses: list[Tensor], found: list[dict[str, Tensor]]) -> Tensor:
    """The mean over all tokens or sequences, of the means that transformers takes of one document each."""
    counts = []
    for document in found:
        labels = document.get("labels")
        if labels is None or labels.dim() == 1:
            counts.append(1)
        elif name.endswith(("CausalLM", "LMHeadModel")):
            counts.append(int((labels[:, 1:] != -100).sum()))
        else:
            counts.append(int((labels != -100).sum()))
    terms = [count * loss for count, loss in zip(counts, losses, strict=True) if count]
    return sum(terms) / sum(counts)


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("name", PACKED_HEADS)
def test_packed_equals_one_by_one(name, decoder, rng_seed):
    """Results and, through the loss of the packed batch, gradients; the oracle is stock in float64, one at a time."""
    if decoder and "CausalLM" not in name and "LMHead" not in name and not name.endswith("Model"):
        pytest.skip("not a decoder")
    stock = stock_model(name, is_decoder=decoder)
    truth, fast = double_copy(stock), fast_copy(stock)
    found = documents(name)
    outputs = [truth(**document) for document in found]
    result = fast(**packed(name, found))
    for key, value in result.items():
        if not isinstance(value, Tensor) or key == "loss":
            continue
        alone = [output[key] for output in outputs]
        expected = torch.cat(alone, dim=1 if value.shape[:2] == (1, sum(LENGTHS)) else 0)
        assert value.shape == expected.shape, key
        assert float((value - expected).detach().abs().max()) <= RESULT, key

    if name == "BertForPreTraining":
        return  # its loss is a sum of two means; both are tested by the heads that have one of them
    if "loss" in result:
        loss = loss_of_documents(name, [output.loss for output in outputs], found)
        assert float((result.loss - loss).detach().abs()) <= RESULT
        objectives = result.loss, loss
    else:
        upstream = torch.randn_like(result.last_hidden_state)
        objectives = (
            (result.last_hidden_state * upstream).sum(),
            (torch.cat([output.last_hidden_state for output in outputs], dim=1) * upstream).sum(),
        )
    assert_same_gradients(objectives[0], fast, objectives[1], truth)


def assert_same_gradients(ours: Tensor, fast: nn.Module, theirs: Tensor, truth: nn.Module) -> None:
    gradients = torch.autograd.grad(ours, list(fast.parameters()), allow_unused=True)
    expected = torch.autograd.grad(theirs, list(truth.parameters()), allow_unused=True)
    largest = max(1.0, *(float(gradient.abs().max()) for gradient in expected if gradient is not None))
    for (name, _), gradient, wanted in zip(truth.named_parameters(), gradients, expected, strict=True):
        if gradient is None or wanted is None:
            assert not [g for g in (gradient, wanted) if g is not None and g.any()], name
            continue
        allowed = GRADIENT * float(wanted.abs().max()) + ROUNDING * largest
        assert float((gradient - wanted).abs().max()) <= allowed, name


# How the model runs: on flat tokens, or padded by transformers with a mask that keeps sequences apart.
PATHS = {
    "flat": {},
    "hidden states": {"output_hidden_states": True},
    "eager": {"attn_implementation": "eager"},
    "attentions": {"attn_implementation": "eager", "output_attentions": True},
    "flex": {"attn_implementation": "flex_attention"},
}


# Every head on flat tokens; on the others those that differ: all tokens, the first ones, a decoder, a pooler.
CASES = [(name, "flat") for name in PACKED_HEADS]
CASES += [
    (name, path)
    for name in ("ElectraModel", "ElectraForSequenceClassification", "ElectraForCausalLM", "BertModel")
    for path in PATHS
    if path != "flat"
]


@pytest.mark.parametrize("tail", [0, 3])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "path"), CASES)
def test_no_bit_comes_from_another_document(name, path, training, tail, rng_seed):
    """Other tokens of the same number in one sequence, with the same dropout: the others' results stay the same."""
    if path == "flex" and os.environ.get("ELECTRA_FAST_TEST_ALL") != "1":
        pytest.skip("compiles for a minute: set ELECTRA_FAST_TEST_ALL=1")
    arguments = dict(PATHS[path])
    implementation = arguments.pop("attn_implementation", None)
    decoder = name in ("ElectraForCausalLM", "BertLMHeadModel")
    fast = fast_copy(stock_model(name, dropout=0.2, is_decoder=decoder)).train(training)
    if implementation is not None:
        fast.set_attn_implementation(implementation)
    if path == "flex" and training:
        pytest.skip("transformers' flex attention has no dropout")
    batch = packed_batch(tail=tail)
    changed = int(torch.randint(len(LENGTHS), ()))
    start, end = int(ENDS[changed]), int(ENDS[changed + 1])
    other = dict(batch, input_ids=batch["input_ids"].clone())
    other["input_ids"][:, start:end] = torch.randint(0, VOCABULARY, (1, end - start))
    other["input_ids"][:, start] = (batch["input_ids"][:, start] + 1) % VOCABULARY

    with torch.no_grad():
        torch.manual_seed(rng_seed)
        before = fast(**batch, **arguments)
        torch.manual_seed(rng_seed)
        after = fast(**other, **arguments)
    compared = 0
    for key, first in before.items():
        if not isinstance(first, Tensor):
            continue
        second = after[key]
        if first.shape[:2] == batch["input_ids"].shape:
            # One number, as the logit of a text of one token, may be the same by chance.
            assert first[:, start:end].numel() == 1 or not torch.equal(first[:, start:end], second[:, start:end])
            for a, b in itertools.pairwise(ENDS):
                assert a == start or torch.equal(first[:, a:b], second[:, a:b]), key
        else:
            assert first.shape[0] == len(LENGTHS)
            others = torch.arange(len(LENGTHS)) != changed
            assert torch.equal(first[others], second[others]), key
        compared += 1
    assert compared
    if "hidden_states" in before:
        for first, second in zip(before.hidden_states, after.hidden_states, strict=True):
            assert torch.equal(first[:, :start], second[:, :start])
            assert torch.equal(first[:, end:], second[:, end:])


def test_other_ways_to_say_the_same(rng_seed):
    """No maximum, int64 bounds, a sequence of nothing, given positions, embeddings: the same values."""
    fast = fast_copy(stock_model("ElectraModel"))
    batch = packed_batch()
    expected = fast(**batch).last_hidden_state
    bounds = batch["cu_seq_lens_q"]
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).unsqueeze(0)
    embeddings = fast.embeddings.word_embeddings(batch["input_ids"])
    without = {key: value for key, value in batch.items() if key not in ("max_length_q", "max_length_k")}
    others = {
        "no maximum": without,
        "int64": batch | {"cu_seq_lens_q": bounds.long(), "cu_seq_lens_k": bounds.long()},
        "queries only": {key: value for key, value in batch.items() if not key.endswith("_k")},
        "an empty sequence": batch | {"cu_seq_lens_q": torch.cat([bounds[:2], bounds[1:]]), "cu_seq_lens_k": None},
        "positions": batch | {"position_ids": positions},
        "embeddings": batch | {"input_ids": None, "inputs_embeds": embeddings},
        "a longer maximum": batch | {"max_length_q": 100},
    }
    for name, other in others.items():
        for more in ({}, {"output_hidden_states": True}):
            difference = (fast(**other, **more).last_hidden_state - expected).abs().max()
            assert float(difference.detach()) <= RESULT, (name, more)


def test_what_packed_input_can_not_be(rng_seed):
    fast = fast_copy(stock_model("ElectraModel"))
    batch = packed_batch()
    for change, message in (
        ({"input_ids": batch["input_ids"].expand(2, -1)}, r"packed \[1, T\]"),
        ({"attention_mask": torch.ones_like(batch["input_ids"])}, "not both"),
        ({"cu_seq_lens_k": batch["cu_seq_lens_k"][:-1]}, "cu_seq_lens_k"),
        ({"max_length_q": 513}, "position table"),
    ):
        with pytest.raises(ValueError, match=message):
            fast(**batch | change)
    with pytest.raises(ValueError, match="takes no packed input"):
        fast_copy(stock_model("ElectraForMultipleChoice"))(**batch)
