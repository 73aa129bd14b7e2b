"""The heads that tasks use: transformers' class, how its batches are made, and what each feature's output is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from electra_fast.data.collator import IGNORED_LABEL, PackedCollator
from electra_fast.finetuning.encoder_decoder import collate_pairs, generate_texts, load_encoder_decoder
from electra_fast.finetuning.spans import SpanBeam
from electra_fast.finetuning.task import Feature, Output, Task

HEAD_STYLES = ("transformers", "original")
_TOKENS = ("input_ids", "token_type_ids")
Batch = dict[str, Any]
Collate = Callable[[Sequence[Feature], PreTrainedTokenizerBase], Batch]


class Head(NamedTuple):
    """What a task predicts with.

    Attributes:
        model: the transformers class is `AutoModelFor` + this; or `module:Class` for one of ours.
        columns: of a feature, what goes into a batch; labels among them.
        collate: features -> the model's arguments.
        outputs: the model's result for a batch of features -> an output for each, on the CPU, float32 NumPy arrays:
            "sequence" [labels], "tokens" [n, labels], "span" (start [n], end [n]), "choice" [choices],
            "span/original" a `SpanBeam`. None: see `run`.
        padded: `collate` with padding, for comparison; None: there is no other way than `collate`.
        load: instead of `model.load_with_head`, with its arguments, where one checkpoint's class does not do.
        reopen: instead of how `model.load_finetuned` loads weights: the model's folder -> the model.
        run: instead of a forward and `outputs`, e.g. to generate: (model, tokenizer, features without labels, of
            about one length) -> an output for each: "seq2seq" str.
    """

    model: str
    columns: tuple[str, ...]
    collate: Collate
    outputs: Callable[[ModelOutput, Sequence[Feature]], list[Output]] | None
    padded: Collate | None = None
    load: Callable[..., PreTrainedModel] | None = None
    reopen: Callable[..., PreTrainedModel] | None = None
    run: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Sequence[Feature]], list[Output]] | None = None

    def model_class(self) -> Any:
        """The class `model` names, to load or build the model with; under `patch_transformers` a fast one."""
        if ":" not in self.model:
            return getattr(transformers, f"AutoModelFor{self.model}")
        module, _, name = self.model.partition(":")
        return getattr(importlib.import_module(module), name)


def choose_head(task: Task, style: str) -> None:
    """Give `task` the head of a style: "transformers", or "original", google-research/electra's.

    The key of the original's is the task's own with `/original`; it goes with the model into `task.json`.

    Raises:
        ValueError: the style is unknown, or the original has no such head.
    """
    if style not in HEAD_STYLES:
        raise ValueError(f"head must be {' or '.join(HEAD_STYLES)}; got {style!r}")
    if style == "original":
        name = f"{type(task).head}/original"
        if name not in HEADS:
            raise ValueError(f"the original has no head for {task.name}: leave --head transformers")
        task.head = name


def collate_padded(columns: tuple[str, ...]) -> Collate:
    """[B, S] with padding and its mask, as transformers' own collators make them."""

    def collate(features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Batch:
        batch: Batch = {}
        for name in (name for name in columns if name in features[0]):
            values = [torch.tensor(feature[name]) for feature in features]
            fill = {"input_ids": tokenizer.pad_token_id, "labels": IGNORED_LABEL}.get(name, 0)
            is_ragged = values[0].dim() > 0
            batch[name] = pad_sequence(values, True, fill) if is_ragged else torch.stack(values)
        lengths = torch.tensor([len(feature["input_ids"]) for feature in features])
        batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return batch

    return collate


def collate_packed(columns: tuple[str, ...]) -> Collate:
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


def _beams(result: ModelOutput, features: Sequence[Feature]) -> list[Output]:
    columns = (
        result.start_top_index, result.start_top_log_probs, result.end_top_index, result.end_top_log_probs
    )  # fmt: skip
    rows = zip(*(column.cpu().numpy() for column in columns), result.impossible_logits.tolist(), strict=True)
    return [SpanBeam(*row) for row in rows]


def _split(packed: Tensor, features: Sequence[Feature]) -> Sequence[Tensor]:
    """[1, T, ...] -> [n, ...] for each feature."""
    return packed.squeeze(0).split([len(feature["input_ids"]) for feature in features])


def _array(tensor: Tensor) -> Any:
    return tensor.float().cpu().numpy()


_SPANS = (*_TOKENS, "start_positions", "end_positions")
_JOINT_SPANS = (*_SPANS, "is_impossible")
_LABELLED = (*_TOKENS, "labels")

HEADS: Mapping[str, Head] = {
    "sequence": Head(
        "SequenceClassification", _LABELLED, collate_packed(_LABELLED), _rows, padded=collate_padded(_LABELLED)
    ),
    "sequence/original": Head(
        "electra_fast.finetuning.original:ElectraForOriginalClassification",
        _LABELLED,
        collate_packed(_LABELLED),
        _rows,
        padded=collate_padded(_LABELLED),
    ),
    "tokens": Head(
        "TokenClassification", _LABELLED, collate_packed(_LABELLED), _tokens, padded=collate_padded(_LABELLED)
    ),
    # The original's is dropout and one linear layer too.
    "tokens/original": Head(
        "TokenClassification", _LABELLED, collate_packed(_LABELLED), _tokens, padded=collate_padded(_LABELLED)
    ),
    "span": Head("QuestionAnswering", _SPANS, collate_packed(_SPANS), _spans, padded=collate_padded(_SPANS)),
    "span/original": Head(
        "electra_fast.finetuning.original_span_head:ElectraForOriginalQuestionAnswering",
        _JOINT_SPANS,
        collate_packed(_JOINT_SPANS),
        _beams,
        padded=collate_padded(_JOINT_SPANS),
    ),
    "choice": Head("MultipleChoice", _LABELLED, collate_choices, _rows),
    "seq2seq": Head(
        "Seq2SeqLM",
        ("input_ids", "labels"),
        collate_pairs,
        outputs=None,
        load=load_encoder_decoder,
        run=generate_texts,
    ),
}
