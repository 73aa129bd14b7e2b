"""Relations: what two marked parts of a text have to do with each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, NamedTuple

from transformers import PreTrainedTokenizerBase

from electra_fast.arguments import shown
from electra_fast.finetuning.iob import read_span
from electra_fast.finetuning.markers import find_markers
from electra_fast.finetuning.metrics.relation import relation_scores
from electra_fast.finetuning.tables import Row
from electra_fast.finetuning.task import Example, Feature, Output, Prediction, Task, is_labelled
from electra_fast.finetuning.tasks.classification import decode_class, fit_labels, read_label

_PARTS = ("head", "tail")


@dataclass
class Relation(Task):
    """One label for two spans of a text, from JSON lines.

    The spans stand between markers, each with its type first where the file says it: `@ person @ Ada @ was born in
    # city # London #`. Of a text that is too long, the tokens nearest to the markers are kept.

    Attributes:
        text: column of the text, in whose characters spans are counted, end exclusive.
        tokens: column of the tokens, in which spans are counted where a row has it.
        head_span: column of the first span: {"start": 3, "end": 5, "type": "person"} (type optional),
            {"pos": [3, 5]}, or [3, 5].
        tail_span: column of the second span.
        label: column of the relation.
        no_relation: the label that says there is none, which F1 leaves out.
        markers: two words of the tokenizer's to mark with; None: the first of @ # $ * ... that it knows.
    """

    name: ClassVar[str] = "relation"
    title: ClassVar[str] = "what two marked parts of a text have to do with each other (JSONL)"
    head: ClassVar[str] = "sequence"
    metric: ClassVar[str] = "f1"
    endings: ClassVar[tuple[str, ...]] = (".jsonl",)

    max_length: int = 256
    text: str = "text"
    tokens: str = "tokens"
    head_span: str = "head"
    tail_span: str = "tail"
    label: str = "label"
    no_relation: str = "no_relation"
    markers: list[str] | None = None

    def read(self, file: Path, split: str) -> list[Example]:
        if file.suffix not in self.endings:
            raise ValueError(f"{file}: expected a file whose name ends in {', '.join(self.endings)}")
        return super().read(file, split)

    def from_rows(self, rows: Iterable[Row], split: str) -> list[Example]:
        has_labels = is_labelled(split)
        return [self._example(row, has_labels, split != "predict") for row in rows]

    def _example(self, row: Row, is_labelled: bool, may_be_labelled: bool) -> Example:
        unit = self._unit(row)
        example: Example = {"text": unit if isinstance(unit, str) else " ".join(unit)}
        ends = list(range(1, len(unit) + 1)) if isinstance(unit, str) else _ends(unit)  # in characters
        for part, column in zip(_PARTS, (self.head_span, self.tail_span), strict=True):
            value = row.get(column)
            start, end = read_span(row, value, column, unit)
            example[part] = [ends[start] - len(unit[start]), ends[end - 1]]
            if isinstance(value, dict) and value.get("type") is not None:
                if not isinstance(value["type"], str):
                    raise row.error(f"type of {column} must be text; got {shown(value['type'])}")
                example[f"{part}_type"] = value["type"]
        if _cross(example["head"], example["tail"]):
            raise row.error(
                f"{self.head_span} and {self.tail_span} overlap: one may lie within the other, not cross or equal it"
            )
        if is_labelled or (may_be_labelled and row.has(self.label)):
            example["label"] = read_label(row, self.label, self.labels)
        return example

    def _unit(self, row: Row) -> str | list[str]:
        """What spans are counted in."""
        if self.tokens not in row.values:
            row.text(self.text)
            return row.values[self.text]
        tokens = row.values[self.tokens]
        if not (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)):
            raise row.error(f"{self.tokens} must be a list of texts; got {shown(tokens)}")
        return tokens

    def fit(self, examples: Sequence[Example]) -> None:
        self.labels = fit_labels(self.labels, examples)

    def encode(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, training: bool
    ) -> list[Feature]:
        markers = dict(zip(_PARTS, find_markers(tokenizer, 2, self.markers), strict=True))
        index = {label: number for number, label in enumerate(self.labels)}
        pieces = [_marked(example) for example in examples]
        texts = [piece.text for parts in pieces for piece in parts if piece.mark is None]
        tokenized = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
        features = []
        for number, (example, parts) in enumerate(zip(examples, pieces, strict=True)):
            ids = self._nearest(
                [(next(tokenized), False) if piece.mark is None else (markers[piece.mark], True) for piece in parts]
            )
            ids = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
            feature: Feature = {"input_ids": ids, "token_type_ids": [0] * len(ids), "example": number}
            if "label" in example:
                feature["labels"] = index[example["label"]]
            features.append(feature)
        return features

    def _nearest(self, pieces: Sequence[tuple[Sequence[int], bool]]) -> list[int]:
        """The tokens of all pieces, at most as many as fit: markers (those with True), and what is nearest to them."""
        ids = [token for tokens, _ in pieces for token in tokens]
        if len(ids) > self.max_length - 2:
            is_marker = [marks for tokens, marks in pieces for _ in tokens]
            places = [place for place, marks in enumerate(is_marker) if marks]
            near = sorted(range(len(ids)), key=lambda place: min(abs(place - marker) for marker in places))
            ids = [ids[place] for place in sorted(near[: self.max_length - 2])]
        return ids

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Prediction]:
        return [decode_class(logits, self.labels) for logits in outputs]

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        return relation_scores(
            [example["label"] for example in examples],
            [prediction["label"] for prediction in predictions],
            [label for label in self.labels if label != self.no_relation],
        )


def _ends(tokens: Sequence[str]) -> list[int]:
    """Where each token ends in the text that blanks join."""
    return [total + place for place, total in enumerate(accumulate(map(len, tokens)))]


def _cross(head: Sequence[int], tail: Sequence[int]) -> bool:
    """Whether spans share something, and neither is a part of the other, or both are the same."""
    (start, end), (other_start, other_end) = head, tail
    if start >= other_end or other_start >= end:
        return False
    return (start - other_start) * (end - other_end) > 0 or (start, end) == (other_start, other_end)


class _Piece(NamedTuple):
    """A part of the text, or the marker of a span."""

    text: str
    mark: str | None = None


def _marked(example: Example) -> list[_Piece]:
    """The text in pieces, with markers where spans begin (the outer first) and end (the inner first)."""
    marks = []
    for part in _PARTS:
        start, end = example[part]
        marker, kind = _Piece("", part), example.get(f"{part}_type")
        opening = [marker] if kind is None else [marker, _Piece(kind), marker]
        marks += [((start, 1, -end), opening), ((end, 0, -start), [marker])]
    pieces: list[_Piece] = []
    done = 0
    for (place, *_), inserted in sorted(marks, key=lambda mark: mark[0]):
        pieces += [_Piece(example["text"][done:place]), *inserted]
        done = place
    return [*pieces, _Piece(example["text"][done:])]
