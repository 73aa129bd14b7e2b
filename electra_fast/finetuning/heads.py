"""The heads that tasks use: transformers' class, how its batches are made, and what each feature's output is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from electra_fast.data.collator import PackedCollator
from electra_fast.finetuning.task import Feature, Output

_TOKENS = ("input_ids", "token_type_ids")
Batch = dict[str, Any]


class Head(NamedTuple):
    """What a task predicts with.

    Attributes:
        model: the transformers class is `AutoModelFor` + this.
        columns: of a feature, what goes into a batch; labels among them.
        collate: features -> the model's arguments.
        outputs: the model's result for a batch of features -> an output for each, on the CPU, float32 NumPy arrays:
            "sequence" [labels], "tokens" [n, labels], "span" (start [n], end [n]), "choice" [choices].
    """

    model: str
    columns: tuple[str, ...]
    collate: Callable[[Sequence[Feature], PreTrainedTokenizerBase], Batch]
    outputs: Callable[[ModelOutput, Sequence[Feature]], list[Output]]


def collate_packed(columns: tuple[str, ...]) -> Callable[[Sequence[Feature], PreTrainedTokenizerBase], Batch]:
    """One sequence after another, without padding: see `PackedCollator`."""

    def collate(features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
        kept = [{name: feature[name] for name in columns if name in feature} for feature in features]
        return PackedCollator(pad_token_id=tokenizer.pad_token_id)(kept)

    return collate


def collate_choices(features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """[B, choices, S], padded: the head takes no packed input. A feature's columns are lists, one a choice."""
    rows = [
        {name: feature[name][choice] for name in _TOKENS if name in feature}
        for feature in features
        for choice in range(len(feature["input_ids"]))
    ]
    padded = tokenizer.pad(rows, return_tensors="pt")
    batch = {name: value.view(len(features), -1, value.shape[-1]) for name, value in padded.items()}
    if "labels" in features[0]:
        batch["labels"] = torch.tensor([feature["labels"] for feature in features])
    return batch


def _rows(result: ModelOutput, features: Sequence[Feature]) -> list[Output]:
    return list(_array(result.logits))


def _tokens(result: ModelOutput, features: Sequence[Feature]) -> list[Output]:
    return [_array(part) for part in _split(result.logits, features)]


def _spans(result: ModelOutput, features: Sequence[Feature]) -> list[Output]:
    starts, ends = (_split(logits, features) for logits in (result.start_logits, result.end_logits))
    return [(_array(start), _array(end)) for start, end in zip(starts, ends, strict=True)]


def _split(packed: Tensor, features: Sequence[Feature]) -> Sequence[Tensor]:
    """[1, T, ...] -> [n, ...] for each feature."""
    return packed.squeeze(0).split([len(feature["input_ids"]) for feature in features])


def _array(tensor: Tensor) -> Any:
    return tensor.float().cpu().numpy()


_SPANS = (*_TOKENS, "start_positions", "end_positions")
_LABELLED = (*_TOKENS, "labels")

HEADS: Mapping[str, Head] = {
    "sequence": Head("SequenceClassification", _LABELLED, collate_packed(_LABELLED), _rows),
    "tokens": Head("TokenClassification", _LABELLED, collate_packed(_LABELLED), _tokens),
    "span": Head("QuestionAnswering", _SPANS, collate_packed(_SPANS), _spans),
    "choice": Head("MultipleChoice", _LABELLED, collate_choices, _rows),
}
