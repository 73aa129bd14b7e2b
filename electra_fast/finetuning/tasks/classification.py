"""Texts, or pairs of texts, into classes: sentiment, topic, spam, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from electra_fast.arguments import nearest
from electra_fast.finetuning.metrics.classification import accuracy_and_f1
from electra_fast.finetuning.model import label_names
from electra_fast.finetuning.tables import Row, read_rows
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

    def read(self, file: Path, split: str) -> list[Example]:
        return [self._example(row, is_labelled(split)) for row in read_rows(file)]

    def _example(self, row: Row, is_labelled: bool) -> Example:
        example = {"text": row.text(self.text)}
        if self.text_pair is not None:
            example["text_pair"] = row.text(self.text_pair)
        if is_labelled or self.label in row.values:
            label = str(row.get(self.label)).strip()
            if self.labels is not None and label not in self.labels:
                advice = f"{nearest(label, self.labels)} (labels: {label_names(self.labels)})"
                raise row.error(f"unknown label {label!r}{advice}")
            example["label"] = label
        return example

    def fit(self, examples: Sequence[Example]) -> None:
        if self.labels is None:
            self.labels = sorted({example["label"] for example in examples})
        if len(self.labels) < 2:
            raise ValueError(f"all training texts have the label {self.labels[0]!r}: nothing to learn")

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
    """The likeliest label, and the probability of each."""
    exponents = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = exponents / exponents.sum()
    return {
        "label": labels[int(logits.argmax())],
        "probabilities": dict(zip(labels, np.round(probabilities, 6).tolist(), strict=True)),
    }
