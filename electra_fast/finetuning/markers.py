"""Tokens that mark a part of a text.

They are tokens that the model knows, punctuation above all: its embeddings stay as they were pretrained, no tokenizer
and no table grows, and on TACRED such markers do as well as new tokens or better (Zhou and Chen 2022, "An Improved
Baseline for Sentence-level Relation Extraction").
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_CANDIDATES = ("@", "#", "$", "*", "^", "~", "|", "%", "&", "+", "=", "/", ";", ":", "-", "!", "?", ",", ".")


def find_markers(tokenizer: PreTrainedTokenizerBase, count: int, given: Sequence[str] | None = None) -> list[list[int]]:
    """The tokens of `count` markers: those given, or the first of @ # $ * ... that the tokenizer knows.

    Raises:
        ValueError: it knows too few, or one that was given is unknown or there twice.
    """
    if given is not None and (len(given) != count or len(set(given)) != count):
        raise ValueError(f"markers are {' '.join(given)}: expected {count}, all different")
    found: list[list[int]] = []
    for marker in _CANDIDATES if given is None else given:
        if len(found) == count:
            break
        ids = tokenizer(marker, add_special_tokens=False)["input_ids"]
        if ids and tokenizer.unk_token_id not in ids and ids not in found:
            found.append(ids)
        elif given is not None:
            raise ValueError(f"the marker {marker!r} is unknown to the tokenizer or the same as another to it")
    if len(found) < count:
        raise ValueError(
            f"the tokenizer knows too few of {' '.join(_CANDIDATES)} to mark with: "
            f"give {count} of its own words as markers, e.g. --markers '[{', '.join('abc'[:count])}]'"
        )
    return found
