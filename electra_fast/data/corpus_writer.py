"""Writes the corpus folder that `corpus.py` describes, so that it is whole or not there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from electra_fast.data.corpus import OFFSET_DTYPE, OFFSETS_FILE, TOKEN_DTYPES, CorpusMeta, Shard, Units
from electra_fast.data.deduplication import Duplicates
from electra_fast.data.remote import as_path, is_url
from electra_fast.files import flush

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from electra_fast.data.encoding import Chunk, Encoder

SHARD_TOKENS = 1 << 28  # 512 MB of uint16


def write_corpus(
    chunks: Iterable[Chunk],
    tokenizer: PreTrainedTokenizerFast,
    output: str | Path,
    *,
    encoder: Encoder,
    shard_tokens: int = SHARD_TOKENS,
    overwrite: bool = False,
    tell: Callable[..., object] = lambda **_: None,
    source: str,
) -> CorpusMeta:
    """Writes the corpus folder `output` of documents that `encoder`, which is that of `tokenizer`, has encoded.

    What is written depends on the documents in their order, the tokenizer and the encoder's options, not on where
    chunks begin. Documents without tokens are left out, and duplicates where the encoder gives keys. `tell` is called
    with the documents and tokens so far. The folder is whole or not there; `overwrite` replaces a corpus. It may be a
    URL: see `remote_corpus.UploadedFolder`.

    Raises ValueError where there is no token, naming the `source`, and for an `output` that exists.
    """
    from electra_fast.data.encoding import vocabulary_size
    from electra_fast.data.tokenizer import save_tokenizer, tokenizer_hash

    folder = _corpus_folder(output)
    folder.check(overwrite=overwrite)
    units = encoder.units
    duplicates = Duplicates() if encoder.deduplicate else None
    with folder as partial:
        with CorpusWriter(partial, shard_tokens, TOKEN_DTYPES[encoder.dtype], units.kinds) as writer:
            for chunk in chunks:
                if not chunk.lengths.all():
                    chunk = chunk.select(chunk.lengths > 0)
                if duplicates:
                    chunk = duplicates.drop(chunk)
                writer.write(chunk.lengths, chunk.ids, chunk.text_bytes, chunk.starts)
                tell(documents=writer.documents, tokens=writer.tokens)
        if writer.tokens == 0:
            raise ValueError(f"no document with a token in {source}: give files that hold text")
        save_tokenizer(tokenizer, partial / "tokenizer")
        meta = CorpusMeta(
            tokenizer_sha256=tokenizer_hash(tokenizer),
            vocab_size=vocabulary_size(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            mask_token_id=tokenizer.mask_token_id,
            dtype=encoder.dtype,
            documents=writer.documents,
            tokens=writer.tokens,
            text_bytes=writer.text_bytes,
            duplicate_documents=duplicates.documents if duplicates else None,
            duplicate_tokens=duplicates.tokens if duplicates else None,
            shards=tuple(writer.shards),
            offsets_sha256=writer.offsets_sha256,
            units=tuple(
                Units(kind, units.segmenter, f"starts-{kind}.bin", sha256)
                for kind, sha256 in writer.units_sha256.items()
            ),
        )
        meta.write(partial)
    return meta


def _corpus_folder(output: str | Path) -> PartialFolder:
    output = as_path(output)
    if not is_url(output):
        return PartialFolder(Path(output).resolve())
    from electra_fast.data.remote_corpus import UploadedFolder

    return UploadedFolder(output)


class PartialFolder:
    """A folder beside `output` that takes its place when the block ends well, and goes when it does not."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.partial = output.parent / f".{output.name}.partial"
        self.replaced = output.parent / f".{output.name}.replaced"

    def check(self, *, overwrite: bool) -> None:
        """Raises ValueError where there is something else than a corpus, or a corpus that may not be replaced."""
        if not self.output.exists() or (self.output.is_dir() and not any(self.output.iterdir())):
            return
        if not overwrite:
            raise ValueError(
                f"output {self.output} exists; choose another or overwrite it (overwrite=True, --overwrite)"
            )
        CorpusMeta.read(self.output)  # raises for a folder that is no corpus

    def __enter__(self) -> Path:
        for left_by_a_killed_run in (self.partial, self.replaced):
            if left_by_a_killed_run.exists():
                shutil.rmtree(left_by_a_killed_run)
        self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:
            shutil.rmtree(self.partial)
            if isinstance(error, OSError) and error.filename is None:  # no space: say at least where
                error.filename = str(self.output)
            return
        for path in (*self.partial.rglob("*"), self.partial):
            flush(path)
        if self.output.exists():
            self.output.rename(self.replaced)
        self.partial.rename(self.output)
        flush(self.output.parent)
        if self.replaced.exists():
            shutil.rmtree(self.replaced)


class CorpusWriter:
    """Appends documents' ids to shards of exactly `shard_tokens` tokens (the last: what is left) and to offsets.bin.

    For each kind in `units` it also writes where they begin.
    """

    def __init__(self, folder: Path, shard_tokens: int, dtype: np.dtype, units: Sequence[str] = ()) -> None:
        self.folder = folder
        self.shard_bytes = shard_tokens * dtype.itemsize
        self.itemsize = dtype.itemsize
        self.documents = 0
        self.tokens = 0
        self.text_bytes = 0
        self.shards: list[Shard] = []
        self._offsets = _HashedFile(folder / OFFSETS_FILE)
        self._offsets.write(np.zeros(1, OFFSET_DTYPE).tobytes())
        self._shard: _HashedFile | None = None
        self._units = {kind: _BitFile(folder / f"starts-{kind}.bin") for kind in units}

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_shard()
        self.offsets_sha256 = self._offsets.close()
        self.units_sha256 = {kind: file.close() for kind, file in self._units.items()}

    def write(
        self, lengths: np.ndarray, ids: np.ndarray, text_bytes: np.ndarray, starts: dict[str, np.ndarray] | None = None
    ) -> None:
        """Documents, none of them without tokens: lengths in tokens, all ids, sizes of the text, where units begin."""
        for kind, file in self._units.items():
            file.write_bits(starts[kind])
        self._offsets.write((self.tokens + np.cumsum(lengths)).astype(OFFSET_DTYPE).tobytes())
        self.documents += len(lengths)
        self.tokens += len(ids)
        self.text_bytes += int(text_bytes.sum())
        view = memoryview(ids.tobytes())
        while view:
            if self._shard is None:
                self._shard = _HashedFile(self.folder / f"tokens-{len(self.shards):05d}.bin")
            room = self.shard_bytes - self._shard.size
            self._shard.write(view[:room])
            view = view[room:]
            if self._shard.size == self.shard_bytes:
                self._close_shard()

    def _close_shard(self) -> None:
        if self._shard is not None:
            size, name = self._shard.size, self._shard.name
            self.shards.append(Shard(file=name, tokens=size // self.itemsize, sha256=self._shard.close()))
            self._shard = None


class _HashedFile:
    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.size = 0
        self._file: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def close(self) -> str:
        self._file.close()
        return self._digest.hexdigest()


class _BitFile(_HashedFile):
    """A bit for each entry, lowest bit first; the last byte is filled up with zeros."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._rest = np.empty(0, bool)  # fewer than 8

    def write_bits(self, bits: np.ndarray) -> None:
        bits = np.concatenate([self._rest, bits])
        whole = len(bits) // 8 * 8
        self.write(np.packbits(bits[:whole], bitorder="little").tobytes())
        self._rest = bits[whole:]

    def close(self) -> str:
        self.write(np.packbits(self._rest, bitorder="little").tobytes())
        return super().close()
