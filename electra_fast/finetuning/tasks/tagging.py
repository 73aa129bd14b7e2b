"""A tag for each word: named entities, chunks, parts of speech."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from electra_fast.arguments import nearest, shown
from electra_fast.finetuning import conll
from electra_fast.finetuning.iob import OUTSIDE, iob2, iob2_labels, is_span_tag, spans_of
from electra_fast.finetuning.metrics.tagging import entity_scores, tag_accuracy
from electra_fast.finetuning.model import label_names
from electra_fast.finetuning.tables import Row
from electra_fast.finetuning.task import Example, Feature, Output, Prediction, Task, is_labelled
from electra_fast.finetuning.words import (
    by_example,
    in_file,
    labelled,
    predicted_labels,
    read_words,
    tokenize_words,
    word_features,
)

# What the files of well-known data are called.
_PUBLISHED = {
    "train": ("wnut17train.conll", "eng.train"),
    "dev": ("emerging.dev.conll", "eng.testa"),
    "test": ("emerging.test.annotated", "eng.testb"),
}


@dataclass
class Tagging(Task):
    """A tag for each word, from CoNLL files, or JSON lines with "tokens" and "tags", or "text" to predict.

    Tags of spans (IOB1, IOB2, BIOES, BILOU) all become IOB2. They are known by their prefixes: where no training tag
    has one, tags are plain classes, such as parts of speech.

    Attributes:
        word: column of the word in a CoNLL file, by number from 1 (or from -1 backwards), or both columns by name if
            the first row has the names.
        tag: column of the tag; None: the last.
        plain: tags are classes even if they look like those of spans.
    """

    name: ClassVar[str] = "tagging"
    title: ClassVar[str] = "a tag for each word: entities, chunks, parts of speech (CoNLL, JSONL)"
    head: ClassVar[str] = "tokens"
    metric: ClassVar[str] = "f1"
    endings: ClassVar[tuple[str, ...]] = (*conll.ENDINGS, ".jsonl")

    max_length: int = 256  # as in the original
    word: str = "1"
    tag: str | None = None
    plain: bool = False

    def __post_init__(self) -> None:
        if self.labels is not None and not any(map(_is_of_span, self.labels)):
            self.plain = True
        if self.plain:
            self.metric = "accuracy"

    def files(self, path: Path) -> dict[str, Path]:
        found = {split: path / name for split, names in _PUBLISHED.items() for name in names if (path / name).is_file()}
        return found or super().files(path)

    def read(self, file: Path, split: str) -> list[Example]:
        if file.suffix == ".jsonl":
            return super().read(file, split)
        sentences = conll.read_conll(file, self.word, self.tag, has_tags=_has_tags(split))
        examples = [
            {"words": words} if tags is None else {"words": words, "label": tags} for words, tags, _ in sentences
        ]
        return self._with_checked_tags(examples, [sentence.rows for sentence in sentences])

    def from_rows(self, rows: Iterable[Row], split: str) -> list[Example]:
        has_tags = _has_tags(split)
        examples, places = [], []
        for row in rows:
            example = read_words(row)
            if has_tags or (has_tags is None and "tags" in row.values):
                tags = row.get("tags")
                if not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
                    raise row.error(f"tags must be a list of texts; got {shown(tags)}")
                if len(tags) != len(example["words"]):
                    raise row.error(f"{len(tags):,} tags of {len(example['words']):,} tokens: expected one for each")
                example["label"] = tags
            examples.append(example)
            places.append([row] * len(example["words"]))
        return self._with_checked_tags(examples, places)

    def _with_checked_tags(self, examples: list[Example], rows: Sequence[Sequence[Row]]) -> list[Example]:
        """The examples with tags in one scheme; `rows` say where each word stands."""
        is_of_spans = not self.plain and (
            self.labels is not None or any(_is_of_span(tag) for example in examples for tag in example.get("label", ()))
        )
        for example, numbers in zip(examples, rows, strict=True):
            if "label" in example:
                example["label"] = self._checked(example["label"], numbers, is_of_spans)
        return examples

    def _checked(self, tags: Sequence[str], rows: Sequence[Row], is_of_spans: bool) -> list[str]:
        """Tags in IOB2 if they are of spans; all of them known, if the labels are."""
        if is_of_spans:
            for tag, row in zip(tags, rows, strict=True):
                if not is_span_tag(tag):
                    raise row.error(
                        f"unknown tag {tag!r}: expected O, or B-, I-, E- or S- and a type (plain: tags are classes)"
                    )
            tags = iob2(len(tags), spans_of(tags))
        for tag, row in zip(tags, rows, strict=True):
            if self.labels is not None and tag not in self.labels:
                advice = f"{nearest(tag, self.labels)} (tags: {label_names(self.labels)})"
                raise row.error(f"unknown tag {tag!r}{advice}")
        return list(tags)

    def fit(self, examples: Sequence[Example]) -> None:
        counts = Counter(tag for example in examples for tag in example["label"])
        if len(counts) < 2:
            raise ValueError(f"all training words have the tag {next(iter(counts), OUTSIDE)!r}: nothing to learn")
        if self.labels is None and not self.plain and any(map(_is_of_span, counts)):
            self.labels = iob2_labels(sorted({tag[2:] for tag in counts if tag != OUTSIDE}))
        elif self.labels is None:
            self.labels = sorted(counts, key=lambda tag: (-counts[tag], tag))  # the first is guessed without a token
        self.__post_init__()

    def encode(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, training: bool
    ) -> list[Feature]:
        index = {label: number for number, label in enumerate(self.labels)}
        features = []
        tokenized = tokenize_words([example["words"] for example in examples], tokenizer)
        for number, (example, words) in enumerate(zip(examples, tokenized, strict=True)):
            labels = [index[tag] for tag in example["label"]] if "label" in example else None
            parts = word_features(words, tokenizer, self.max_length, labels=labels)
            features += [part | {"example": number} for part in (labelled(parts) if training else parts)]
        return features

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Prediction]:
        default = self.labels.index(OUTSIDE) if OUTSIDE in self.labels else 0
        predictions = []
        for example, parts in zip(examples, by_example(features, outputs, len(examples)), strict=True):
            labels = predicted_labels(len(example["words"]), parts, default=default)
            tags = [self.labels[label] for label in labels]
            predictions.append(self._prediction(example, tags))
        return predictions

    def _prediction(self, example: Example, tags: list[str]) -> Prediction:
        if self.plain:
            return {"tokens": example["words"], "tags": tags}
        spans = spans_of(tags)
        entities = [{"type": kind, **in_file(example, start, end)} for start, end, kind in spans]
        return {"tokens": example["words"], "tags": iob2(len(tags), spans), "entities": entities}

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        gold = [example["label"] for example in examples]
        found = [prediction["tags"] for prediction in predictions]
        accuracy = {"accuracy": tag_accuracy(gold, found)}
        return accuracy if self.plain else entity_scores(gold, found) | accuracy


def _has_tags(split: str) -> bool | None:
    """Whether a split's words have tags; None: if the file gives them."""
    return False if split == "predict" else is_labelled(split) or None


def _is_of_span(tag: str) -> bool:
    return tag != OUTSIDE and is_span_tag(tag)
