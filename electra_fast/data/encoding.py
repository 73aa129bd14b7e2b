"""Documents -> token ids, in chunks: what the workers of `prepare` and the tasks of a cluster compute alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from electra_fast.data.corpus import TOKEN_DTYPES
from electra_fast.data.deduplication import KEY_DTYPE, document_key
from electra_fast.data.readers.base import Document, plain_text
from electra_fast.data.tokenizer import tokenizer_json_hash
from electra_fast.data.units import UnitFinder
from electra_fast.data.word_cache import WordCache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHUNK_CHARACTERS = 1 << 18  # a task of a worker: about a tenth of a second


class Chunk(NamedTuple):
    """Encoded documents: lengths in tokens and in bytes of text, int64 [documents]; ids [tokens]; keys [documents].

    starts: for each kind of units bool [tokens], where one begins.
    """

    lengths: np.ndarray
    text_bytes: np.ndarray
    ids: np.ndarray
    keys: np.ndarray | None
    starts: dict[str, np.ndarray]

    def select(self, kept: np.ndarray) -> Chunk:
        """The documents where `kept`, bool [documents], is true."""
        keys = None if self.keys is None else self.keys[kept]
        tokens = np.repeat(kept, self.lengths)
        starts = {kind: each[tokens] for kind, each in self.starts.items()}
        return Chunk(self.lengths[kept], self.text_bytes[kept], self.ids[tokens], keys, starts)


def chunked(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """The documents in order, as many at a time as have CHUNK_CHARACTERS."""
    chunk: list[Document] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document)
        if characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """One more than the largest id."""
    return max(tokenizer.get_vocab().values()) + 1


class Encoder:
    """Documents -> Chunk; pickled as the tokenizer's JSON, so that workers start without transformers.

    Args:
        tokenizer_json: a tokenizer as the library `tokenizers` writes it.
        dtype: of the ids, a name in TOKEN_DTYPES.
        deduplicate: whether chunks have keys.
        units: kinds of units whose starts chunks have, as in `UnitFinder`; likewise `segmenter`.

    Raises:
        ValueError: as `UnitFinder`.
    """

    def __init__(
        self, tokenizer_json: str, dtype: str, deduplicate: bool, units: Sequence[str], segmenter: str
    ) -> None:
        self.tokenizer_json = tokenizer_json
        self.dtype = dtype
        self.deduplicate = deduplicate
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # a "[MASK]" in the text is text
        self.units = UnitFinder(self.tokenizer, units, segmenter)
        fast = not self.units.kinds and WordCache.supports(self.tokenizer)  # it knows no offsets and no words
        self._word_cache = WordCache(self.tokenizer, TOKEN_DTYPES[dtype]) if fast else None

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerFast, *, deduplicate: bool, units: Sequence[str], segmenter: str
    ) -> Encoder:
        """The encoder of a tokenizer, whose largest id decides the dtype."""
        dtype = "uint16" if vocabulary_size(tokenizer) <= 65535 else "uint32"
        return cls(tokenizer.backend_tokenizer.to_str(), dtype, deduplicate, units, segmenter)

    @property
    def tokenizer_sha256(self) -> str:
        """`tokenizer_hash` of its tokenizer."""
        return tokenizer_json_hash(self.tokenizer_json)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        units = (self.units.kinds, self.units.segmenter)
        return Encoder, (self.tokenizer_json, self.dtype, self.deduplicate, *units)

    def __call__(self, documents: list[Document]) -> Chunk:
        texts = list(map(plain_text, documents))
        encodings: list[Encoding] = []
        if self._word_cache is not None:
            lengths, ids = self._word_cache(texts)
        else:
            encode = self.tokenizer.encode_batch if self.units.kinds else self.tokenizer.encode_batch_fast
            encodings = encode(texts, add_special_tokens=False)
            lengths = np.array([len(encoding) for encoding in encodings], np.int64)
            all_ids = chain.from_iterable(encoding.ids for encoding in encodings)
            ids = np.fromiter(all_ids, TOKEN_DTYPES[self.dtype], int(lengths.sum()))
        return Chunk(
            lengths=lengths,
            text_bytes=np.array([len(text.encode()) for text in texts], np.int64),
            ids=ids,
            keys=np.array([document_key(text) for text in texts], KEY_DTYPE) if self.deduplicate else None,
            starts=self.units(encodings, texts, self._entities(documents)),
        )

    def _entities(self, documents: list[Document]) -> list[Sequence[tuple[int, int]]]:
        """Each document's; of a wiki's page they cost as much as its text, so only where they are asked for."""
        return [document.entities if "entity" in self.units.kinds else () for document in documents]
