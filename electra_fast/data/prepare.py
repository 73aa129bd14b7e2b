"""Text -> tokens -> shards: writes the corpus folder that `corpus.py` describes."""

from __future__ import annotations

import hashlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from electra_fast.data.corpus import OFFSET_DTYPE, OFFSETS_FILE, TOKEN_DTYPES, CorpusMeta, Shard
from electra_fast.data.documents import check_inputs, read_documents
from electra_fast.files import flush

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHUNK_CHARACTERS = 1 << 18  # a task of a worker: about a tenth of a second
SHARD_TOKENS = 1 << 28  # 512 MB of uint16

Chunk = tuple[np.ndarray, bytes]  # tokens of each document [documents] int64; their ids


def prepare(
    inputs: Sequence[str | Path],
    tokenizer: str | Path | PreTrainedTokenizerFast,
    output: str | Path,
    *,
    workers: int = 1,
    format: str = "auto",
    text_field: str = "text",
    lowercase: bool = True,
    shard_tokens: int = SHARD_TOKENS,
    progress: bool = True,
    overwrite: bool = False,
) -> CorpusMeta:
    """Tokenises the documents of `inputs` in order and writes the corpus folder `output`.

    `tokenizer` is a fast transformers tokenizer or what `load_tokenizer` takes (`lowercase` is for a vocab.txt);
    `format` and `text_field` as in `read_documents`. Ids are stored without special tokens, and text that spells one
    ("[MASK]") is text. Documents without tokens are left out. The bytes written depend on the input, the tokenizer and
    `shard_tokens` only, not on `workers`. With workers > 1 processes are spawned: a script that calls this needs the
    usual `if __name__ == "__main__":`.

    The work lies in the sibling `.NAME.partial` until all of it is on disk, then gets its name: interrupted at any
    moment, there is no folder `output`. `overwrite` replaces a corpus, and nothing but a corpus.

    Raises ValueError for input that cannot be read (naming file and line), input without any token, an `output` that
    exists, or `shard_tokens` or `workers` below 1.
    """
    from electra_fast.data.tokenizer import check_tokenizer, load_tokenizer, save_tokenizer, tokenizer_hash

    paths = check_inputs(inputs)
    if workers < 1 or shard_tokens < 1:
        raise ValueError(f"workers and shard_tokens must be at least 1, got {workers} and {shard_tokens}")
    output = Path(output).resolve()
    _check_output(output, overwrite)
    if isinstance(tokenizer, (str, Path)):
        tokenizer = load_tokenizer(tokenizer, lowercase=lowercase)
    check_tokenizer(tokenizer, tokenizer.name_or_path)

    vocab_size = max(tokenizer.get_vocab().values()) + 1
    dtype = "uint16" if vocab_size <= 65535 else "uint32"
    with (
        _PartialFolder(output) as partial,
        tqdm(
            desc="prepare",
            total=sum(path.stat().st_size for path in paths),
            unit="B",
            unit_scale=True,
            disable=None if progress else True,  # None: only where someone watches
        ) as bar,
    ):
        bytes_read = 0

        def advance(read: int) -> None:
            nonlocal bytes_read
            bytes_read += read
            bar.update(read)

        chunks = _chunks(paths, format, text_field, advance)
        encoder = _Encoder(tokenizer.backend_tokenizer.to_str(), dtype)
        with (
            _Writer(partial, shard_tokens, TOKEN_DTYPES[dtype]) as writer,
            closing(_encode(chunks, encoder, workers)) as encoded,
        ):
            for lengths, ids in encoded:
                writer.write(lengths, ids)
                bar.set_postfix(documents=writer.documents, tokens=writer.tokens, refresh=False)
        if writer.tokens == 0:
            raise ValueError(f"no document with a token in {', '.join(map(str, paths))}: give files that hold text")
        save_tokenizer(tokenizer, partial / "tokenizer")
        meta = CorpusMeta(
            tokenizer_sha256=tokenizer_hash(tokenizer),
            vocab_size=vocab_size,
            pad_token_id=tokenizer.pad_token_id,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            mask_token_id=tokenizer.mask_token_id,
            dtype=dtype,
            documents=writer.documents,
            tokens=writer.tokens,
            bytes_read=bytes_read,
            shards=tuple(writer.shards),
            offsets_sha256=writer.offsets_sha256,
        )
        meta.write(partial)
    return meta


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"output {output} exists; choose another or overwrite it (overwrite=True, --overwrite)")
    CorpusMeta.read(output)  # raises for a folder that is no corpus


