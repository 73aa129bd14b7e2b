"""The original's head for question answering beside a plain padded one on stock's encoder, in float64."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from electra_fast.data.collator import PackedCollator
from electra_fast.finetuning.heads import HEADS
from electra_fast.finetuning.original_span_head import ElectraForOriginalQuestionAnswering

WIDTH, BEAM = 16, 20
CONFIG = {
    "vocab_size": 60,
    "embedding_size": 8,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


class PlainHead(nn.Module):
    """As google-research/electra computes it: both inputs side by side, every beam's copy of every token."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(WIDTH, 1)
        self.end_hidden = nn.Linear(2 * WIDTH, 512)
        self.end = nn.Linear(512, 1)
        self.answerability_hidden = nn.Linear(2 * WIDTH, 512)
        self.answerability = nn.Linear(512, 1)

    def forward(self, hidden: Tensor, mask: Tensor, segments: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """hidden [B, S, H], mask and segments [B, S]."""
        batch, width, _ = hidden.shape
        answer_mask = (mask * segments).double()
        answer_mask[:, 0] += 1
        penalty = 1000.0 * (answer_mask - 1)
        start_logits = self.start(hidden).squeeze(-1) + penalty
        result = {"start_logits": start_logits}
        soft = (start_logits.softmax(-1).unsqueeze(-1) * hidden).sum(1)
        features = F.gelu(self.answerability_hidden(torch.cat([hidden[:, 0], soft], -1)))
        result["impossible_logits"] = self.answerability(features).squeeze(-1)
        if labels:
            starts = hidden[torch.arange(batch), labels["start_positions"]].unsqueeze(1).expand(-1, width, -1)
            ends = F.gelu(self.end_hidden(torch.cat([starts, hidden], -1)))
            result["end_logits"] = end_logits = self.end(ends).squeeze(-1) + penalty
            losses = [
                -logits.log_softmax(-1)[torch.arange(batch), labels[name]]
                for logits, name in ((start_logits, "start_positions"), (end_logits, "end_positions"))
            ]
            wrong = F.softplus(result["impossible_logits"]) - labels["is_impossible"] * result["impossible_logits"]
            result["loss"] = ((losses[0] + losses[1]) / 2 + 0.5 * wrong).mean()
            return result
        top = start_logits.log_softmax(-1).topk(min(BEAM, width))
        starts = torch.stack([hidden[row, index] for row, index in enumerate(top.indices)])  # [B, K, H]
        pairs = torch.cat(
            [starts.unsqueeze(2).expand(-1, -1, width, -1), hidden.unsqueeze(1).expand(-1, starts.shape[1], -1, -1)], -1
        )
        ends = self.end(F.gelu(self.end_hidden(pairs))).squeeze(-1) + penalty.unsqueeze(1)
        top_ends = ends.log_softmax(-1).topk(min(BEAM, width))
        return result | {
            "start_top_log_probs": top.values,
            "start_top_index": top.indices,
            "end_top_log_probs": top_ends.values,
            "end_top_index": top_ends.indices,
        }


def _features(rng: random.Random, *, labelled: bool) -> list[dict[str, Any]]:
    """Ragged, with one shorter than the beam."""
    features = []
    for length in (*(rng.randrange(24, 60) for _ in range(4)), 9):
        question = rng.randrange(3, 7)
        feature = {
            "input_ids": [rng.randrange(5, 60) for _ in range(length)],
            "token_type_ids": [0] * question + [1] * (length - question),
        }
        if labelled:
            is_answered = rng.random() < 0.5
            start = rng.randrange(question, length) if is_answered else 0
            feature |= {"start_positions": start, "end_positions": rng.randrange(start, length) if is_answered else 0}
            feature["is_impossible"] = rng.randrange(2)
        features.append(feature)
    return features


@pytest.fixture
def models(rng_seed: int) -> tuple[ElectraForOriginalQuestionAnswering, nn.Module, PlainHead]:
    ours = ElectraForOriginalQuestionAnswering(transformers.ElectraConfig(**CONFIG)).double()
    for bias in (parameter for name, parameter in ours.span_head.named_parameters() if name.endswith("bias")):
        nn.init.normal_(bias)
    stock = transformers.ElectraModel(transformers.ElectraConfig(**CONFIG)).double()
    stock.load_state_dict(ours.electra.state_dict())
    plain = PlainHead().double()
    plain.load_state_dict(ours.span_head.state_dict())
    return ours, stock, plain


@pytest.mark.filterwarnings("ignore:.*runs its plain PyTorch reference:RuntimeWarning")
@pytest.mark.parametrize("collate", ["collate", "padded"])
@pytest.mark.parametrize("labelled", [True, False], ids=["training", "beam"])
def test_equal_to_the_plain_head(models: Any, rng_seed: int, collate: str, labelled: bool) -> None:
    ours, stock, plain = models
    features = _features(random.Random(rng_seed), labelled=labelled)
    tokenizer = type("Tokenizer", (), {"pad_token_id": 0})()
    padded = HEADS["span/original"].padded(features, tokenizer)
    names = ("start_positions", "end_positions", "is_impossible")
    labels = {name: padded.pop(name) for name in names if labelled}
    expected = plain(stock(**padded).last_hidden_state, padded["attention_mask"], padded["token_type_ids"], labels)
    found = ours(**getattr(HEADS["span/original"], collate)(features, tokenizer))
    assert set(found.keys()) == set(expected)
    is_token = padded["attention_mask"] == 1
    in_context = is_token & ((padded["token_type_ids"] == 1) | (torch.arange(is_token.shape[1]) == 0))
    assert torch.allclose(found.impossible_logits, expected["impossible_logits"], rtol=0, atol=1e-10)
    assert torch.allclose(found.start_logits[is_token], expected["start_logits"][is_token], rtol=0, atol=1e-10)
    if labelled:
        assert torch.allclose(found.end_logits[is_token], expected["end_logits"][is_token], rtol=0, atol=1e-10)
        assert found.loss.item() == pytest.approx(expected["loss"].item(), abs=1e-10)
        found.loss.backward()
        expected["loss"].backward()
        for mine, other in ((ours.span_head, plain), (ours.electra, stock)):
            gradients = dict(other.named_parameters())
            for name, parameter in mine.named_parameters():
                assert torch.allclose(parameter.grad, gradients[name].grad, rtol=0, atol=1e-9), name
        return
    for row, allowed in enumerate(in_context.sum(1).tolist()):
        kept = min(allowed, BEAM)  # the rest of a beam is of tokens that can't be answers
        for name in ("start_top_index", "start_top_log_probs"):
            assert torch.allclose(found[name][row, :kept], expected[name][row, :kept], rtol=0, atol=1e-10)
        for name in ("end_top_index", "end_top_log_probs"):
            assert torch.allclose(found[name][row, :kept, :kept], expected[name][row, :kept, :kept], rtol=0, atol=1e-10)


def test_new_layers_are_drawn_by_glorots_rule(rng_seed: int) -> None:
    head = ElectraForOriginalQuestionAnswering(transformers.ElectraConfig(**CONFIG)).span_head
    for layer in (head.end_hidden, head.answerability_hidden, head.end):
        limit = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert layer.weight.abs().max() <= limit
        assert layer.weight.abs().max() > 0.9 * limit  # of 512 draws or more: fails once in 10**23
        assert layer.bias.abs().max() == 0


def test_what_is_missing_is_named() -> None:
    model = ElectraForOriginalQuestionAnswering(transformers.ElectraConfig(**CONFIG))
    [feature] = _features(random.Random(0), labelled=True)[:1]
    batch = PackedCollator()([{key: feature[key] for key in ("input_ids", "start_positions", "end_positions")}])
    with pytest.raises(ValueError, match="needs token_type_ids, which say where the context is"):
        model(**batch)
    batch["token_type_ids"] = torch.tensor([feature["token_type_ids"]])
    with pytest.raises(ValueError, match="start_positions, end_positions and is_impossible together"):
        model(**batch)
