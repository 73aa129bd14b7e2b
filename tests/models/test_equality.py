"""The fast models against transformers' own on the same weights: every head, padding anywhere, results and gradients.

The oracle is the stock model in float64, and at padding the stock model in float32 or zero. Dropout is off.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from electra_fast.models import tower
from tests.models.stock import (
    CHOICES,
    HEADS,
    POSITIONS,
    VOCABULARY,
    choices,
    double_copy,
    fast_copy,
    labels_for,
    labels_tokens,
    stock_model,
    width_of_embeddings,
)

# Logits are of about 1. The stock model in float32 is itself off by a few 1e-6.
RESULT = 2e-5
# A gradient may be off by 1e-4 of the largest entry of its parameter. That of a key's bias is zero in theory, for a
# softmax doesn't change when all its scores grow alike; what is left of it is the rounding of terms as large as the
# gradients of other parameters. Hence, beside it, 1e-6 of the largest entry of the whole model: 16 roundings of 2^-24.
# And of 1 at least: a softmax's gradient is p - 1, rounded as 1 is, also where p is nearly 1 and all gradients small.
GRADIENT, ROUNDING = 1e-4, 1e-6

PADDINGS = (
    "right",
    "left",
    "middle",
    "anywhere",
    "an empty row",
    "none",
    "none, no mask",
    "one row",
    "one row, padded",
)
MASK_TYPES = (torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32)


class Difference(NamedTuple):
    result: float  # the largest absolute one
    gradient: float  # the largest, as a part of what is allowed


def mask_of(name: str, padding: str) -> Tensor:
    """bool [B, S] of random lengths, S from 4 to 40."""
    length = int(torch.randint(4, 41, ()))
    columns = torch.arange(length)
    mask = columns < torch.randint(1, length, (4, 1))
    mask[0] = True
    if padding == "left":
        return mask.flip(1)
    if padding == "middle":
        mask[1, length - 2] = False  # or all rows might be one token short, and have no padding but for its name
        return mask | (columns == length - 1)
    if padding == "anywhere":
        mask = torch.rand(4, length) < 0.6
        mask[torch.arange(4), torch.randint(0, length, (4,))] = True
    elif padding == "an empty row":
        mask[2] = False
    elif padding.startswith("none"):
        mask[:] = True
    elif padding.startswith("one row"):
        rows = CHOICES if "MultipleChoice" in name else 1
        return mask[int(padding != "one row")].expand(rows, -1).clone()
    return mask


def random_ids(mask: Tensor) -> Tensor:
    """int64 [B, S], in no column the same twice.

    Two choices that are the same text have gradients that cancel to nothing, and rounding is all that is left of them.
    """
    return torch.rand(VOCABULARY, mask.shape[1]).argsort(0)[: len(mask)]


def batch_of(name: str, mask: Tensor, *, give_mask: bool = True) -> dict[str, Tensor]:
    """Random arguments [B, S] beside the labels: each that is optional is there half of the time."""
    batch_size, length = mask.shape
    batch: dict[str, Tensor] = {}
    if torch.rand(()) < 0.25:
        batch["inputs_embeds"] = torch.randn(batch_size, length, width_of_embeddings(name))
    else:
        batch["input_ids"] = random_ids(mask)
    if give_mask:
        batch["attention_mask"] = mask.to(MASK_TYPES[int(torch.randint(len(MASK_TYPES), ()))])
    if torch.rand(()) < 0.5:
        batch["token_type_ids"] = torch.randint(0, 2, mask.shape)
    if torch.rand(()) < 0.5:
        rows = batch_size if torch.rand(()) < 0.5 or "MultipleChoice" in name else 1
        batch["position_ids"] = torch.randint(0, POSITIONS, (rows, length))
    return batch


def run(model: nn.Module, batch: dict[str, Any], upstream: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The results, and the gradients of the parameters and of `inputs_embeds`: of the loss, or else by `upstream`."""
    dtype = next(model.parameters()).dtype
    leaves = list(model.parameters())
    batch = dict(batch)
    if "inputs_embeds" in batch:
        batch["inputs_embeds"] = batch["inputs_embeds"].to(dtype).requires_grad_()
        leaves.append(batch["inputs_embeds"])
    if "labels" in batch and batch["labels"].is_floating_point():
        batch["labels"] = batch["labels"].to(dtype)
    output = {key: value for key, value in model(**batch).items() if isinstance(value, Tensor)}
    if "loss" in output:
        objective = output["loss"]
    else:
        objective = sum((value * upstream[key].to(dtype)).sum() for key, value in output.items())
    gradients = torch.autograd.grad(objective, leaves, allow_unused=True)
    output = {key: value.detach() for key, value in output.items()}
    return output, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]


