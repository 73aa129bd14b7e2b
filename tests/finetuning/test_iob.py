"""Tags of spans: every scheme means what seqeval and conlleval say, and becomes IOB2."""

from __future__ import annotations

import random

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from electra_fast.finetuning.iob import Span, iob2, iob2_labels, is_span_tag, spans_of


def test_spans_are_those_of_seqeval(rng_seed: int) -> None:
    """Random tags of BIOES, in orders that no scheme allows too; seqeval's ends are inclusive."""
    draw = random.Random(rng_seed)
    tags = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "creative-work", "X"))]
    for _ in range(500):
        sentence = draw.choices(tags, k=draw.randrange(12))
        expected = [Span(start, end + 1, kind) for kind, start, end in get_entities(sentence)]
        assert spans_of(sentence) == expected
        assert spans_of(iob2(len(sentence), expected)) == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-PER I-PER O I-LOC", "B-PER I-PER O B-LOC"),  # IOB1: B only where two of a type touch
        ("I-PER B-PER I-PER I-LOC", "B-PER B-PER I-PER B-LOC"),
        ("B-PER I-PER O B-LOC B-LOC", "B-PER I-PER O B-LOC B-LOC"),  # IOB2 stays
        ("S-PER O B-LOC I-LOC E-LOC S-LOC", "B-PER O B-LOC I-LOC I-LOC B-LOC"),  # BIOES
        ("U-PER O B-LOC I-LOC L-LOC U-LOC", "B-PER O B-LOC I-LOC I-LOC B-LOC"),  # BILOU
        ("B-W M-W E-W S-W", "B-W I-W I-W B-W"),  # BMES
        ("B-A-b I-A-b I-A", "B-A-b I-A-b B-A"),  # a type with a hyphen
        ("O", "O"),
        ("", ""),
    ],
)
def test_any_scheme_becomes_iob2(tags: str, expected: str) -> None:
    words = tags.split()
    assert iob2(len(words), spans_of(words)) == expected.split()


def test_of_overlapping_spans_the_first_is_kept() -> None:
    assert iob2(4, [Span(1, 3, "A"), Span(2, 4, "B"), Span(3, 4, "C")]) == ["O", "B-A", "I-A", "B-C"]


@pytest.mark.parametrize(
    ("tag", "expected"),
    [("O", True), ("B-PER", True), ("U-x", True), ("NN", False), ("B-", False), ("B", False), ("X-PER", False)],
)
def test_what_looks_like_a_tag_of_spans(tag: str, expected: bool) -> None:
    assert is_span_tag(tag) is expected


def test_labels_open_with_o() -> None:
    assert iob2_labels(["LOC", "PER"]) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
