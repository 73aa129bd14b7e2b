"""The original's classification head against its definition, and models that get another head."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ElectraConfig, ElectraForPreTraining, ElectraModel

from electra_fast.finetuning.heads import HEADS, choose_head
from electra_fast.finetuning.inference import infer
from electra_fast.finetuning.model import load_finetuned, load_with_head, save_finetuned
from electra_fast.finetuning.task import Task, task_class
from tests.finetuning.words import word_tokenizer

TOKENIZER = word_tokenizer(" ".join(f"w{number}" for number in range(40)))
HIDDEN = 16


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A stock checkpoint."""
    config = ElectraConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=HIDDEN,
        embedding_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.2,
    )
    ElectraForPreTraining(config).save_pretrained(tmp_path / "pretrained")
    TOKENIZER.save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


def _task(name: str, style: str = "original") -> Task:
    task = task_class(name)()
    choose_head(task, style)
    return task


def _features(task: Task, seed: int) -> list[dict]:
    g = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(7):
        lengths = torch.randint(1, 12, (2,), generator=g).tolist()
        texts = [" ".join(f"w{i}" for i in torch.randint(40, (n,), generator=g).tolist()) for n in lengths]
        label = float(torch.rand((), generator=g)) * 5 if task.labels is None else task.labels[len(examples) % 2]
        examples.append({"text": texts[0], "text_pair": texts[1], "label": label})
    return task.encode(examples, TOKENIZER, training=False)


def _plain(folder: Path, weight: Tensor, bias: Tensor, features: list[dict]) -> Tensor:
    """[CLS] times a matrix, of stock transformers' encoder in float64, one text after the other."""
    encoder = ElectraModel.from_pretrained(folder).double().eval()
    assert type(encoder).__module__.startswith("transformers.")
    rows = [
        encoder(
            input_ids=torch.tensor([feature["input_ids"]]), token_type_ids=torch.tensor([feature["token_type_ids"]])
        ).last_hidden_state[0, 0]
        for feature in features
    ]
    return torch.stack(rows) @ weight.double().T + bias.double()


@pytest.mark.parametrize("name", ["mnli", "stsb"])
def test_logits_and_loss_are_a_linear_layers(pretrained: Path, name: str, rng_seed: int) -> None:
    task = _task(name)
    model = load_with_head(pretrained, task, seed=rng_seed).eval()
    features = _features(task, rng_seed)
    linear = model.classifier.out_proj
    torch.nn.init.normal_(linear.bias)
    wanted = _plain(pretrained, linear.weight.detach(), linear.bias.detach(), features)
    labels = torch.tensor([feature["labels"] for feature in features])
    loss = F.mse_loss(wanted[:, 0], labels.double()) if name == "stsb" else F.cross_entropy(wanted, labels)
    head = HEADS[task.head]
    for collate in (head.collate, head.padded):
        result = model(**collate(features, TOKENIZER))
        torch.testing.assert_close(result.logits.double(), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(result.loss.double(), loss, atol=1e-5, rtol=1e-5)


def test_the_new_layer_is_glorots(pretrained: Path) -> None:
    for from_scratch in (False, True):
        model = load_with_head(pretrained, _task("mnli"), seed=5, from_scratch=from_scratch)
        weight, bound = model.classifier.out_proj.weight, math.sqrt(6 / (HIDDEN + 3))
        assert 0.8 * bound < weight.abs().max() <= bound  # of 48 uniform draws, of one seed
        assert not model.classifier.out_proj.bias.any()
        assert sum(p.numel() for p in model.classifier.parameters()) == 3 * HIDDEN + 3
    again = load_with_head(pretrained, _task("mnli"), seed=6)
    assert not torch.equal(again.classifier.out_proj.weight, weight)


@pytest.mark.parametrize("name", ["mnli", "stsb"])
def test_it_is_saved_and_loaded(pretrained: Path, tmp_path: Path, name: str, rng_seed: int) -> None:
    task = _task(name)
    model = load_with_head(pretrained, task, seed=rng_seed)
    features = _features(task, rng_seed)
    save_finetuned(model, TOKENIZER, task, tmp_path / "model")
    loaded = load_finetuned(tmp_path / "model")
    assert loaded.task == task
    assert loaded.task.head == "sequence/original"
    for (key, ours), (same, theirs) in zip(model.state_dict().items(), loaded.model.state_dict().items(), strict=True):
        assert key == same
        assert torch.equal(ours, theirs)
    wanted = infer(model, TOKENIZER, task.head, features)
    for row, again in zip(wanted, infer(loaded.model, loaded.tokenizer, loaded.task.head, features), strict=True):
        assert (row == again).all()


@pytest.mark.parametrize("style", ["transformers", "original"])
@pytest.mark.parametrize("other", ["rte", "stsb"])
def test_another_task_after_mnli_gets_another_head(
    pretrained: Path, tmp_path: Path, style: str, other: str, rng_seed: int
) -> None:
    mnli = _task("mnli", style)
    first = load_with_head(pretrained, mnli, seed=rng_seed)
    first(**HEADS[mnli.head].collate(_features(mnli, rng_seed), TOKENIZER))  # fixes the kind of loss in its config
    save_finetuned(first, TOKENIZER, mnli, tmp_path / "mnli")

    task = _task(other, style)
    model = load_with_head(tmp_path / "mnli", task, seed=rng_seed)
    features = _features(task, rng_seed)
    for key, value in model.electra.state_dict().items():
        assert torch.equal(value, first.electra.state_dict()[key]), key
    assert model.classifier.out_proj.weight.shape[0] == (1 if other == "stsb" else 2)
    assert model.classifier.out_proj.weight.std() > 0.01
    result = model.eval()(**HEADS[task.head].collate(features, TOKENIZER))
    labels = torch.tensor([feature["labels"] for feature in features])
    kind = F.mse_loss(result.logits[:, 0], labels) if other == "stsb" else F.cross_entropy(result.logits, labels)
    torch.testing.assert_close(result.loss, kind, atol=1e-6, rtol=1e-6)


def test_an_encoder_of_other_shape_is_refused(pretrained: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks electra\.encoder\.layer\.0\.intermediate\.dense\.bias"):
        load_with_head(pretrained, _task("rte"), seed=0, intermediate_size=48)
