"""Texts, or pairs of texts, into classes: sentiment, topic, spam, ..."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from electra_fast.arguments import nearest, shown
from electra_fast.finetuning.metrics.classification import accuracy_and_f1
from electra_fast.finetuning.model import label_names
from electra_fast.finetuning.tables import Row
from electra_fast.finetuning.task import Example, Feature, Output, Prediction, Task, is_labelled


@dataclass
class Classification(Task):
    """One label for each text, from CSV, TSV or JSON lines.

    Attributes:
        text: column of the text.
        text_pair: column of a second text; None: there is none.
        label: column of the label.
    """

    name: ClassVar[str] = "classification"
    title: ClassVar[str] = "one label for each text or pair of texts (CSV, TSV, JSONL)"
    head: ClassVar[str] = "sequence"
    metric: ClassVar[str] = "accuracy"

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"

    def from_rows(self, rows: Iterable[Row], split: str) -> list[Example]:
        examples = []
        for row in rows:
            example = read_texts(row, self.text, self.text_pair)
            if is_labelled(split) or row.has(self.label):
                example["label"] = read_label(row, self.label, self.labels)
            examples.append(example)
        return examples

    def fit(self, examples: Sequence[Example]) -> None:
        self.labels = fit_labels(self.labels, examples)

    def encode(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, training: bool
    ) -> list[Feature]:
        return encode_texts(examples, tokenizer, self.max_length, self.labels)

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Prediction]:
        return [decode_class(logits, self.labels) for logits in outputs]

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        return accuracy_and_f1(
            [example["label"] for example in examples],
            [prediction["label"] for prediction in predictions],
            self.labels,
        )


def read_texts(row: Row, text: str, text_pair: str | None) -> Example:
    """An example with the text, or the two texts, of a row, without its label. Raises ValueError."""
    example = {"text": row.text(text)}
    if text_pair is not None:
        example["text_pair"] = row.text(text_pair)
    return example


def read_label(row: Row, column: str, labels: Sequence[str] | None) -> str:
    """A row's label, one of `labels` if they are known. Raises ValueError."""
    value = row.get(column)
    if isinstance(value, bool | int):
        value = json.dumps(value)  # true as JSON writes it
    if not isinstance(value, str) or not value.strip():
        raise row.error(f"{column} must be a label; got {shown(value)}")
    label = value.strip()
    if labels is not None and label not in labels:
        raise row.error(f"unknown label {label!r}{nearest(label, labels)} (labels: {label_names(labels)})")
    return label


def fit_labels(labels: list[str] | None, examples: Sequence[Example]) -> list[str]:
    """`labels`, or where there are none those of the training examples in alphabetic order.

    Raises:
        ValueError: there is one only.
    """
    labels = sorted({example["label"] for example in examples}) if labels is None else labels
    if len(labels) < 2:
        raise ValueError(f"all training texts have the label {labels[0]!r}: nothing to learn")
    return labels


def encode_texts(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    labels: Sequence[str] | None,
) -> list[Feature]:
    """A feature for each text or pair; of a pair that is too long, tokens go from the end of the longer text.

    `labels` None: the examples' labels are numbers.
    """
    if not examples:
        return []
    texts = [example["text"] for example in examples]
    pairs = [example["text_pair"] for example in examples] if "text_pair" in examples[0] else None
    encoded = tokenizer(texts, pairs, truncation="longest_first", max_length=max_length, return_attention_mask=False)
    index = None if labels is None else {label: number for number, label in enumerate(labels)}
    features = []
    for number, example in enumerate(examples):
        feature = {name: encoded[name][number] for name in encoded} | {"example": number}
        if "label" in example:
            feature["labels"] = example["label"] if index is None else index[example["label"]]
        features.append(feature)
    return features


def decode_class(logits: np.ndarray, labels: Sequence[str]) -> Prediction:
    """The likeliest label, and the probability of each; logits [labels]."""
    probabilities = np.round(softmax(logits), 6).tolist()
    return {"label": labels[int(logits.argmax())], "probabilities": dict(zip(labels, probabilities, strict=True))}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [n], float64, of logits [n]."""
    exponents = np.exp(logits.astype(np.float64) - logits.max())
    return exponents / exponents.sum()
