"""A prepared corpus: the folder `prepare` writes, opened for reading.

meta.json          format and version, tokenizer hash, special ids, counts, shard list, checksums
tokens-00000.bin   token ids without special tokens, raw little-endian uint16 (uint32 over 65,535 ids)
tokens-00001.bin   ... goes on where the one before ends, in the middle of a document if need be
offsets.bin        int64 [documents + 1], where each document starts in the row of all shards' tokens
starts-word.bin    where asked for: a bit a token, lowest first, set where a unit for masking begins (see `units`)
tokenizer/         the tokenizer's files

Version 2 of the format added the units and what deduplication left out; version 1 is still read.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from electra_fast.arguments import shown
from electra_fast.data.checksum import file_sha256, sealed, unsealed
from electra_fast.data.meta_checks import checked
from electra_fast.data.remote import as_path, is_url

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT = "electra-fast-corpus"
VERSION = 2
READABLE_VERSIONS = (1, 2)
AGAIN = "prepare the corpus again"
META_FILE = "meta.json"
OFFSETS_FILE = "offsets.bin"
OFFSET_DTYPE = np.dtype("<i8")
TOKEN_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True)
class Shard:
    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Units:
    """Where units for masking begin: `kind` is "word" or "entity", `segmenter` what joined characters to words."""

    kind: str
    segmenter: str
    file: str
    sha256: str


class CorpusFile(NamedTuple):
    """A file of a corpus: its name, its size in bytes, its checksum."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class CorpusMeta:
    """What meta.json says.

    `vocab_size` is one more than the largest id. `text_bytes`: of the documents as UTF-8. `duplicate_documents` and
    `duplicate_tokens`: what deduplication left out, which the other counts don't hold; None if it was not asked for.
    """

    tokenizer_sha256: str
    vocab_size: int
    pad_token_id: int
    cls_token_id: int
    sep_token_id: int
    mask_token_id: int
    dtype: str
    documents: int
    tokens: int
    text_bytes: int
    duplicate_documents: int | None
    duplicate_tokens: int | None
    shards: tuple[Shard, ...]
    offsets_sha256: str
    units: tuple[Units, ...] = ()
    tokenizer: str = "tokenizer"
    format: str = FORMAT
    version: int = VERSION

    def write(self, folder: Path) -> None:
        content = json.dumps(sealed(asdict(self)), indent=2, sort_keys=True)
        (folder / META_FILE).write_text(content + "\n", encoding="utf-8")

    def content_hash(self) -> str:
        """One name for the tokens, the documents, the units and the tokenizer, wherever the folder lies."""
        parts = [self.tokenizer_sha256, self.offsets_sha256, *(file.sha256 for file in (*self.shards, *self.units))]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def files(self) -> list[CorpusFile]:
        """The files beside meta.json, the tokenizer's aside; offsets.bin is the first."""
        itemsize, bits = TOKEN_DTYPES[self.dtype].itemsize, -(-self.tokens // 8)
        offsets = CorpusFile(OFFSETS_FILE, (self.documents + 1) * OFFSET_DTYPE.itemsize, self.offsets_sha256)
        shards = [CorpusFile(shard.file, shard.tokens * itemsize, shard.sha256) for shard in self.shards]
        return [offsets, *shards, *(CorpusFile(unit.file, bits, unit.sha256) for unit in self.units)]

    @classmethod
    def read(cls, folder: Path) -> CorpusMeta:
        """Raises ValueError if the folder holds no corpus, one of another format version, or a damaged meta.json."""
        path = folder / META_FILE
        if not path.is_file():
            raise ValueError(
                f"{folder} is no prepared corpus: it holds no {META_FILE} (electra-fast prepare makes one)"
            )
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, text: bytes, path: str) -> CorpusMeta:
        """`read`, of what a meta.json holds; `path` names it in errors."""
        try:
            content = json.loads(text.decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {error}; {AGAIN}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{path} does not describe a prepared corpus (no format {FORMAT!r})")
        if content.get("version") not in READABLE_VERSIONS:
            version = str(content.get("version"))[:20]
            readable = " and ".join(map(str, READABLE_VERSIONS))
            raise ValueError(f"{path}: corpus version {version}, but this release reads {readable}; {AGAIN}")
        try:
            content = unsealed(content)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; {AGAIN}") from error
        if content["version"] == 1:
            content = _from_version_1(content)
        try:
            meta = checked(cls, content)
            meta._check()
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; {AGAIN}") from error
        return meta

    def _check(self) -> None:
        """Raises ValueError where counts and ids contradict each other."""
        special = (self.pad_token_id, self.cls_token_id, self.sep_token_id, self.mask_token_id)
        if max(special) >= self.vocab_size:
            raise ValueError(f"vocab_size is {self.vocab_size}, and a special token's id is {max(special)}")
        if self.dtype not in TOKEN_DTYPES:
            raise ValueError(f"dtype is {shown(self.dtype)}")
        if sum(shard.tokens for shard in self.shards) != self.tokens or not self.shards:
            raise ValueError(f"its shards do not hold {self.tokens} tokens")


class Corpus:
    """Token ids of all documents, memory-mapped. `Corpus.open` makes one; nothing is read before it is asked for."""

    def __init__(self, folder: Path, meta: CorpusMeta) -> None:
        self.folder = folder
        self.meta = meta
        self.dtype = TOKEN_DTYPES[meta.dtype]
        self.offsets = np.asarray(np.memmap(folder / OFFSETS_FILE, OFFSET_DTYPE, mode="r"))  # [documents + 1]
        self._maps = [np.memmap(folder / shard.file, self.dtype, mode="r") for shard in meta.shards]
        self._shards = [np.asarray(shard) for shard in self._maps]  # plain arrays, whose slices cost less
        self._starts = list(accumulate((shard.tokens for shard in meta.shards), initial=0))  # [shards + 1]
        self._units = {unit.kind: np.asarray(np.memmap(folder / unit.file, np.uint8, mode="r")) for unit in meta.units}

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> Corpus:
        """Opens a corpus folder; of one behind a URL, its `remote_corpus.local_copy`.

        Checks meta.json and offsets.bin by their checksums, the shards and units by their sizes; with `verify` these by
        their checksums too, which reads all of the corpus.

        Raises ValueError naming the file that is missing or damaged.
        """
        path = as_path(path)
        if is_url(path):
            return cls._open_copy(path, verify)
        folder = Path(path)
        meta = CorpusMeta.read(folder)
        for file in meta.files():
            known = file.sha256 if verify or file.name == OFFSETS_FILE else None
            _check_file(folder / file.name, file.size, known)
        corpus = cls(folder, meta)
        corpus._check_offsets()
        if verify:
            corpus._check_ids()
        return corpus

    @classmethod
    def _open_copy(cls, url: str, verify: bool) -> Corpus:
        from electra_fast.data.remote_corpus import local_copy

        folder = local_copy(url)
        try:
            return cls.open(folder, verify=verify)
        except ValueError as error:
            raise ValueError(f"{error}, or delete {folder}, a copy of {url}, and it is downloaded again") from error

    def _check_offsets(self) -> None:
        # Each is compared with the one before: a difference of int64 can overflow.
        rises = bool((self.offsets[1:] >= self.offsets[:-1]).all())
        if not rises or self.offsets[0] != 0 or self.offsets[-1] != self.meta.tokens:
            raise ValueError(f"{self.folder / OFFSETS_FILE} is damaged: its documents are not those of tokens; {AGAIN}")

    def _check_ids(self) -> None:
        for shard, tokens in zip(self.meta.shards, self._shards, strict=True):
            largest = int(tokens.max(initial=0))
            if largest >= self.meta.vocab_size:
                raise ValueError(
                    f"{self.folder / shard.file} is damaged: it holds the id {largest}, and the vocabulary ends at "
                    f"{self.meta.vocab_size - 1}; {AGAIN}"
                )

    @property
    def num_documents(self) -> int:
        return self.meta.documents

    @property
    def num_tokens(self) -> int:
        return self.meta.tokens

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder / self.meta.tokenizer

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer the corpus was prepared with.

        Raises ValueError if its files are missing, damaged, or of another tokenizer.
        """
        from electra_fast.data.tokenizer import load_tokenizer, tokenizer_hash

        tokenizer = load_tokenizer(self.tokenizer_folder)
        ids = (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id)
        meta = self.meta
        expected = (meta.pad_token_id, meta.cls_token_id, meta.sep_token_id, meta.mask_token_id)
        vocab_size = max(tokenizer.get_vocab().values()) + 1
        if (tokenizer_hash(tokenizer), ids, vocab_size) != (meta.tokenizer_sha256, expected, meta.vocab_size):
            raise ValueError(f"{self.tokenizer_folder} is not the tokenizer that {self.folder} was made with; {AGAIN}")
        return tokenizer

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop of the whole corpus, [stop - start] in the corpus's dtype; a view where one shard has all.

        Raises IndexError outside 0 <= start <= stop <= num_tokens.
        """
        if not 0 <= start <= stop <= self.meta.tokens:
            raise IndexError(f"tokens {start}..{stop} of a corpus of {self.meta.tokens} tokens")
        first = min(bisect_right(self._starts, start) - 1, len(self._shards) - 1)
        parts = []
        for shard, shard_start in zip(self._shards[first:], self._starts[first:], strict=False):
            parts.append(shard[max(start - shard_start, 0) : stop - shard_start])
            if stop <= shard_start + len(shard):
                break
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def read_spans(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The tokens of spans (int64 [n] twice), one span after another, in the corpus's dtype.

        Raises IndexError for a span outside the corpus, as `read`.
        """
        if len(starts) == 0:
            return np.empty(0, self.dtype)
        longest, first, last = max(1, int(lengths.max())), int(starts.min()), int(starts.max())
        index = bisect_right(self._starts, first) - 1
        if first < 0 or last + longest > self._starts[index + 1]:  # over the end of a shard: once in a while
            spans = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
            return np.concatenate([self.read(start, stop) for start, stop in spans])
        # One copy of the longest length for each span, and what is too much is dropped: an index a token takes longer.
        rows = sliding_window_view(self._shards[index], longest)[starts - self._starts[index]]
        return rows.ravel() if lengths.min() == longest else rows[np.arange(longest) < lengths[:, None]]

    def unit_starts(self, kind: str, positions: np.ndarray) -> np.ndarray:
        """bool [n]: whether a unit of `kind` ("word" or "entity") begins at each of `positions` (int64 [n]).

        Raises ValueError where the corpus was prepared without them.
        """
        if kind not in self._units:
            raise ValueError(
                f"{self.folder} does not say where each {kind} begins: prepare it again with --units {kind}"
            )
        return (self._units[kind].take(positions >> 3) >> (positions & 7).astype(np.uint8)) & 1 == 1

    def will_need(self, start: int, stop: int) -> None:
        """Ask the system to read tokens start..stop ahead, in one go: they will be taken soon, in any order."""
        if not hasattr(mmap, "MADV_WILLNEED"):  # Windows
            return
        for shard, shard_start in zip(self._maps, self._starts, strict=False):
            first, last = max(start - shard_start, 0), min(stop - shard_start, len(shard))
            if first < last:
                begin = first * self.dtype.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
                shard._mmap.madvise(mmap.MADV_WILLNEED, begin, last * self.dtype.itemsize - begin)

    def document(self, index: int) -> np.ndarray:
        """Tokens of one document, without special tokens. Raises IndexError outside 0 <= index < num_documents."""
        if not 0 <= index < self.meta.documents:
            raise IndexError(f"document {index} of a corpus of {self.meta.documents} documents")
        return self.read(int(self.offsets[index]), int(self.offsets[index + 1]))


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """It knew no deduplication and no units, and counted the bytes of the files instead of those of the text."""
    if "bytes_read" not in content:
        return content
    rest = {key: value for key, value in content.items() if key != "bytes_read"}
    return {
        "text_bytes": content["bytes_read"],
        "duplicate_documents": None,
        "duplicate_tokens": None,
        "units": [],
    } | rest


def content_hash(corpora: Sequence[Corpus]) -> str:
    """One name for the content of corpora in their order; of one, that of its `CorpusMeta.content_hash`."""
    names = [corpus.meta.content_hash() for corpus in corpora]
    return names[0] if len(names) == 1 else hashlib.sha256(" ".join(names).encode()).hexdigest()


def _check_file(path: Path, size: int, sha256: str | None) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing; {AGAIN}")
    if path.stat().st_size != size:
        raise ValueError(f"{path} is damaged: {path.stat().st_size} bytes, expected {size}; {AGAIN}")
    if sha256 is not None and file_sha256(path) != sha256:
        raise ValueError(f"{path} is damaged: its sha256 is not the one in {META_FILE}; {AGAIN}")
