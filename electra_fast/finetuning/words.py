"""Sentences as words: read, tokenized, cut into windows, made into features whose words are labelled.

The first token of a word is labelled and predicted (as in the original), its others are not. No word is left out: a
sentence longer than a feature becomes several, which overlap, so that words at a cut are seen with what is around them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from electra_fast.arguments import shown
from electra_fast.data.collator import IGNORED_LABEL
from electra_fast.finetuning.tables import Row
from electra_fast.finetuning.task import Example, Feature, Output

_OVERLAP = 4  # of a window, one part in so many is seen in the window before too
_OWN_WORD = r"\p{Han}|\p{Hiragana}|\p{Katakana}"  # written without blanks: each character is a word, as BERT has it


class Word(NamedTuple):
    """A word's tokens, and which of them is labelled."""

    ids: list[int]
    labelled: int = 0


class Window(NamedTuple):
    """Words `start` to `end` of a sentence, of which `first` to `last` are labelled and predicted here."""

    start: int
    end: int
    first: int
    last: int


def read_words(row: Row) -> Example:
    """A row's words: its "tokens", or the words of its "text", which come with "text" and "offsets", as `split_text`.

    Raises:
        ValueError: neither is there, or it is of the wrong type.
    """
    if "tokens" not in row.values and "text" in row.values:
        text = row.values["text"]
        if not isinstance(text, str):
            raise row.error(f"text must be text; got {shown(text)}")
        words, offsets = split_text(text)
        return {"text": text, "words": words, "offsets": offsets}
    tokens = row.get("tokens")
    if not (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)):
        raise row.error(f"tokens must be a list of texts; got {shown(tokens)}")
    return {"words": tokens}


def split_text(text: str) -> tuple[list[str], list[list[int]]]:
    """Words of a text as BERT's tokenizers part them: at blanks, punctuation, and around Chinese characters.

    Returns:
        The words, and for each the places of its first character and after its last.
    """
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_OWN_WORD), "isolated"), pre_tokenizers.BertPreTokenizer()]
    )
    offsets = [[start, end] for _, (start, end) in splitter.pre_tokenize_str(text)]
    return [text[start:end] for start, end in offsets], offsets


def in_file(example: Example, start: int, end: int) -> dict[str, Any]:
    """A span of words as files say it: "start" and "end", in characters of a text, else in tokens; and its "text"."""
    if "text" not in example:
        return {"start": start, "end": end, "text": " ".join(example["words"][start:end])}
    first, last = example["offsets"][start][0], example["offsets"][end - 1][1]
    return {"start": first, "end": last, "text": example["text"][first:last]}


def in_words(example: Example, start: int, end: int) -> tuple[int, int]:
    """The words that a span of a file touches; start equals end where it touches none."""
    if "text" not in example:
        return start, end
    touched = [index for index, (first, last) in enumerate(example["offsets"]) if first < end and start < last]
    return (touched[0], touched[-1] + 1) if touched else (0, 0)


def tokenize_words(sentences: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[Word]]:
    """Each word's tokens; none for a word of nothing that the tokenizer knows, e.g. control characters."""
    if not sentences:
        return []
    encoded = tokenizer([list(words) for words in sentences], is_split_into_words=True, add_special_tokens=False)
    tokenized = []
    for number, words in enumerate(sentences):
        ids: list[list[int]] = [[] for _ in words]
        for token, word in zip(encoded["input_ids"][number], encoded.word_ids(number), strict=True):
            ids[word].append(token)
        tokenized.append([Word(tokens) for tokens in ids])
    return tokenized


def cut_into_windows(widths: Sequence[int], capacity: int) -> list[Window]:
    """Windows of words with at most `capacity` tokens, none of `widths` being more; each word is labelled in one."""
    windows: list[Window] = []
    start = first = 0
    while True:
        end, used = start, 0
        while end < len(widths) and used + widths[end] <= capacity:
            used += widths[end]
            end += 1
        if end == len(widths):
            return [*windows, Window(start, end, first, end)]
        # Back for what is seen twice, as long as the word at the cut has room.
        again, seen = end, 0
        room = min(capacity // _OVERLAP, capacity - widths[end])
        while again > first and seen + widths[again - 1] <= room:
            again -= 1
            seen += widths[again]
        middle = (again + end + 1) // 2
        windows.append(Window(start, end, first, middle))
        start, first = again, middle


def word_features(
    words: Sequence[Word],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    labels: Sequence[int] | None = None,
    second: Sequence[int] = (),
) -> list[Feature]:
    """[CLS] words [SEP], and `second` [SEP] if given, for each window of a sentence; at least one.

    Besides what the model reads, a feature has "words", the indices of the words labelled in it, and "positions", those
    of their tokens. Of a word longer than a feature the first tokens are kept.

    Args:
        labels: of each word; None: there are none.
        second: the tokens of a second text; at most half of a feature is used for it.
    """
    second = list(second[: max_length // 2 - 2])
    tail = [*second, tokenizer.sep_token_id] if second else []
    capacity = max(max_length - 2 - len(tail), 1)
    kept = [word._replace(ids=word.ids[:capacity]) for word in words]
    features = []
    for window in cut_into_windows([len(word.ids) for word in kept], capacity):
        ids = [tokenizer.cls_token_id]
        feature: Feature = {"words": [], "positions": []}
        for index in range(window.start, window.end):
            word = kept[index]
            if window.first <= index < window.last and word.labelled < len(word.ids):
                feature["words"].append(index)
                feature["positions"].append(len(ids) + word.labelled)
            ids += word.ids
        ids.append(tokenizer.sep_token_id)
        feature |= {"input_ids": ids + tail, "token_type_ids": [0] * len(ids) + [1] * len(tail)}
        if labels is not None:
            feature["labels"] = [IGNORED_LABEL] * len(feature["input_ids"])
            for index, position in zip(feature["words"], feature["positions"], strict=True):
                feature["labels"][position] = labels[index]
        features.append(feature)
    return features


def predicted_labels(
    length: int, parts: Iterable[tuple[Feature, Output]], *, default: int, allowed: Sequence[int] | None = None
) -> list[int]:
    """The likeliest label of each of a sentence's `length` words; `default` for a word without a token.

    Args:
        parts: the features of the sentence with their outputs.
        allowed: labels to choose from; None: all.
    """
    found = [default] * length
    for feature, logits in parts:
        scores = np.asarray(logits)[feature["positions"]]
        best = scores.argmax(-1) if allowed is None else np.asarray(allowed)[scores[:, allowed].argmax(-1)]
        for index, label in zip(feature["words"], best.tolist(), strict=True):
            found[index] = label
    return found


def labelled(features: Iterable[Feature]) -> list[Feature]:
    """Those that teach something: a batch without a label has no mean loss."""
    return [feature for feature in features if feature["words"]]


def by_example(
    features: Sequence[Feature], outputs: Sequence[Output], count: int
) -> list[list[tuple[Feature, Output]]]:
    """Features with their outputs, in a list for each example."""
    groups: list[list[tuple[Feature, Output]]] = [[] for _ in range(count)]
    for feature, output in zip(features, outputs, strict=True):
        groups[feature["example"]].append((feature, output))
    return groups
