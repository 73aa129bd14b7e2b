"""Words and windows: each word is labelled once, at its first token, however long the sentence is."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from transformers import BertTokenizer

from electra_fast.data.collator import IGNORED_LABEL
from electra_fast.finetuning.words import (
    Word,
    cut_into_windows,
    in_file,
    in_words,
    predicted_labels,
    split_text,
    tokenize_words,
    word_features,
)


def make_tokenizer() -> BertTokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##s", "the", "e", "北", "京"]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, do_lower_case=True)


def test_windows_label_each_word_once_and_fit(rng_seed: int) -> None:
    """Besides: a word at a cut is seen with at least one word of the other side, where there is room for one."""
    draw = random.Random(rng_seed)
    for _ in range(400):
        capacity = draw.randrange(1, 20)
        widths = [draw.randrange(min(5, capacity + 1)) for _ in range(draw.randrange(60))]
        windows = cut_into_windows(widths, capacity)
        assert [index for window in windows for index in range(window.first, window.last)] == list(range(len(widths)))
        for window in windows:
            assert window.start <= window.first <= window.last <= window.end
            assert sum(widths[window.start : window.end]) <= capacity
        for window, following in itertools.pairwise(windows):
            assert window.start <= following.start <= window.last <= window.end
            if capacity >= 16:  # a quarter is 4 tokens, which the widest word needs
                assert following.start < window.end


@pytest.mark.parametrize(
    ("widths", "capacity", "expected"),
    [
        ([1] * 4, 4, [(0, 4, 0, 4)]),
        ([], 4, [(0, 0, 0, 0)]),
        ([1] * 10, 8, [(0, 8, 0, 7), (6, 10, 7, 10)]),  # a quarter of 8 is seen twice, its middle is the border
        ([4, 4, 4], 4, [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]),  # no room to see anything twice
    ],
)
def test_windows_by_hand(widths: list[int], capacity: int, expected: list[tuple[int, ...]]) -> None:
    assert cut_into_windows(widths, capacity) == expected


def test_first_token_of_a_word_is_labelled() -> None:
    tokenizer = make_tokenizer()
    (words,) = tokenize_words([["the", "Playings", "\u200b", "北京", "😂", "e\u0301"]], tokenizer)
    assert [word.ids for word in words] == [[8], [5, 6, 7], [], [10, 11], [1], [9]]
    (feature,) = word_features(words, tokenizer, 20, labels=[0, 1, 2, 3, 4, 5])
    assert feature == {
        "input_ids": [2, 8, 5, 6, 7, 10, 11, 1, 9, 3],
        "token_type_ids": [0] * 10,
        "words": [0, 1, 3, 4, 5],  # the tokenizer makes nothing of a zero-width space
        "positions": [1, 2, 5, 7, 8],
        "labels": [IGNORED_LABEL, 0, 1, IGNORED_LABEL, IGNORED_LABEL, 3, IGNORED_LABEL, 4, 5, IGNORED_LABEL],
    }


def test_a_second_text_is_in_every_window() -> None:
    words = [Word([5])] * 10
    features = word_features(words, make_tokenizer(), 10, second=[8, 9])
    for feature in features:
        assert len(feature["input_ids"]) <= 10
        assert feature["input_ids"][-4:] == [3, 8, 9, 3]
        assert feature["token_type_ids"][-3:] == [1, 1, 1]
        assert sum(feature["token_type_ids"]) == 3
    assert [index for feature in features for index in feature["words"]] == list(range(10))


def test_long_words_and_sentences_keep_every_word(rng_seed: int) -> None:
    """A word longer than a feature too; its first token is there."""
    draw = random.Random(rng_seed)
    words = [Word([100 + index, *[5] * draw.choice([0, 1, 40])]) for index in range(50)]
    features = word_features(words, make_tokenizer(), 12, labels=list(range(50)))
    assert all(len(feature["input_ids"]) <= 12 for feature in features)
    seen = {}
    for feature in features:
        for index, position in zip(feature["words"], feature["positions"], strict=True):
            assert feature["input_ids"][position] == 100 + index
            assert feature["labels"][position] == index
            assert index not in seen
            seen[index] = position
    assert sorted(seen) == list(range(50))
    assert sum(label != IGNORED_LABEL for feature in features for label in feature["labels"]) == 50


def test_predicted_labels() -> None:
    parts = [
        ({"words": [0, 1], "positions": [1, 3]}, np.array([[9, 0, 0], [0, 1, 2], [9, 9, 9], [3, 2, 1]])),
        ({"words": [3], "positions": [1]}, np.array([[9, 0, 0], [0, 5, 4]])),
        ({"words": [], "positions": []}, np.zeros((2, 3))),
    ]
    assert predicted_labels(4, parts, default=2) == [2, 0, 2, 1]
    assert predicted_labels(4, parts, default=0, allowed=[0, 2]) == [2, 0, 0, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hi, U.S.", ["Hi", ",", "U", ".", "S", "."]),
        ("a😂b c\u0301d", ["a😂b", "c\u0301d"]),
        ("去北京 x东", ["去", "北", "京", "x", "东"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        (" \t\n", []),
        ("", []),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    found, offsets = split_text(text)
    assert found == words
    assert [text[start:end] for start, end in offsets] == words


def test_spans_in_characters_and_in_words() -> None:
    text = "去北京 now!"
    words, offsets = split_text(text)
    example = {"text": text, "words": words, "offsets": offsets}
    assert in_file(example, 1, 3) == {"start": 1, "end": 3, "text": "北京"}
    assert in_words(example, 1, 3) == (1, 3)
    assert in_words(example, 5, 6) == (3, 4)  # within a word
    assert in_words(example, 3, 4) == (0, 0)  # a blank
    assert in_file({"words": words}, 3, 5) == {"start": 3, "end": 5, "text": "now !"}
