"""Metrics of tags and of spans, in percent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from electra_fast.extras import require

Event = dict[str, Any]


def tag_accuracy(labels: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Words with the right tag, over all words of all sentences."""
    pairs = [pair for gold, found in zip(labels, predicted, strict=True) for pair in zip(gold, found, strict=True)]
    return 100 * sum(gold == found for gold, found in pairs) / len(pairs) if pairs else 0.0


def entity_scores(labels: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """seqeval's precision, recall and F1 of entities over all types (micro), and `f1_TYPE` of each type.

    An entity is right where its first word, last word and type are. seqeval's default mode, which is conlleval's; of
    IOB2 without an I that begins an entity, as `Tagging` makes it, its strict mode says the same.
    """
    seqeval = require("seqeval.metrics.sequence_labeling", extra="finetune", purpose="Metrics of entities")
    gold, found = [list(tags) for tags in labels], [list(tags) for tags in predicted]
    scores: dict[str, float] = {}
    micro = seqeval.precision_recall_fscore_support(gold, found, average="micro", zero_division=0)
    for name, value in zip(("precision", "recall", "f1"), micro, strict=False):
        scores[name] = 100 * float(value)
    types = sorted({tag[2:] for sentence in [*gold, *found] for tag in sentence if tag != "O"})
    by_type = seqeval.precision_recall_fscore_support(gold, found, average=None, zero_division=0)[2]
    return scores | {f"f1_{name}": 100 * float(value) for name, value in zip(types, by_type, strict=True)}


def event_scores(labels: Sequence[Sequence[Event]], predicted: Sequence[Sequence[Event]]) -> dict[str, float]:
    """Micro F1 (and precision, recall) of what makes events, by the usual definitions for ACE (Li et al. 2013).

    A trigger is identified where its span is right, classified (`trigger_f1`) where its type is too. An argument is
    identified where its span and its event's type are those of an argument in the text, classified (`argument_f1`)
    where its role is too; of which trigger of that type it is does not matter. `f1` is over classified triggers and
    arguments together. What is there twice counts once.

    Args:
        labels, predicted: the events of each text, {"type", "trigger": {"start", "end"}, "arguments": [{"role",
            "start", "end"}]}.
    """
    scores: dict[str, float] = {}
    for name, facts in _FACTS.items():
        precision, recall, f1 = _set_scores(
            *([set(facts(events)) for events in texts] for texts in (labels, predicted))
        )
        scores |= {f"{name}f1": f1, f"{name}precision": precision, f"{name}recall": recall}
    return scores


def _triggers(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    return [(*_bounds(event["trigger"]), event["type"]) for event in events]


def _arguments(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    return [(*_bounds(part), event["type"], part["role"]) for event in events for part in event["arguments"]]


_FACTS = {
    "": lambda events: [*_triggers(events), *_arguments(events)],
    "trigger_": _triggers,
    "trigger_identification_": lambda events: [trigger[:2] for trigger in _triggers(events)],
    "argument_": _arguments,
    "argument_identification_": lambda events: [argument[:3] for argument in _arguments(events)],
}


def _bounds(span: dict[str, Any]) -> tuple[int, int]:
    return span["start"], span["end"]


def _set_scores(labels: Iterable[set[Any]], predicted: Iterable[set[Any]]) -> tuple[float, float, float]:
    """Precision, recall and F1 of what was found in each text against what is there, over all texts."""
    right = there = found = 0
    for gold, guess in zip(labels, predicted, strict=True):
        right += len(gold & guess)
        there += len(gold)
        found += len(guess)
    precision = 100 * right / found if found else 0.0
    recall = 100 * right / there if there else 0.0
    return precision, recall, 200 * right / (found + there) if found + there else 0.0
