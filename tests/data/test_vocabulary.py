"""Tokens of one tokenizer found in another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer

from electra_fast.data.tokenizer_training import TRAINERS
from electra_fast.data.vocabulary import match_vocabularies

WORDS = ["the", "Paris", "café", "don't", "walking", "walked", "naïve", "漢字", "über", "123", "talking", "talked"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece(*tokens: str, lowercase: bool = True, special: list[str] = SPECIAL) -> BertTokenizer:
    vocabulary = {token: index for index, token in enumerate([*special, *tokens])}
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase, **dict(zip(roles, special, strict=True)))


def test_the_same_text_at_the_same_place():
    old = wordpiece("ing", "##ing", "play", "##s")
    new = wordpiece("##ing", "play", "s")  # not "##s"
    match = match_vocabularies(old, new, old_size=len(old), with_pieces=False)
    assert match.old_ids == ((0,), (1,), (2,), (3,), (4,), (6,), (7,), ())
    assert (match.same, match.spelled, match.pieces, match.unmatched) == (7, 0, 0, 1)
    assert not match.is_identity
    assert match_vocabularies(old, old, old_size=len(old)).is_identity


def test_special_tokens_go_by_what_they_are_for():
    old = wordpiece("a", special=["<pad>", "<unk>", "<s>", "</s>", "<mask>"])
    new = wordpiece("a", special=["[MASK]", "[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    new.mask_token, new.pad_token, new.unk_token, new.cls_token, new.sep_token = (
        "[MASK]",
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
    )
    assert match_vocabularies(old, new, old_size=len(old)).old_ids == ((4,), (0,), (1,), (2,), (3,), (5,))


def test_what_the_new_tokenizer_would_write_like_that():
    """Into lower case: a token with both spellings in the old vocabulary keeps its own; into cased, pieces are used."""
    cased, lower = wordpiece("Paris", "the", "The", "É", lowercase=False), wordpiece("paris", "the", "e", "rome")
    match = match_vocabularies(cased, lower, old_size=len(cased))
    assert match.old_ids[5:] == ((5,), (6,), (8,), ())
    assert (match.same, match.spelled, match.pieces, match.unmatched) == (6, 2, 0, 1)
    back = match_vocabularies(lower, cased, old_size=len(lower))
    assert back.old_ids[5:] == ((5,), (6,), (6,), (7,))
    assert (back.same, back.pieces) == (6, 3)


def test_pieces():
    old = wordpiece("un", "##do", "##ing", "play", "##i", "##n", "##g", "'", "t")
    new = wordpiece("playing", "undoing", "##doing", "##ingx", "unknown", "##in", "can't")
    match = match_vocabularies(old, new, old_size=len(old))
    tokens = [[old.convert_ids_to_tokens(index) for index in ids] for ids in match.old_ids[5:]]
    assert tokens == [["play", "##ing"], ["un", "##do", "##ing"], ["##do", "##ing"], [], [], ["##i", "##n"], []]
    assert match.unmatched == 3
    # Ids beyond the table are nobody's.
    assert match_vocabularies(old, old, old_size=len(old) - 1).old_ids[-1] == ()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    g = np.random.default_rng(5)
    file = tmp_path_factory.mktemp("vocabulary") / "text.txt"
    file.write_text("\n\n".join(" ".join(g.choice(WORDS, 30)) for _ in range(60)), encoding="utf-8")
    return file


@pytest.mark.parametrize("ours", TRAINERS)
@pytest.mark.parametrize("theirs", TRAINERS)
def test_between_kinds_of_tokenizers(text, ours, theirs):
    """What stands for a word's piece has its text, and begins a word where it does."""
    old, new = (TRAINERS[name](text, None, vocab_size=330) for name in (theirs, ours))
    match = match_vocabularies(old, new, old_size=len(old))
    assert list(match.old_ids[:5]) == [(index,) for index in range(5)]
    if ours == theirs:
        assert match.is_identity
        return
    checked = 0
    for index, ids in enumerate(match.old_ids[5:], start=5):
        if len(ids) == 1:  # the alphabet of bytes has capital letters, which the old tokenizer reads as small ones
            texts = [tokenizer.decode([i]).removeprefix("##").strip() for tokenizer, i in ((new, index), (old, ids[0]))]
            assert texts[0].lower() == texts[1], texts
            checked += 1
    assert checked > 10
    words = {word: new(f" {word}", add_special_tokens=False)["input_ids"] for word in WORDS}
    whole = {word: ids[0] for word, ids in words.items() if len(ids) == 1}
    assert len(whole) >= (1 if ours == "unigram" else 3)  # which cuts so small a text into stems and endings
    for word, index in whole.items():
        pieces = old(f" {word}", add_special_tokens=False)["input_ids"]
        assert list(match.old_ids[index]) == ([] if old.unk_token_id in pieces else pieces), word
