"""Events: the words that name them, and who or what takes part in them in which role.

One model tags words twice. First it reads the sentence and tags triggers, each with its type. Then, once for each
trigger, it reads the sentence with that trigger between markers, and its type as second text, and tags the arguments.
The tags of both are one set, of which each reading uses its own part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from electra_fast.arguments import nearest, shown
from electra_fast.finetuning.iob import OUTSIDE, Span, iob2, iob2_labels, read_span, spans_of
from electra_fast.finetuning.markers import find_markers
from electra_fast.finetuning.metrics.tagging import event_scores
from electra_fast.finetuning.model import label_names
from electra_fast.finetuning.tables import Row
from electra_fast.finetuning.task import Example, Feature, Output, Prediction, Task, is_labelled
from electra_fast.finetuning.words import (
    Word,
    by_example,
    in_file,
    in_words,
    labelled,
    predicted_labels,
    read_words,
    tokenize_words,
    word_features,
)

_TRIGGER, _ARGUMENT = "trigger:", "argument:"  # before an event's type or an argument's role: the kind of a tag


@dataclass
class Events(Task):
    """Triggers and arguments of events, from JSON lines with "tokens" or "text", and "events".

    An event is {"type": "Attack", "trigger": {"start": 3, "end": 4}, "arguments": [{"role": "Attacker", "start": 0,
    "end": 1}]}; spans are counted in tokens, or in characters of the text, end exclusive. Where triggers of one text
    or arguments of one event overlap, the model learns the first: a word has one tag. Scores count all.

    Attributes:
        markers: a word of the tokenizer's to mark triggers with; None: the first of @ # $ * ... that it knows.
    """

    name: ClassVar[str] = "events"
    title: ClassVar[str] = "events: trigger words, and arguments with their roles (JSONL)"
    head: ClassVar[str] = "tokens"
    metric: ClassVar[str] = "f1"
    endings: ClassVar[tuple[str, ...]] = (".jsonl",)

    max_length: int = 256
    markers: list[str] | None = None

    def read(self, file: Path, split: str) -> list[Example]:
        if file.suffix not in self.endings:
            raise ValueError(f"{file}: expected a file whose name ends in {', '.join(self.endings)}")
        return super().read(file, split)

    def from_rows(self, rows: Iterable[Row], split: str) -> list[Example]:
        examples = []
        for row in rows:
            example = read_words(row)
            if is_labelled(split) or (split != "predict" and "events" in row.values):
                example["label"] = [self._event(row, example, event) for event in _objects(row, row.values, "events")]
            examples.append(example)
        return examples

    def _event(self, row: Row, example: Example, event: dict[str, Any]) -> dict[str, Any]:
        """An event whose spans are {"start", "end"} in what the file counts."""
        kind = self._known(row, event, "type", _TRIGGER)
        if "trigger" not in event:
            raise row.error(f"an event has no trigger: {shown(event)}")
        arguments = _objects(row, event, "arguments") if "arguments" in event else []
        return {
            "type": kind,
            "trigger": _span(row, example, event["trigger"], "trigger"),
            "arguments": [
                {"role": self._known(row, argument, "role", _ARGUMENT), **_span(row, example, argument, "an argument")}
                for argument in arguments
            ],
        }

    def _known(self, row: Row, of: dict[str, Any], name: str, kind: str) -> str:
        value = of.get(name)
        if not isinstance(value, str) or not value:
            raise row.error(f"{name} must be text; got {shown(value)} in {shown(of)}")
        if self.labels is not None and f"B-{kind}{value}" not in self.labels:
            known = [label.removeprefix(f"B-{kind}") for label in self.labels if label.startswith(f"B-{kind}")]
            raise row.error(f"unknown {name} {value!r}{nearest(value, known)} ({name}s: {label_names(known)})")
        return value

    def fit(self, examples: Sequence[Example]) -> None:
        events = [event for example in examples for event in example["label"]]
        if not events:
            raise ValueError("the training texts hold no event: nothing to learn")
        if self.labels is None:
            types = sorted({_TRIGGER + event["type"] for event in events})
            roles = sorted({_ARGUMENT + argument["role"] for event in events for argument in event["arguments"]})
            self.labels = iob2_labels([*types, *roles])

    def encode(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, training: bool
    ) -> list[Feature]:
        """Features that find triggers; in training also those that find the arguments of known triggers."""
        features = []
        tokenized = tokenize_words([example["words"] for example in examples], tokenizer)
        for number, (example, words) in enumerate(zip(examples, tokenized, strict=True)):
            events = [_in_words(example, event) for event in example["label"]] if "label" in example else None
            tags = None if events is None else self._labels(len(words), [trigger for trigger, _ in events])
            parts = word_features(words, tokenizer, self.max_length, labels=tags)
            features += [part | {"example": number} for part in (labelled(parts) if training else parts)]
            if training:
                for trigger, arguments in events:
                    parts = self._argument_features(words, tokenizer, trigger, self._labels(len(words), arguments))
                    features += [part | {"example": number} for part in labelled(parts)]
        return features

    def encode_again(
        self,
        examples: Sequence[Example],
        features: Sequence[Feature],
        outputs: Sequence[Output],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Feature]:
        """Features that find the arguments of the triggers that were found."""
        again = []
        tokenized = tokenize_words([example["words"] for example in examples], tokenizer)
        found = by_example(features, outputs, len(examples))
        for number, (words, parts) in enumerate(zip(tokenized, found, strict=True)):
            for trigger in self._spans(len(words), parts, _TRIGGER):
                more = self._argument_features(words, tokenizer, trigger)
                again += [part | {"example": number, "trigger": list(trigger)} for part in more]
        return again

    def _argument_features(
        self,
        words: Sequence[Word],
        tokenizer: PreTrainedTokenizerBase,
        trigger: Span,
        labels: Sequence[int] | None = None,
    ) -> list[Feature]:
        """The sentence with the trigger between markers; then its type and words, which every window has."""
        (marker,) = find_markers(tokenizer, 1, self.markers)
        kind = tokenizer(trigger.type.removeprefix(_TRIGGER), add_special_tokens=False)["input_ids"]
        named = [token for word in words[trigger.start : trigger.end] for token in word.ids]
        marked = list(words)
        first, last = trigger.start, trigger.end - 1
        marked[first] = Word([*marker, *marked[first].ids], len(marker))
        marked[last] = Word([*marked[last].ids, *marker], marked[last].labelled)
        return word_features(
            marked, tokenizer, self.max_length, labels=labels, second=[*kind, *marker, *named, *marker]
        )

    def _labels(self, length: int, spans: Sequence[Span]) -> list[int]:
        index = {label: number for number, label in enumerate(self.labels)}
        return [index[tag] for tag in iob2(length, spans)]

    def _spans(self, length: int, parts: Sequence[tuple[Feature, Output]], kind: str) -> list[Span]:
        """What one reading of a sentence found, of the tags that it uses."""
        outside = self.labels.index(OUTSIDE)
        allowed = [outside, *(i for i, label in enumerate(self.labels) if label[2:].startswith(kind))]
        found = predicted_labels(length, parts, default=outside, allowed=allowed)
        return spans_of(self.labels[label] for label in found)

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Prediction]:
        predictions = []
        for example, parts in zip(examples, by_example(features, outputs, len(examples)), strict=True):
            length = len(example["words"])
            first = [part for part in parts if "trigger" not in part[0]]
            events = []
            for trigger in self._spans(length, first, _TRIGGER):
                second = [part for part in parts if part[0].get("trigger") == list(trigger)]
                arguments = self._spans(length, second, _ARGUMENT)
                events.append(
                    {
                        "type": trigger.type.removeprefix(_TRIGGER),
                        "trigger": in_file(example, trigger.start, trigger.end),
                        "arguments": [
                            {"role": role.removeprefix(_ARGUMENT), **in_file(example, start, end)}
                            for start, end, role in arguments
                        ],
                    }
                )
            source = {"text": example["text"]} if "text" in example else {"tokens": example["words"]}
            predictions.append(source | {"events": events})
        return predictions

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        return event_scores(
            [example["label"] for example in examples], [prediction["events"] for prediction in predictions]
        )


def _objects(row: Row, of: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = of[name] if of is not row.values else row.get(name)
    if not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        raise row.error(f"{name} must be a list of objects; got {shown(value)}")
    return value


def _span(row: Row, example: Example, value: Any, name: str) -> dict[str, int]:
    start, end = read_span(row, value, name, example.get("text", example["words"]))
    first, last = in_words(example, start, end)
    if first == last:
        raise row.error(f"{name} is [{start}, {end}), where no word stands")
    return {"start": start, "end": end}


def _in_words(example: Example, event: dict[str, Any]) -> tuple[Span, list[Span]]:
    """The trigger with its type, and the arguments with their roles, as spans of words."""

    def words(span: dict[str, int], kind: str) -> Span:
        return Span(*in_words(example, span["start"], span["end"]), kind)

    arguments = [words(argument, _ARGUMENT + argument["role"]) for argument in event["arguments"]]
    return words(event["trigger"], _TRIGGER + event["type"]), arguments
