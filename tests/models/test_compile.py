"""torch.compile of every head: one graph, the results of eager mode, few recompilations."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.models.stock import (
    HEADS,
    PACKED_HEADS,
    VOCABULARY,
    choices,
    fast_copy,
    labels_for,
    our_attention,
    stock_model,
)

RESULT, GRADIENT, ROUNDING = 2e-5, 1e-4, 1e-6  # see test_equality.py


def some(names: tuple[str, ...], *quick: str) -> list[Any]:
    """The names as parameters; those without one of the parts `quick` only where all tests are asked for."""
    everything = os.environ.get("ELECTRA_FAST_TEST_ALL") == "1"
    skip = pytest.mark.skip(reason="compiles for seconds: set ELECTRA_FAST_TEST_ALL=1")
    return [
        name if everything or any(part in name for part in quick) else pytest.param(name, marks=skip) for name in names
    ]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def compiled(model: nn.Module, **options: Any) -> tuple[nn.Module, CompileCounterWithBackend]:
    """The model as one graph (or an error), and what counts its graphs."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(model, fullgraph=True, backend=counter, **options), counter


def packed_batch(name: str, lengths: tuple[int, ...]) -> dict[str, Any]:
    cu_seqlens = torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)
    num_tokens = sum(lengths)
    batch = {
        "input_ids": torch.randint(0, VOCABULARY, (1, num_tokens)),
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": 32,
        "max_length_k": 32,
    }
    by_tokens = labels_for(name, torch.ones(1, num_tokens, dtype=torch.bool))
    by_sequences = labels_for(name, torch.ones(len(lengths), num_tokens, dtype=torch.bool))
    for key, value in by_tokens.items():
        batch[key] = value if value.dim() == 2 else by_sequences[key]
    return batch


def padded_batch(name: str, mask: Tensor) -> dict[str, Any]:
    batch = {"input_ids": torch.randint(0, VOCABULARY, mask.shape), "token_type_ids": torch.randint(0, 2, mask.shape)}
    return choices(name, batch | labels_for(name, mask))


def models_of(name: str, **config: Any) -> tuple[nn.Module, nn.Module]:
    """Stock and fast, of one layer."""
    # The first call would set the type of the problem, and the second need another graph.
    stock = stock_model(name, num_hidden_layers=1, problem_type="single_label_classification", **config)
    stock.loss_type = "ForCausalLM"  # what BertLMHeadModel takes anyway, with a warning that breaks the graph
    return stock, fast_copy(stock)


def run(model: nn.Module, batch: dict[str, Any]) -> tuple[dict[str, Tensor], list[Tensor]]:
    output = {key: value for key, value in model(**batch).items() if isinstance(value, Tensor)}
    objective = output["loss"] if "loss" in output else sum((value**2).sum() for value in output.values())
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(objective, parameters, allow_unused=True)
    output = {key: value.detach() for key, value in output.items()}
    return output, [torch.zeros_like(x) if g is None else g for x, g in zip(parameters, gradients, strict=True)]


def assert_same(call: nn.Module, expected: nn.Module, batch: dict[str, Any], mask: Tensor | None = None) -> None:
    """Results of the compiled model, those of tokens where `mask` is set, and gradients."""
    output, gradients = run(call, batch)
    expected_output, expected_gradients = run(expected, batch)
    assert output.keys() == expected_output.keys()
    for key, value in output.items():
        error = (value - expected_output[key]).abs()
        if mask is not None and value.shape[:2] == mask.shape:
            error = error[mask]
        assert float(error.max()) <= RESULT, key
    largest = max(1.0, *(float(gradient.abs().max()) for gradient in expected_gradients))
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert float((a - b).abs().max()) <= GRADIENT * float(b.abs().max()) + ROUNDING * largest


