"""Text -> tokens -> shards: writes the corpus folder that `corpus.py` describes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from electra_fast.data.corpus import CorpusMeta
from electra_fast.data.corpus_writer import SHARD_TOKENS, write_corpus
from electra_fast.data.documents import open_inputs, read_entities
from electra_fast.data.encoding import Chunk, Encoder, chunked
from electra_fast.data.progress import ReadingProgress
from electra_fast.data.readers.base import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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
    from electra_fast.data.tokenizer import check_tokenizer, load_tokenizer

    readers = open_inputs(inputs, format=format, text_field=text_field)
    if workers < 1 or shard_tokens < 1:
        raise ValueError(f"workers and shard_tokens must be at least 1, got {workers} and {shard_tokens}")
    if isinstance(tokenizer, (str, Path)):
        tokenizer = load_tokenizer(tokenizer, lowercase=lowercase)
    check_tokenizer(tokenizer, tokenizer.name_or_path)
    if "entity" in units:
        read_entities(readers, entities_field)
    encoder = Encoder.of(tokenizer, deduplicate=deduplicate, units=units, segmenter=segmenter)
    with ReadingProgress("prepare", sum(reader.size for reader in readers), show=progress) as reading:
        documents = chain.from_iterable(reader.documents(reading.advance) for reader in readers)
        with closing(_encode(chunked(documents), encoder, workers)) as encoded:
            return write_corpus(
                encoded,
                tokenizer,
                output,
                encoder=encoder,
                shard_tokens=shard_tokens,
                overwrite=overwrite,
                tell=reading.tell,
                source=_shown(inputs),
            )


def _shown(inputs: str | Path | Sequence[str | Path]) -> str:
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    more = f" and {len(given) - 5:,} more" if len(given) > 5 else ""
    return ", ".join(map(str, given[:5])) + more


_worker_encoder: Encoder  # one per worker process, set when it starts


def _start_worker(encoder: Encoder) -> None:
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


def _encode(chunks: Iterator[list[Document]], encoder: Encoder, workers: int) -> Iterator[Chunk]:
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
