"""Where units for masking begin: words, Chinese words and entities, found when a corpus is prepared."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from electra_fast.extras import require

if TYPE_CHECKING:
    from tokenizers import Encoding

KINDS = ("word", "entity")
SEGMENTERS = ("none", "jieba")

# How tokens say that a space came before them, by the part of a tokenizer that writes it.
_MARKS = {"ByteLevel": "Ġ", "Metaspace": "▁"}


class AnnotatedText:
    """A document with spans of its characters that name entities; what `readers.base.Markup` asks for."""

    def __init__(self, content: str, entities: Sequence[tuple[int, int]]) -> None:
        self.content = content
        self.entities = entities

    def __len__(self) -> int:
        return len(self.content)

    def text(self) -> str:
        return self.content


class UnitFinder:
    """Encoded documents -> where units begin.

    A **word** is what the tokenizer splits text into before it looks for pieces (its word ids), further split where a
    piece says that a space came before it (byte-level BPE and metaspace). With the segmenter jieba, neighbouring
    Chinese characters that are one Chinese word are one unit, as in HFL's whole-word masking. An **entity** is a unit
    of all tokens that share a character with its span; the rest are words.

    Args:
        tokenizer: the one the encodings come from.
        kinds: of KINDS.
        segmenter: one of SEGMENTERS.

    Raises:
        ValueError: an unknown kind or segmenter, or jieba is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, kinds: Sequence[str], segmenter: str) -> None:
        for name, value, known in (*(("units", kind, KINDS) for kind in kinds), ("segmenter", segmenter, SEGMENTERS)):
            if value not in known:
                raise ValueError(f"{name} must be of {', '.join(known)}; got {value!r}")
        self.kinds = tuple(dict.fromkeys(kinds))
        self.segmenter = segmenter
        self._marked = _marked_ids(tokenizer)
        self._jieba = _load_jieba() if segmenter == "jieba" and self.kinds else None

    def __call__(
        self, encodings: Sequence[Encoding], texts: Sequence[str], entities: Sequence[Sequence[tuple[int, int]]]
    ) -> dict[str, np.ndarray]:
        """For each kind bool [tokens], all documents one after another. `entities` holds each document's spans."""
        if not self.kinds:
            return {}
        starts: dict[str, list[np.ndarray]] = {kind: [np.empty(0, bool)] for kind in self.kinds}
        for encoding, text, spans in zip(encodings, texts, entities, strict=True):
            words = self._words(encoding, text)
            for kind in self.kinds:
                starts[kind].append(words if kind == "word" else _with_entities(words, encoding, spans))
        return {kind: np.concatenate(parts) for kind, parts in starts.items()}

    def _words(self, encoding: Encoding, text: str) -> np.ndarray:
        words = np.array(encoding.word_ids, np.int64)  # no special tokens are among them, so none is None
        starts = np.ones(len(words), bool)
        starts[1:] = words[1:] != words[:-1]
        if self._marked is not None:
            starts |= self._marked[np.array(encoding.ids, np.int64)]
        if self._jieba is None or len(words) == 0:
            return starts
        begins, ends = np.array(encoding.offsets, np.int64).T
        inside = np.ones(len(text) + 1, bool)  # a Chinese word: the character before belongs to it too
        inside[list(itertools.accumulate(map(len, self._jieba.cut(text)), initial=0))] = False
        chinese = np.array([_is_chinese(text[place]) for place in begins.tolist()])
        joined = chinese[1:] & chinese[:-1] & (ends[:-1] == begins[1:]) & inside[begins[1:]]
        starts[1:] &= ~joined
        return starts


def entity_spans(value: Any, text: str, where: str) -> list[tuple[int, int]]:
    """The field `entities` of a JSON line, `[[start, end], ...]` in characters, checked; None is none.

    Raises ValueError, beginning with `where`, for anything else, and for spans that are empty, outside of the text, or
    overlap.
    """
    expected = "entities must be a list of [start, end] in characters of the text"
    if not isinstance(value, (list, type(None))):
        raise ValueError(f"{where}: {expected}, got {json.dumps(value)[:80]}")
    for span in value or []:
        if not (isinstance(span, list) and len(span) == 2 and all(type(place) is int for place in span)):
            raise ValueError(f"{where}: {expected}, got {json.dumps(span)[:80]} among them")
        if not 0 <= span[0] < span[1] <= len(text):
            raise ValueError(f"{where}: the entity {span} is empty or outside of the text of {len(text)} characters")
    spans = sorted((start, end) for start, end in value or [])
    for before, after in itertools.pairwise(spans):
        if after[0] < before[1]:
            raise ValueError(f"{where}: the entities {list(before)} and {list(after)} overlap: leave one of them out")
    return spans


def _with_entities(words: np.ndarray, encoding: Encoding, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    starts = words.copy()
    if not spans or len(words) == 0:
        return starts
    begins, ends = np.array(encoding.offsets, np.int64).T
    for start, end in spans:
        tokens = np.flatnonzero((begins < end) & (ends > start))
        if len(tokens):
            starts[tokens] = False
            starts[tokens[0]] = True
            starts[tokens[-1] + 1 : tokens[-1] + 2] = True  # the token after it, where there is one
    return starts


def _marked_ids(tokenizer: Tokenizer) -> np.ndarray | None:
    """bool [ids]: the token says that a space came before it; None for tokenizers without such marks."""
    content = json.loads(tokenizer.to_str())
    parts = json.dumps([content["pre_tokenizer"], content["decoder"]])
    marks = tuple(mark for kind, mark in _MARKS.items() if f'"type": "{kind}"' in parts)
    if not marks:
        return None
    vocabulary = tokenizer.get_vocab()
    marked = np.zeros(max(vocabulary.values()) + 1, bool)
    marked[[index for token, index in vocabulary.items() if token.startswith(marks)]] = True
    return marked


def _is_chinese(character: str) -> bool:
    """As BERT's tokenizer has it: what becomes a token by itself."""
    code = ord(character)
    return (
        0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x2FA1F
    )


def _load_jieba() -> Any:
    """jieba's tokenizer with its own dictionary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its age: escapes in strings, pkg_resources
        jieba = require("jieba", extra="chinese", purpose="Chinese words")
    tokenizer = jieba.Tokenizer()
    # What its `initialize` does, but for a cache in the temporary folder, which anybody could have put there.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