@pytest.mark.parametrize("name", some(PACKED_HEADS, "ElectraForMaskedLM", "ElectraForQuestion", "BertForSeq"))
def test_packed_with_any_number_of_tokens(name, rng_seed):
    """Forward and backward, one graph for every number of tokens that is marked as dynamic."""
    _, fast = models_of(name)
    call, counter = compiled(fast)
    for lengths in ((9, 20, 4), (5, 5, 31), (2, 1, 1)):
        batch = packed_batch(name, lengths)
        for value in batch.values():
            if isinstance(value, Tensor) and value.dim() == 2:
                torch._dynamo.mark_dynamic(value, 1)
        assert_same(call, fast, batch)
    assert counter.frame_count == 1


def test_five_numbers_of_tokens_need_two_graphs(rng_seed):
    """Without a mark: one for the first number, one for all others."""
    name = "ElectraForTokenClassification"
    _, fast = models_of(name)
    call, counter = compiled(fast)
    for lengths in ((9, 20, 4), (5, 5, 31), (17, 3, 1), (32, 32, 32), (2, 1, 1)):
        assert_same(call, fast, packed_batch(name, lengths))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", some(HEADS, "ElectraForMultipleChoice", "LMHead", "ElectraForToken"))
def test_padded_without_a_mask(name, rng_seed):
    stock, fast = models_of(name)
    call, counter = compiled(fast)
    assert_same(call, stock, padded_batch(name, torch.ones(4, 13, dtype=torch.bool)))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", some(HEADS, "ElectraForSequence", "ElectraForPreTraining"))
def test_padded_with_a_mask(name, rng_seed):
    """One graph, of transformers' own computation on padded tokens."""
    stock, fast = models_of(name)
    call, counter = compiled(fast)
    mask = torch.arange(13) < torch.tensor((13, 1, 4, 11))[:, None]
    assert_same(call, stock, padded_batch(name, mask) | {"attention_mask": mask.long()}, mask)
    assert counter.frame_count == 1


def test_the_graph_has_our_operators(rng_seed):
    """Of packed input and of padded input without a mask; or else transformers' own were compared with themselves."""
    _, fast = models_of("ElectraForSequenceClassification")
    found: list[str] = []

    def look(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    ids = torch.randint(0, VOCABULARY, (2, 9))
    for batch in ({"input_ids": ids}, packed_batch("ElectraForSequenceClassification", (9, 20, 4))):
        found.clear()
        torch._dynamo.reset()
        torch.compile(fast, fullgraph=True, backend=look)(**batch)
        assert sum("electra_fast.embedding_layer_norm" in name for name in found) == 1
        assert sum("electra_fast.dropout_add_layer_norm" in name for name in found) == 2


def test_inductor(rng_seed):
    _, fast = models_of("ElectraForSequenceClassification")
    call = torch.compile(fast, fullgraph=True)
    assert_same(call, fast, packed_batch("ElectraForSequenceClassification", (9, 20, 4)))


@our_attention()
@pytest.mark.parametrize("name", some(("ElectraForPreTraining", "ElectraForSequenceClassification"), "PreTraining"))
def test_dropout_draws_the_same_bits_as_eager_mode(name, rng_seed):
    """For the same torch.manual_seed, call after call, and for each number of tokens."""
    stock, _ = models_of(name, dropout=0.3)
    fast = fast_copy(stock).train()
    call, _ = compiled(fast)
    batches = [packed_batch(name, lengths) for lengths in ((9, 20, 4), (9, 20, 4), (5, 5, 31))]

    def logits(model: nn.Module) -> list[Tensor]:
        torch.manual_seed(rng_seed)
        return [model(**batch).logits.detach() for batch in batches]

    expected, found = logits(fast), logits(call)
    for first, second in zip(expected, found, strict=True):
        assert float((first - second).abs().max()) <= RESULT
    again = logits(call)
    assert all(torch.equal(first, second) for first, second in zip(found, again, strict=True))
    torch.manual_seed(rng_seed + 1)
    assert float((fast(**batches[0]).logits - expected[0]).detach().abs().max()) > 0.01
