"""Tiny stock models whose weights show an error, made fast, and batches with padding anywhere."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from electra_fast import optimize

ELECTRA_HEADS = (
    "ElectraModel",
    "ElectraForPreTraining",
    "ElectraForMaskedLM",
    "ElectraForSequenceClassification",
    "ElectraForTokenClassification",
    "ElectraForQuestionAnswering",
    "ElectraForMultipleChoice",
    "ElectraForCausalLM",
)
BERT_HEADS = (
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
    "BertLMHeadModel",
)
HEADS = ELECTRA_HEADS + BERT_HEADS
PACKED_HEADS = tuple(name for name in HEADS if "MultipleChoice" not in name)
VOCABULARY, POSITIONS, EMBEDDING = 120, 512, 24
CHOICES = 2


def stock_model(name: str, *, dropout: float = 0.0, **config: Any) -> nn.Module:
    """A stock model in eval mode. Deviation 0.2, not 0.02: with tiny weights, what attention does hardly shows."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 72,
        "max_position_embeddings": POSITIONS,
        "num_labels": 2 if "QuestionAnswering" in name else 3,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "summary_last_dropout": dropout,
        "layer_norm_eps": 1e-12,
    }
    if name.startswith("Electra"):
        settings["embedding_size"] = EMBEDDING
        config_class = transformers.ElectraConfig
    else:
        config_class = transformers.BertConfig
    model = getattr(transformers, name)(config_class(**settings | config)).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.normal_(std=0.2)
            if parameter_name.endswith("LayerNorm.weight"):
                parameter.add_(1.0)
    return model


def fast_copy(model: nn.Module) -> nn.Module:
    return optimize(copy.deepcopy(model))


def double_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


def width_of_embeddings(name: str) -> int:
    return EMBEDDING if name.startswith("Electra") else 32


def labels_tokens(name: str) -> bool:
    return any(kind in name for kind in ("PreTraining", "TokenClassification", "LM"))


def labels_for(name: str, real: Tensor, *, on_padding: bool = False) -> dict[str, Tensor]:
    """Labels of a batch [B, S] whose mask is `real`, by argument name; on padding -100 or (`on_padding`) others too."""
    batch_size, length = real.shape
    if name.endswith("Model") and name != "BertLMHeadModel":
        return {}
    if "QuestionAnswering" in name:
        # Some beyond the end, which transformers ignores, some before the start, which it moves to 0.
        start, end = torch.randint(-1, length + 3, (2, batch_size))
        start[0] = end[0] = 0  # not all may be ignored: a mean of nothing is NaN
        return {"start_positions": start, "end_positions": end}
    if "MultipleChoice" in name:
        return {"labels": torch.randint(0, CHOICES, (batch_size // CHOICES,))}
    if "SequenceClassification" in name:
        return {"labels": torch.randint(0, 3, (batch_size,))}
    if "NextSentence" in name:
        return {"labels": torch.randint(0, 2, (batch_size,))}
    if name == "ElectraForPreTraining":
        return {"labels": torch.randint(0, 2, real.shape)}  # its own loss leaves padding out
    labels = torch.randint(0, 3 if "TokenClassification" in name else VOCABULARY, real.shape)
    labels[torch.rand(real.shape) < 0.3] = -100
    row, last = real.nonzero()[-1]
    labels[row, max(int(last) - 1, 0) : last + 1] = 1  # not all may be -100: a mean of nothing is NaN
    if not on_padding:
        labels[~real] = -100
    if name == "BertForPreTraining":
        return {"labels": labels, "next_sentence_label": torch.randint(0, 2, (batch_size,))}
    return {"labels": labels}


def choices(name: str, batch: dict[str, Any]) -> dict[str, Any]:
    """Multiple choice takes [B, choices, S]; the other heads [B * choices, S]."""
    if "MultipleChoice" not in name:
        return batch
    batch_of_choices = dict(batch)
    for key in ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"):
        value = batch.get(key)
        if value is not None and value.shape[0] > 1:
            batch_of_choices[key] = value.unflatten(0, (-1, CHOICES))
    return batch_of_choices