def compare(name: str, stock: nn.Module, fast: nn.Module, batch: dict[str, Any], mask: Tensor) -> Difference:
    """Raises AssertionError where the two differ."""
    batch = choices(name, batch)
    truth, single = double_copy(stock), stock(**batch)
    # Only what is made at real tokens has a meaning, and so gets a gradient.
    upstream = {}
    for key, value in single.items():
        if isinstance(value, Tensor):
            upstream[key] = torch.randn_like(value)
            if value.shape[:2] == mask.shape:
                upstream[key][~mask] = 0
    expected, expected_gradients = run(truth, batch, upstream)
    result, gradients = run(fast, batch, upstream)
    assert result.keys() == expected.keys() == upstream.keys()
    worst = 0.0
    for key, value in result.items():
        assert (value.shape, value.dtype) == (expected[key].shape, torch.float32), key
        # A loss of no label at all is NaN in both (a causal model has none for a row of one real token).
        assert torch.equal(value.isnan(), expected[key].isnan()), key
        error = (value - expected[key]).abs().nan_to_num(0)
        if value.shape[:2] == mask.shape:
            if key == "last_hidden_state":
                at_padding = value[~mask]
                stock_at_padding = single[key].detach()[~mask]
                assert not at_padding.any() or (at_padding - stock_at_padding).abs().max() <= RESULT
            error = error[mask]
        assert float(error.max()) <= RESULT, f"{key} is off by {float(error.max()):.1e}"
        worst = max(worst, float(error.max()))
    names = [*dict(stock.named_parameters()), "inputs_embeds"][: len(gradients)]
    of_model = max(1.0, *(float(gradient.abs().max()) for gradient in expected_gradients))
    shares = {}
    for parameter, ours, theirs in zip(names, gradients, expected_gradients, strict=True):
        allowed = GRADIENT * float(theirs.abs().max()) + ROUNDING * of_model
        assert theirs.isfinite().all(), parameter
        assert ours.isfinite().all(), parameter
        error = float((ours - theirs).abs().max())
        shares[parameter] = error / allowed if error else 0.0
    parameter = max(shares, key=shares.__getitem__)
    assert shares[parameter] <= 1, f"the gradient of {parameter} is off by {shares[parameter]:.1f} times what may be"
    return Difference(worst, shares[parameter])


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("labels", ["no labels", "labels", "labels on padding"])
def test_random_batches_equal_stock(name, labels, rng_seed):
    if labels == "labels on padding" and not labels_tokens(name):
        pytest.skip("its labels are not of tokens")
    stock = stock_model(name)
    fast = fast_copy(stock)
    for padding in PADDINGS:
        mask = mask_of(name, padding)
        batch = batch_of(name, mask, give_mask="no mask" not in padding)
        if labels != "no labels":
            batch |= labels_for(name, mask, on_padding=labels == "labels on padding")
        print(padding, tuple(mask.shape), {key: str(value.dtype) for key, value in batch.items()})
        compare(name, stock, fast, batch, mask)


@pytest.mark.parametrize("name", HEADS)
def test_lengths_from_1_to_512_equal_stock(name, rng_seed):
    """The shortest and the longest, beside others; and a batch that is one token wide."""
    stock = stock_model(name)
    fast = fast_copy(stock)
    for length in (1, POSITIONS):
        lengths = torch.randint(1, length + 1, (2, 1))
        lengths[int(torch.randint(2, ()))] = length
        mask = torch.arange(length) < lengths
        batch = {"input_ids": random_ids(mask), "attention_mask": mask}
        # Of one token the loss is 0 (a softmax over one position) or a mean of nothing (no token follows).
        if length > 1 or ("LM" not in name and "QuestionAnswering" not in name):
            batch |= labels_for(name, mask)
        compare(name, stock, fast, batch, mask)