def _chunks(paths: list[Path], format: str, text_field: str, advance: Callable[[int], None]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for path in paths:
        for document in read_documents(path, format=format, text_field=text_field, progress=advance):
            chunk.append(document)
            characters += len(document)
            if characters >= CHUNK_CHARACTERS:
                yield chunk
                chunk, characters = [], 0
    if chunk:
        yield chunk


class _Encoder:
    """Documents -> (lengths, ids); pickled as the tokenizer's JSON, so that workers start without transformers."""

    def __init__(self, tokenizer_json: str, dtype: str) -> None:
        self.tokenizer_json = tokenizer_json
        self.dtype = dtype
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # a "[MASK]" in the text is text

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return _Encoder, (self.tokenizer_json, self.dtype)

    def __call__(self, documents: list[str]) -> Chunk:
        encodings = self.tokenizer.encode_batch_fast(documents, add_special_tokens=False)
        lengths = np.array([len(encoding) for encoding in encodings], np.int64)
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), TOKEN_DTYPES[self.dtype], int(lengths.sum()))
        return lengths, ids.tobytes()


_worker_encoder: _Encoder  # one per worker process, set when it starts


def _start_worker(encoder: _Encoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _run_worker(documents: list[str]) -> Chunk:
    return _worker_encoder(documents)


def _encode(chunks: Iterator[list[str]], encoder: _Encoder, workers: int) -> Iterator[Chunk]:
    """The chunks' tokens in the chunks' order; at most 4 chunks a worker are in memory."""
    if workers == 1:
        yield from map(encoder, chunks)
        return
    # spawn: forking is not safe once the tokenizers library has started its threads
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(encoder,))
    try:
        pending: deque[Future[Chunk]] = deque(pool.submit(_run_worker, chunk) for chunk in islice(chunks, 4 * workers))
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(_run_worker, chunk) for chunk in islice(chunks, 1))
    finally:
        pool.shutdown(cancel_futures=True)


class _PartialFolder:
    """A folder beside `output` that takes its place when the block ends well, and goes when it does not."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.partial = output.parent / f".{output.name}.partial"
        self.replaced = output.parent / f".{output.name}.replaced"

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


class _Writer:
    """Appends documents' ids to shards of exactly `shard_tokens` tokens (the last: what is left) and to offsets.bin."""

    def __init__(self, folder: Path, shard_tokens: int, dtype: np.dtype) -> None:
        self.folder = folder
        self.shard_bytes = shard_tokens * dtype.itemsize
        self.itemsize = dtype.itemsize
        self.documents = 0
        self.tokens = 0
        self.shards: list[Shard] = []
        self._offsets = _HashedFile(folder / OFFSETS_FILE)
        self._offsets.write(np.zeros(1, OFFSET_DTYPE).tobytes())
        self._shard: _HashedFile | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_shard()
        self.offsets_sha256 = self._offsets.close()

    def write(self, lengths: np.ndarray, ids: bytes) -> None:
        lengths = lengths[lengths > 0]
        self._offsets.write((self.tokens + np.cumsum(lengths)).astype(OFFSET_DTYPE).tobytes())
        self.documents += len(lengths)
        self.tokens += len(ids) // self.itemsize
        view = memoryview(ids)
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
