"""Which tokens of one tokenizer stand for those of another, so that a model's vocabulary can be changed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPECIAL_ROLES = ("pad", "unk", "cls", "sep", "mask")
SPACE = "▁"  # of SentencePiece, before the first piece of a word


class Surface(NamedTuple):
    """A token in the terms of any tokenizer: WordPiece's `##ing` is ("ing", False), `▁the` and `Ġthe` ("the", True)."""

    text: str
    begins_word: bool


@dataclass(frozen=True)
class VocabularyMatch:
    """For each id of the new tokenizer the old ids that stand for it: one, the pieces of its text, or none.

    `same` counts tokens that both have; `spelled` those that the old one has only as the new one would not write them,
    such as `Paris` for `paris` in a lower-case vocabulary; `pieces` those made of the old one's pieces.
    """

    old_ids: tuple[tuple[int, ...], ...]
    same: int
    spelled: int
    pieces: int

    @property
    def unmatched(self) -> int:
        return len(self.old_ids) - self.same - self.spelled - self.pieces

    @property
    def is_identity(self) -> bool:
        """Whether every token keeps its id."""
        return all(ids == (index,) for index, ids in enumerate(self.old_ids))


def match_vocabularies(
    old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast, *, old_size: int, with_pieces: bool = True
) -> VocabularyMatch:
    """Finds the old tokens for each id of `new`, up to its largest.

    In this order: [PAD], [UNK], [CLS], [SEP] and [MASK] by what they are for, whatever they are called; the same text
    at the same place, at a word's beginning or within; old tokens which the new tokenizer would write like that, e.g.
    in lower case; and, `with_pieces`, what the old tokenizer cuts the text into, unless it knows a part of it not.
    Source of the last: Gee et al. 2022, "Fast Vocabulary Transfer for Language Model Compression", section 2.1.

    Args:
        old_size: rows of the old model's table. Ids beyond it, of tokens that were added later, don't count.
    """
    source, target = _Vocabulary(old, old_size), _Vocabulary(new, None)
    roles = {getattr(new, f"{role}_token_id"): getattr(old, f"{role}_token_id") for role in SPECIAL_ROLES}
    roles = {ours: theirs for ours, theirs in roles.items() if theirs is not None and theirs < old_size}
    respelled = _respelled(source, target)
    counts = {"same": 0, "spelled": 0, "pieces": 0}
    found: list[tuple[int, ...]] = []
    for index in range(max(target.tokens, default=-1) + 1):
        token = target.tokens.get(index)
        surface = target.surfaces.get(index)
        ids: tuple[int, ...] = ()
        if index in roles:
            kind, ids = "same", (roles[index],)
        elif surface is None:  # a special token of its own, a part of a character, or an id that no token has
            kind, ids = "same", source.as_spelled(token, target)
        elif surface in source.ids:
            kind, ids = "same", (source.ids[surface],)
        elif surface in respelled:
            kind, ids = "spelled", tuple(respelled[surface])
        elif with_pieces:
            kind, ids = "pieces", source.pieces(surface)
        if ids:
            counts[kind] += 1
        found.append(ids)
    return VocabularyMatch(tuple(found), **counts)


def _respelled(source: _Vocabulary, target: _Vocabulary) -> dict[Surface, list[int]]:
    """Old tokens by how the new tokenizer would write them, where it writes them otherwise."""
    found: dict[Surface, list[int]] = defaultdict(list)
    for surface, index in source.ids.items():
        spelled = target.normalized(surface.text)
        if spelled and spelled != surface.text:
            found[Surface(spelled, surface.begins_word)].append(index)
    return found


class _Vocabulary:
    """A tokenizer's tokens by their ids, as they are and as surfaces."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, size: int | None) -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        vocabulary = tokenizer.get_vocab()
        self.tokens = {index: token for token, index in vocabulary.items() if size is None or index < size}
        content = json.loads(self._backend.to_str())
        self.kind = _kind(content)
        special = {added["id"] for added in content["added_tokens"] if added["special"]} | set(
            tokenizer.all_special_ids
        )
        self._prefix = content["model"].get("continuing_subword_prefix") or ""
        self._unknown = tokenizer.unk_token_id
        self._by_token = {token: index for index, token in self.tokens.items()}
        ordinary = {index: self._surface(token) for index, token in self.tokens.items() if index not in special}
        self.surfaces = {index: surface for index, surface in ordinary.items() if surface is not None}

    @cached_property
    def ids(self) -> dict[Surface, int]:
        return {surface: index for index, surface in self.surfaces.items()}

    @cached_property
    def _longest(self) -> int:
        return max((len(surface.text) for surface in self.ids), default=0)

    def _surface(self, token: str) -> Surface | None:
        """None for bytes that are a part of a character."""
        if self.kind == "words":
            inside = self._prefix != "" and token.startswith(self._prefix) and token != self._prefix
            return Surface(token[len(self._prefix) :] if inside else token, not inside)
        if self.kind == "bytes":
            try:
                token = bytes(_BYTES[character] for character in token).decode("utf-8")
            except (KeyError, UnicodeDecodeError):  # a part of a character, or a special token: no text by itself
                return None
            space = " "
        else:
            space = SPACE
        begins = token.startswith(space) and token != space
        return Surface(token[1:] if begins else token, begins)

    def normalized(self, text: str) -> str:
        """As the tokenizer spells it, without the spaces around that it may put there."""
        normalizer = self._backend.normalizer
        return text if normalizer is None else normalizer.normalize_str(text).strip(f" {SPACE}")

    def as_spelled(self, token: str | None, other: _Vocabulary) -> tuple[int, ...]:
        """The token of exactly this spelling, where both are spelled alike."""
        index = self._by_token.get(token) if token is not None and self.kind == other.kind else None
        return () if index is None else (index,)

    def pieces(self, surface: Surface) -> tuple[int, ...]:
        """What the text is cut into; empty where a part of it is unknown."""
        if not surface.begins_word:
            inside = tuple(self._pieces_inside(self.normalized(surface.text)))
            if inside and None not in inside:
                return inside
        text = f" {surface.text}" if self.kind == "bytes" and surface.begins_word else surface.text
        ids = tuple(self._backend.encode(text, add_special_tokens=False).ids)
        return ids if self._unknown not in ids and all(index in self.tokens for index in ids) else ()

    def _pieces_inside(self, text: str) -> Iterator[int | None]:
        """The longest piece first, as WordPiece cuts what stands within a word; None where there is none."""
        start = 0
        while start < len(text):
            for end in range(min(len(text), start + self._longest), start, -1):
                index = self.ids.get(Surface(text[start:end], False))
                if index is not None:
                    break
            else:
                yield None
                return
            yield index
            start = end


def _kind(content: dict) -> str:
    """How a tokenizer.json marks where words begin: "words" (and ## within), "bytes" (Ġ), or "spaces" (▁)."""
    if content["model"]["type"] == "WordPiece":
        return "words"
    around = json.dumps([content["pre_tokenizer"], content["decoder"]])
    if '"ByteLevel"' in around:
        return "bytes"
    return "spaces" if '"Metaspace"' in around or SPACE in around else "words"


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's names of bytes: printable ones are themselves, the others follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _bytes_of_characters()
