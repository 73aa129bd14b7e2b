"""Multiple choice: which of several texts goes with a question, a context, or both (SWAG, RACE, ...)."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from electra_fast.arguments import shown
from electra_fast.finetuning.metrics.classification import accuracy
from electra_fast.finetuning.tables import Row
from electra_fast.finetuning.task import Example, Feature, Output, Prediction, Task, is_labelled
from electra_fast.finetuning.tasks.classification import softmax

# What files write for the index of a choice besides the number itself.
_INDEX = {str(index): index for index in range(26)} | {letter: i for i, letter in enumerate(string.ascii_uppercase)}


@dataclass
class Choice(Task):
    """One of several choices, from JSON lines with a list of them.

    With a context the model reads [CLS] context [SEP] question choice [SEP], once for each choice, else
    [CLS] question [SEP] choice [SEP].

    Attributes:
        context, question: keys of texts; an example has one of them, or both.
        choices: key of the list of texts, equally many in all rows of a file.
        label: key of the right one: its index from 0, or its letter (A, B, ...).
    """

    name: ClassVar[str] = "choice"
    title: ClassVar[str] = "the right one of several texts (JSONL)"
    head: ClassVar[str] = "choice"
    metric: ClassVar[str] = "accuracy"
    endings: ClassVar[tuple[str, ...]] = (".jsonl",)

    context: str = "context"
    question: str = "question"
    choices: str = "choices"
    label: str = "label"

    def from_rows(self, rows: Iterable[Row], split: str) -> list[Example]:
        examples: list[Example] = []
        for row in rows:
            example = self._texts(row)
            if examples and len(example["choices"]) != len(examples[0]["choices"]):
                count = len(examples[0]["choices"])
                raise row.error(f"{len(example['choices'])} choices, but {count} in the rows before")
            if is_labelled(split) or row.has(self.label):
                example["label"] = _label(row, self.label, len(example["choices"]))
            examples.append(example)
        return examples

    def _texts(self, row: Row) -> Example:
        example: Example = {
            key: row.text(column)
            for key, column in (("context", self.context), ("question", self.question))
            if row.has(column)
        }
        if not example:
            raise row.error(f"neither {self.context} nor {self.question}: expected one of them, or both")
        choices = row.get(self.choices)
        if not isinstance(choices, list) or len(choices) < 2:
            raise row.error(f"{self.choices} must be a list of two texts or more; got {shown(choices)}")
        for choice in choices:
            if not isinstance(choice, str) or not choice.strip():
                raise row.error(f"{self.choices} must be texts that are not empty; got {shown(choice)}")
        return example | {"choices": [choice.strip() for choice in choices]}

    def encode(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, training: bool
    ) -> list[Feature]:
        features = []
        for number, example in enumerate(examples):
            first, seconds = _pairs(example)
            encoded = tokenizer(
                [first] * len(seconds),
                seconds,
                truncation="longest_first",
                max_length=self.max_length,
                return_attention_mask=False,
            )
            feature = dict(encoded) | {"example": number}
            if "label" in example:
                feature["labels"] = example["label"]
            features.append(feature)
        return features

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Prediction]:
        return [_decode(example["choices"], output) for example, output in zip(examples, outputs, strict=True)]

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        return accuracy([example["label"] for example in examples], [value["label"] for value in predictions])


def _label(row: Row, column: str, count: int) -> int:
    value = row.get(column)
    label = _INDEX.get(value.strip().upper()) if isinstance(value, str) else value
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < count:
        raise row.error(f"{column} must be the index of a choice, 0 to {count - 1}, or its letter; got {shown(value)}")
    return label


def _pairs(example: Example) -> tuple[str, list[str]]:
    """What each choice is read with, and the choices, after the question where that is not first."""
    question = example.get("question")
    if "context" not in example:
        return question, example["choices"]
    start = "" if question is None else f"{question} "
    return example["context"], [start + choice for choice in example["choices"]]


def _decode(choices: Sequence[str], output: np.ndarray) -> Prediction:
    label = int(output.argmax())
    return {"label": label, "choice": choices[label], "probabilities": np.round(softmax(output), 6).tolist()}