# Each changes what the core does: no projection of the embeddings, heads of an odd width or only one, another
# activation, the padding token elsewhere or nowhere, one token type, no layer at all.
CONFIGS = (
    {"embedding_size": 32},
    {"num_attention_heads": 1},
    {"hidden_size": 36, "embedding_size": 36, "num_attention_heads": 4},
    {"hidden_act": "relu"},
    {"pad_token_id": 7},
    {"pad_token_id": None},
    {"type_vocab_size": 5},
    {"num_hidden_layers": 0},
    {"layer_norm_eps": 1e-3},
)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("name", ["ElectraForSequenceClassification", "ElectraForMaskedLM", "BertForPreTraining"])
def test_other_configs_equal_stock(name, config, rng_seed):
    if not name.startswith("Electra"):
        config = {key: value for key, value in config.items() if key != "embedding_size"}
    stock = stock_model(name, **config)
    mask = mask_of(name, "right")
    batch = {"input_ids": random_ids(mask), "attention_mask": mask.long()}
    batch["token_type_ids"] = torch.randint(0, stock.config.type_vocab_size, mask.shape)
    compare(name, stock, fast_copy(stock), batch | labels_for(name, mask), mask)


@pytest.mark.parametrize("name", ["ElectraForSequenceClassification", "BertForSequenceClassification"])
@pytest.mark.parametrize(
    ("num_labels", "labels"), [(1, torch.rand(4)), (3, torch.randint(0, 3, (4,))), (3, torch.rand(4, 3))]
)
@pytest.mark.parametrize("padding", ["right", "left", "an empty row", "none, no mask"])
def test_every_problem_type_equals_stock(name, num_labels, labels, padding, rng_seed):
    """Regression, one label of several, any number of labels: transformers decides by the labels."""
    stock = stock_model(name, num_labels=num_labels)
    fast = fast_copy(stock)
    mask = mask_of(name, padding)
    batch = batch_of(name, mask, give_mask="no mask" not in padding)
    compare(name, stock, fast, batch | {"labels": labels}, mask)
    assert fast.config.problem_type in ("regression", "single_label_classification", "multi_label_classification")


@pytest.mark.parametrize("summary", ["first", "last", "mean", "cls_index"])
@pytest.mark.parametrize("use_projection", [True, False])
def test_every_summary_of_a_choice_equals_stock(summary, use_projection, rng_seed):
    name = "ElectraForMultipleChoice"
    stock = stock_model(name, summary_type=summary, summary_use_proj=use_projection)
    fast = fast_copy(stock)
    for padding in ("right", "left", "an empty row", "none", "none, no mask"):
        mask = mask_of(name, padding)
        batch = batch_of(name, mask, give_mask="no mask" not in padding)
        compare(name, stock, fast, batch | labels_for(name, mask), mask)


@pytest.mark.parametrize("name", HEADS)
def test_arguments_by_position_and_results_as_a_tuple(name, rng_seed):
    """With labels on padding, which the head must find wherever they are given."""
    stock = stock_model(name)
    fast = fast_copy(stock)
    mask = mask_of(name, "right")
    batch = {"input_ids": random_ids(mask), "attention_mask": mask.long()}
    batch = choices(name, batch | labels_for(name, mask, on_padding=True))
    names = list(inspect.signature(stock.forward).parameters)
    last = max(names.index(key) for key in batch)
    arguments = [batch.get(key) for key in names[: last + 1]]
    expected, result = stock(*arguments), fast(*arguments)
    assert result.keys() == expected.keys()
    if "loss" in expected:
        assert abs(float(result.loss.detach()) - float(expected.loss.detach())) <= RESULT
    as_tuple = fast(*arguments, return_dict=False)
    assert type(as_tuple) is tuple
    assert len(as_tuple) == len(expected.to_tuple())
    assert all(torch.equal(a, b) for a, b in zip(as_tuple, result.to_tuple(), strict=True))


