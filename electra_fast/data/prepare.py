"""Text -> tokens -> shards: writes the corpus folder that `corpus.py` describes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from electra_fast.data.corpus import TOKEN_DTYPES, CorpusMeta, Units
from electra_fast.data.corpus_writer import CorpusWriter, PartialFolder
from electra_fast.data.deduplication import KEY_DTYPE, SeenKeys, document_key
from electra_fast.data.documents import open_inputs
from electra_fast.data.progress import ReadingProgress
from electra_fast.data.readers.base import Document, Reader, plain_text
from electra_fast.data.readers.jsonl import JsonLines
from electra_fast.data.readers.wikipedia import WikipediaDump
from electra_fast.data.units import UnitFinder
from electra_fast.data.word_cache import WordCache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHUNK_CHARACTERS = 1 << 18  # a task of a worker: about a tenth of a second
SHARD_TOKENS = 1 << 28  # 512 MB of uint16


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


def prepare(
    inputs: str | Path | Sequence[str | Path],
    tokenizer: str | Path | PreTrainedTokenizerFast,
    output: str | Path,
    *,
    workers: int = 1,
    format: str = "auto",
    text_field: str = "text",
    deduplicate: bool = False,
    units: Sequence[str] = (),
    segmenter: str = "none",
    entities_field: str = "entities",
    lowercase: bool = True,
    shard_tokens: int = SHARD_TOKENS,
    progress: bool = True,
    overwrite: bool = False,
) -> CorpusMeta:
    """Tokenises the documents of `inputs` in order and writes the corpus folder `output`.

    `tokenizer` is a fast transformers tokenizer or what `load_tokenizer` takes (`lowercase` is for a vocab.txt);
    `inputs`, `format` and `text_field` as in `read_documents`. Ids are stored without special tokens, and text that
    spells one ("[MASK]") is text. Documents without tokens are left out; with `deduplicate` also those whose text was
    there before (`document_key` says what is the same), at 16 bytes of memory a document. `units` ("word", "entity")
    are stored for masking, as `UnitFinder` finds them: with `segmenter="jieba"` Chinese words too; entities come from
    JSON lines, `[[start, end], ...]` in characters in the field `entities_field`, or are the links of a wiki's
    dump. The bytes written depend on
    the documents, the tokenizer and the options that are not about the input: not on the format or compression they
    came in, nor on `workers`. With workers > 1 processes are spawned: a script that calls this needs the usual
    `if __name__ == "__main__":`. Memory does not grow with the input, but for offsets and keys.

    The work lies in the sibling `.NAME.partial` until all of it is on disk, then gets its name: interrupted at any
    moment, there is no folder `output`. `overwrite` replaces a corpus, and nothing but a corpus.

    Raises ValueError for input that cannot be read (naming file and line), input without any token, an `output` that
    exists, `shard_tokens` or `workers` below 1, or units that are not known or not in the input.
    """
    from electra_fast.data.tokenizer import check_tokenizer, load_tokenizer, save_tokenizer, tokenizer_hash

    readers = open_inputs(inputs, format=format, text_field=text_field)
    if workers < 1 or shard_tokens < 1:
        raise ValueError(f"workers and shard_tokens must be at least 1, got {workers} and {shard_tokens}")
    output = Path(output).resolve()
    _check_output(output, overwrite)
    if isinstance(tokenizer, (str, Path)):
        tokenizer = load_tokenizer(tokenizer, lowercase=lowercase)
    check_tokenizer(tokenizer, tokenizer.name_or_path)

    vocab_size = max(tokenizer.get_vocab().values()) + 1
    dtype = "uint16" if vocab_size <= 65535 else "uint32"
    if "entity" in units:
        _read_entities(readers, entities_field)
    encoder = _Encoder(tokenizer.backend_tokenizer.to_str(), dtype, deduplicate, tuple(units), segmenter)
    kinds = encoder.units.kinds
    duplicates = _Duplicates() if deduplicate else None
    with (
        PartialFolder(output) as partial,
        ReadingProgress("prepare", sum(reader.size for reader in readers), show=progress) as reading,
    ):
        with (
            CorpusWriter(partial, shard_tokens, TOKEN_DTYPES[dtype], kinds) as writer,
            closing(_encode(_chunks(readers, reading.advance), encoder, workers)) as encoded,
        ):
            for chunk in encoded:
                if not chunk.lengths.all():
                    chunk = chunk.select(chunk.lengths > 0)
                if duplicates:
                    chunk = duplicates.drop(chunk)
                writer.write(chunk.lengths, chunk.ids, chunk.text_bytes, chunk.starts)
                reading.tell(documents=writer.documents, tokens=writer.tokens)
        if writer.tokens == 0:
            raise ValueError(f"no document with a token in {_shown(inputs)}: give files that hold text")
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
            text_bytes=writer.text_bytes,
            duplicate_documents=duplicates.documents if duplicates else None,
            duplicate_tokens=duplicates.tokens if duplicates else None,
            shards=tuple(writer.shards),
            offsets_sha256=writer.offsets_sha256,
            units=tuple(
                Units(kind, segmenter, f"starts-{kind}.bin", sha256) for kind, sha256 in writer.units_sha256.items()
            ),
        )
        meta.write(partial)
    return meta


def _read_entities(readers: Sequence[Reader], field: str) -> None:
    for reader in readers:
        if isinstance(reader, JsonLines):
            reader.entities_field = field
        elif not isinstance(reader, WikipediaDump):  # whose links name them
            raise ValueError(
                f"entities are read from JSON lines and wiki dumps, and {reader.path} is something else: convert it"
            )


def _shown(inputs: str | Path | Sequence[str | Path]) -> str:
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    more = f" and {len(given) - 5:,} more" if len(given) > 5 else ""
    return ", ".join(map(str, given[:5])) + more


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"output {output} exists; choose another or overwrite it (overwrite=True, --overwrite)")
    CorpusMeta.read(output)  # raises for a folder that is no corpus


def _chunks(readers: Sequence[Reader], advance: Callable[[int], None]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    characters = 0
    for reader in readers:
        for document in reader.documents(advance):
            chunk.append(document)
            characters += len(document)
            if characters >= CHUNK_CHARACTERS:
                yield chunk
                chunk, characters = [], 0
    if chunk:
        yield chunk


class _Duplicates:
    """Drops documents whose key was there before, and counts them."""

    def __init__(self) -> None:
        self.documents = 0
        self.tokens = 0
        self._seen = SeenKeys()

    def drop(self, chunk: Chunk) -> Chunk:
        kept = self._seen.add(chunk.keys)
        self.documents += int((~kept).sum())
        self.tokens += int(chunk.lengths[~kept].sum())
        return chunk if kept.all() else chunk.select(kept)


class _Encoder:
    """Documents -> Chunk; pickled as the tokenizer's JSON, so that workers start without transformers."""

    def __init__(
        self, tokenizer_json: str, dtype: str, deduplicate: bool, units: tuple[str, ...], segmenter: str
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

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        units = (self.units.kinds, self.units.segmenter)
        return _Encoder, (self.tokenizer_json, self.dtype, self.deduplicate, *units)

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


def _run_worker(documents: list[Document]) -> Chunk:
    return _worker_encoder(documents)


def _encode(chunks: Iterator[list[Document]], encoder: _Encoder, workers: int) -> Iterator[Chunk]:
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
