"""Steps for datatrove's pipelines, on one machine, Slurm or Ray: documents -> parts -> a corpus.

reader, parts = JsonlReader("texts"), "parts"
tokenizing = LocalPipelineExecutor([reader, CorpusTokenizer(parts, "tokenizer")], tasks=64)
LocalPipelineExecutor([CorpusMerger(parts, "corpus", "tokenizer")], depends=tokenizing).run()
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from electra_fast.data.corpus_writer import SHARD_TOKENS, write_corpus
from electra_fast.data.documents import check_format, read_entities
from electra_fast.data.encoding import Encoder, chunked
from electra_fast.data.parts import PartWriter, read_chunks, read_parts
from electra_fast.data.progress import ReadingProgress
from electra_fast.data.readers import open_reader
from electra_fast.data.readers.base import Document, plain_text
from electra_fast.data.remote import RemoteFile, as_path, is_url
from electra_fast.data.units import AnnotatedText, entity_spans
from electra_fast.extras import require

if TYPE_CHECKING:
    import datatrove.data
    from datatrove.io import DataFolderLike

PURPOSE = "Pipelines of datatrove"
_base = require("datatrove.pipeline.base", extra="datatrove", purpose=PURPOSE)
_readers = require("datatrove.pipeline.readers.base", extra="datatrove", purpose=PURPOSE)
_io = require("datatrove.io", extra="datatrove", purpose=PURPOSE)


class DocumentReader(_readers.BaseDiskReader):
    """Reads files as `electra-fast prepare` does: text, JSON lines, Parquet, dumps of a wiki, compressed or not.

    datatrove's own readers know no plain text and no dumps, and pass over a line of JSON that is none, where this is an
    error.

    Args:
        data_folder: as of datatrove's readers.
        format: as in `read_documents`; likewise `text_field`.
        entities_field: read entities for `CorpusTokenizer` too, as `prepare` does: of this field, or a dump's links.
        options: those of datatrove's `BaseDiskReader`, `glob_pattern="**/*.txt.gz"` for example.

    Raises:
        ValueError: an unknown format.
    """

    name = "electra-fast"

    def __init__(
        self,
        data_folder: DataFolderLike,
        *,
        format: str = "auto",
        text_field: str = "text",
        entities_field: str | None = None,
        **options: object,
    ) -> None:
        super().__init__(data_folder, **options)
        check_format(format)
        self.format = format
        self.text_field = text_field
        self.entities_field = entities_field

    def read_file(self, filepath: str) -> Iterator[datatrove.data.Document]:
        """Called by datatrove for each file of a task. Raises ValueError as `read_documents`."""
        file = RemoteFile(self.data_folder, filepath, self.data_folder.resolve_paths(filepath))
        reader = open_reader(file, self.format, self.text_field)
        if self.entities_field is not None:
            read_entities([reader], self.entities_field)
        for number, document in enumerate(reader.documents(lambda _: None)):
            if text := plain_text(document):
                fields = {} if self.entities_field is None else {"entities": [list(span) for span in document.entities]}
                yield self.get_document_from_dict({self.text_key: text, **fields}, filepath, number)


class CorpusTokenizer(_base.PipelineStep):
    """Tokenises the documents that reach each task into a part of a corpus, for `CorpusMerger` to join.

    The last step of a pipeline, after a reader of files and any filters. The tokenizer is loaded where the step is made
    and travels with it. A task that is run again writes its part anew; one that is stopped leaves none that counts.

    Args:
        parts: a folder that all tasks reach, empty at first; a path, a URL, or what else datatrove takes.
        tokenizer: a tokenizer's folder or a BERT vocab.txt; `lowercase` is for the latter.
        deduplicate: as of `prepare`, over all tasks: the merging step drops what was there before.
        units: as of `prepare`; likewise `segmenter`.
        entities_field: where a document's metadata holds entities, `[[start, end], ...]` in characters.
        file_key: where a document's metadata names its file; datatrove's readers of files fill in "file_path".

    Raises:
        ValueError: as `load_tokenizer` and `UnitFinder`; when it runs, for a document that names no file, is no Unicode
            or has wrong entities.
    """

    name = "electra-fast: a part of a corpus"
    type = "🔢 - TOKENIZER"

    def __init__(
        self,
        parts: DataFolderLike,
        tokenizer: str | Path,
        *,
        deduplicate: bool = False,
        units: Sequence[str] = (),
        segmenter: str = "none",
        entities_field: str = "entities",
        file_key: str = "file_path",
        lowercase: bool = True,
    ) -> None:
        from electra_fast.data.tokenizer import load_tokenizer

        super().__init__()
        self.parts = _io.get_datafolder(parts)
        self.entities_field = entities_field
        self.file_key = file_key
        loaded = load_tokenizer(tokenizer, lowercase=lowercase)
        self.encoder = Encoder.of(loaded, deduplicate=deduplicate, units=units, segmenter=segmenter)

    def run(self, data: Iterable[datatrove.data.Document] | None = None, rank: int = 0, world_size: int = 1) -> None:
        """Called by datatrove in each task."""
        if data is None:
            raise ValueError("CorpusTokenizer is the first step of its pipeline: put a reader of files before it")
        with _one_thread(), PartWriter(self.parts, rank, world_size, self.encoder) as part:
            for file, documents in groupby(data, self._file):
                for some in chunked(self._texts(documents)):
                    with self.track_time("chunk"):
                        chunk = self.encoder(some)
                        part.write(file, chunk)
                    self.stat_update("documents", value=len(some), unit="chunk")
                    self.stat_update("tokens", value=len(chunk.ids), unit="chunk")

    def _file(self, document: datatrove.data.Document) -> str:
        file = document.metadata.get(self.file_key)
        if not isinstance(file, str):
            raise ValueError(
                f"document {document.id!r} does not name its file in metadata[{self.file_key!r}], and the order of a "
                "corpus is that of the files: use a reader of files (ParquetReader for datasets on the hub), or give "
                "file_key"
            )
        return file

    def _texts(self, documents: Iterable[datatrove.data.Document]) -> Iterator[Document]:
        for document in documents:
            text, where = document.text, f"document {document.id!r}"
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{where} holds a lone surrogate, not text") from error
            if text.strip() and "entity" in self.encoder.units.kinds:
                yield AnnotatedText(text, entity_spans(document.metadata.get(self.entities_field), text, where))
            elif text.strip():
                yield text


class CorpusMerger(_base.PipelineStep):
    """Joins the parts that `CorpusTokenizer` wrote to a corpus, in a pipeline of one task.

    The corpus is the one, byte for byte, that `prepare` writes of the same files in the order of their paths (by code
    point), whatever the number of tasks was: of each file the documents come in the order in which its task met them.

    Args:
        parts: as of `CorpusTokenizer`.
        output: new folder of the corpus, or a URL, as of `prepare`.
        tokenizer: the one of `CorpusTokenizer`; likewise `lowercase`.
        shard_tokens: tokens a file of the corpus.
        overwrite: replace a corpus that is in `output`.
        progress: show how far it is.

    Raises:
        ValueError: when it runs, for more than one task, for parts that are missing, damaged, of another tokenizer or
            of different runs, for a file that two tasks read, and as `prepare`.
    """

    name = "electra-fast: parts to a corpus"
    type = "🔢 - TOKENIZER"

    def __init__(
        self,
        parts: DataFolderLike,
        output: str | Path,
        tokenizer: str | Path,
        *,
        shard_tokens: int = SHARD_TOKENS,
        overwrite: bool = False,
        lowercase: bool = True,
        progress: bool = True,
    ) -> None:
        super().__init__()
        output = as_path(output)
        self.parts = _io.get_datafolder(parts)
        self.output = output if is_url(output) else str(Path(output).resolve())
        self.tokenizer = str(Path(tokenizer).resolve())
        self.shard_tokens = shard_tokens
        self.overwrite = overwrite
        self.lowercase = lowercase
        self.progress = progress

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Called by datatrove."""
        from electra_fast.data.tokenizer import load_tokenizer

        if world_size != 1:
            raise ValueError(f"CorpusMerger writes one corpus: give its pipeline tasks=1, not {world_size}")
        tokenizer = load_tokenizer(self.tokenizer, lowercase=self.lowercase)
        parts = read_parts(self.parts, self.parts.path)
        units = parts[0].units.split(",") if parts[0].units else []
        encoder = Encoder.of(tokenizer, deduplicate=parts[0].deduplicate, units=units, segmenter=parts[0].segmenter)
        if encoder.tokenizer_sha256 != parts[0].tokenizer_sha256:
            raise ValueError(f"{self.parts.path} holds parts of another tokenizer than {self.tokenizer}")
        size = sum(stretch.size for part in parts for stretch in part.stretches)
        with self.track_time("corpus"), ReadingProgress("merge", size, show=self.progress) as reading:
            meta = write_corpus(
                read_chunks(self.parts, parts, encoder, reading.advance),
                tokenizer,
                self.output,
                encoder=encoder,
                shard_tokens=self.shard_tokens,
                overwrite=self.overwrite,
                tell=reading.tell,
                source=self.parts.path,
            )
        self.stat_update("documents", value=meta.documents, unit="corpus")
        self.stat_update("tokens", value=meta.tokens, unit="corpus")


@contextmanager
def _one_thread() -> Iterator[None]:
    """In the block the tokenizers library starts no threads: the tasks are the parallelism."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