def test_labels_of_one_dimension_are_found_on_padding(rng_seed):
    """transformers flattens the labels of tokens, and so takes them flat."""
    stock = stock_model("ElectraForTokenClassification")
    mask = mask_of("", "right")
    batch = {"input_ids": random_ids(mask), "attention_mask": mask}
    batch["labels"] = torch.randint(0, 3, mask.shape).flatten()
    compare("ElectraForTokenClassification", stock, fast_copy(stock), batch, mask)


# For each kind of padding, whether the flat tokens serve heads that read the first token, those that read the real
# ones, and question answering with its labels.
FLAT = {
    "right": (True, True, False),
    "left": (False, True, False),
    "middle": (True, True, False),
    "an empty row": (False, False, False),
    "none": (True, True, True),
    "none, no mask": (True, True, True),
}


@pytest.mark.parametrize("padding", FLAT)
def test_which_batches_lose_their_padding(padding, monkeypatch, rng_seed):
    """Or else the tests above might have compared transformers with itself."""
    calls = []
    encode = tower.encode
    monkeypatch.setattr(tower, "encode", lambda *args, **kwargs: (calls.append(1), encode(*args, **kwargs))[1])
    heads = ("ElectraForSequenceClassification", "ElectraForTokenClassification", "ElectraForQuestionAnswering")
    for name, expected in zip(heads, FLAT[padding], strict=True):
        calls.clear()
        mask = mask_of(name, padding)
        batch = {"input_ids": random_ids(mask)} | labels_for(name, mask)
        if "no mask" not in padding:
            batch["attention_mask"] = mask
        fast_copy(stock_model(name))(**batch)
        assert len(calls) == expected, name


# --- ElectraForMaskedLM without logits --------------------------------------------------------------------------------


class Adapted(nn.Module):
    """An output layer with something around it, as LoRA has."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.down = nn.Parameter(0.2 * torch.randn(4, inner.in_features))
        self.up = nn.Parameter(0.2 * torch.randn(inner.out_features, 4))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.inner(hidden_states) + hidden_states @ self.down.T @ self.up.T


@pytest.mark.parametrize("head", ["tied", "untied", "without a bias", "adapted"])
@pytest.mark.parametrize("padding", ["right", "left", "an empty row", "none, no mask"])
def test_masked_lm_without_logits(head, padding, rng_seed):
    """The loss of the labelled positions alone is the loss, and so are its gradients; also with labels on padding."""
    stock = stock_model("ElectraForMaskedLM", tie_word_embeddings=head == "tied")
    if head == "without a bias":
        stock.generator_lm_head.bias = None
    elif head == "adapted":
        stock.generator_lm_head = Adapted(stock.generator_lm_head)
    fast = fast_copy(stock)
    for on_padding in (False, True):
        mask = mask_of("", padding)
        batch = batch_of("Electra", mask, give_mask="no mask" not in padding)
        batch |= labels_for("ElectraForMaskedLM", mask, on_padding=on_padding)
        expected = run(double_copy(stock), batch, {})
        found = run(fast, batch | {"return_logits": False}, {})
        assert list(found[0]) == ["loss"]
        assert abs(float(found[0]["loss"] - expected[0]["loss"])) <= RESULT
        largest = max(1.0, *(float(gradient.abs().max()) for gradient in expected[1]))
        for ours, theirs in zip(found[1], expected[1], strict=True):
            assert float((ours - theirs).abs().max()) <= GRADIENT * float(theirs.abs().max()) + ROUNDING * largest


def test_masked_lm_without_logits_needs_labels(rng_seed):
    fast = fast_copy(stock_model("ElectraForMaskedLM"))
    ids = torch.randint(0, VOCABULARY, (2, 5))
    with pytest.raises(ValueError, match="give labels"):
        fast(ids, return_logits=False)
    nothing = fast(ids, labels=torch.full_like(ids, -100), return_logits=False)
    assert nothing.loss.isnan()  # as in transformers
    assert nothing.logits is None
    assert len(fast(ids, labels=ids, return_logits=False, return_dict=False)) == 1
    more = fast(ids, labels=ids, return_logits=False, output_hidden_states=True)
    assert len(more.hidden_states) == 3
