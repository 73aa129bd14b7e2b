"""Texts, or pairs of texts, into a number: similarity, a grade, a price, ..."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from electra_fast.finetuning.metrics.classification import correlations, mean_squared_error
from electra_fast.finetuning.tables import Row
from electra_fast.finetuning.task import Example, Feature, Output, Prediction, Task, is_labelled
from electra_fast.finetuning.tasks.classification import encode_texts, read_texts


@dataclass
class Regression(Task):
    """One number for each text, from CSV, TSV or JSON lines.

    The model learns (number - low) / (high - low), as the original does for STS-B; predictions are in the file's unit.

    Attributes:
        text: column of the text.
        text_pair: column of a second text; None: there is none.
        label: column of the number.
        low, high: what the model learns as 0 and as 1; None: the smallest and the largest number of the training data.
    """

    name: ClassVar[str] = "regression"
    title: ClassVar[str] = "one number for each text or pair of texts (CSV, TSV, JSONL)"
    head: ClassVar[str] = "sequence"
    metric: ClassVar[str] = "pearson"

    text: str = "text"
    text_pair: str | None = None
    label: str = "score"
    low: float | None = None
    high: float | None = None

    def from_rows(self, rows: Iterable[Row], split: str) -> list[Example]:
        examples = []
        for row in rows:
            example = read_texts(row, self.text, self.text_pair)
            if is_labelled(split) or row.has(self.label):
                example["label"] = row.real(self.label)
            examples.append(example)
        return examples

    def fit(self, examples: Sequence[Example]) -> None:
        numbers = [example["label"] for example in examples]
        self.low = min(numbers) if self.low is None else self.low
        self.high = max(numbers) if self.high is None else self.high
        if not self.low < self.high:
            raise ValueError(f"low = {self.low:g} must be below high = {self.high:g}: do all texts have one number?")

    def encode(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, training: bool
    ) -> list[Feature]:
        return encode_texts(to_unit(examples, self.low, self.high), tokenizer, self.max_length, None)

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Prediction]:
        return [{"score": from_unit(float(output[0]), self.low, self.high)} for output in outputs]

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        labels = [example["label"] for example in examples]
        predicted = [prediction["score"] for prediction in predictions]
        return correlations(labels, predicted) | mean_squared_error(labels, predicted)


def to_unit(examples: Sequence[Example], low: float, high: float) -> list[Example]:
    """The examples with 0.0 for the label `low` and 1.0 for `high`."""
    return [
        example | {"label": (example["label"] - low) / (high - low)} if "label" in example else example
        for example in examples
    ]


def from_unit(value: float, low: float, high: float) -> float:
    """The number that a model's output means; the inverse of `to_unit`."""
    return low + value * (high - low)
