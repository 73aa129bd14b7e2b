"""Spans: how files write them, and how they become tags of words in IOB2 and come back from tags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from electra_fast.arguments import shown
from electra_fast.finetuning.tables import Row

OUTSIDE = "O"
_SAME = {"M": "I", "L": "E", "U": "S"}  # the prefixes of BMES and BILOU, in those of BIOES
_TAG = re.compile(r"(?:O|[BIMELSU]-.+)", re.DOTALL)


class Span(NamedTuple):
    """Words (or whatever the sequence is of) from `start` to before `end`, and what they are."""

    start: int
    end: int
    type: str


def is_span_tag(tag: str) -> bool:
    """Whether `tag` is O, or B-, I-, E-, S- (M-, L-, U-) and a type."""
    return _TAG.fullmatch(tag) is not None


def spans_of(tags: Iterable[str]) -> list[Span]:
    """The spans that tags of one sentence stand for: IOB1, IOB2, BIOES or BILOU, whatever the order of tags.

    By the rules of conlleval, which are also seqeval's default: B and S begin a span; I and E begin one where none of
    their type is open; E and S end it.
    """
    spans: list[Span] = []
    is_open = False
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        prefix = _SAME.get(prefix, prefix)
        if prefix == OUTSIDE:
            is_open = False
            continue
        if is_open and prefix in "IE" and spans[-1].type == kind:
            spans[-1] = spans[-1]._replace(end=place + 1)
        else:
            spans.append(Span(place, place + 1, kind))
        is_open = prefix in "BI"
    return spans


def iob2(length: int, spans: Iterable[Span]) -> list[str]:
    """Tags of `length` words. Of spans that overlap the first is kept: a word has one tag."""
    tags = [OUTSIDE] * length
    for start, end, kind in spans:
        if all(tag == OUTSIDE for tag in tags[start:end]):
            tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tags


def iob2_labels(kinds: Iterable[str]) -> list[str]:
    """The tags that spans of `kinds` need, O first."""
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]


def read_span(row: Row, value: Any, name: str, text: Sequence[Any]) -> tuple[int, int]:
    """A span of a text (in characters) or of its tokens: {"start": 3, "end": 5}, {"pos": [3, 5]} or [3, 5].

    Raises:
        ValueError: about the row, where it is none or lies outside `text`.
    """
    bounds = value
    if isinstance(value, dict):
        bounds = value.get("pos", [value.get("start"), value.get("end")])
    if not (isinstance(bounds, list) and len(bounds) == 2 and all(type(bound) is int for bound in bounds)):
        raise row.error(f'{name} must be {{"start": 3, "end": 5}} or [3, 5], end exclusive; got {shown(value)}')
    start, end = bounds
    if not 0 <= start < end <= len(text):
        unit = "characters" if isinstance(text, str) else "tokens"
        raise row.error(f"{name} is [{start}, {end}), which is no part of the {len(text):,} {unit}")
    return start, end
