"""Documents from inputs of any format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from electra_fast.data.readers import FORMATS, Input, find_inputs, open_reader
from electra_fast.data.readers.base import Progress, Reader, plain_text
from electra_fast.data.readers.jsonl import JsonLines
from electra_fast.data.readers.wikipedia import WikipediaDump


def check_inputs(inputs: str | Path | Sequence[str | Path]) -> list[Input]:
    """The inputs: files, here or behind URLs, datasets' folders, and `hf://` names.

    Raises ValueError for none, and for one that is not there.
    """
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    if not given:
        raise ValueError("inputs is empty: name at least one file, or a dataset")
    return [found for path in given for found in find_inputs(path)]


def check_format(format: str) -> None:
    """Raises ValueError for a name that is neither "auto" nor in FORMATS."""
    if format != "auto" and format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(['auto', *FORMATS])}; got {format!r}")


def open_inputs(
    inputs: str | Path | Sequence[str | Path], *, format: str = "auto", text_field: str = "text"
) -> list[Reader]:
    """A reader for each input, in order; see `read_documents`.

    Raises ValueError for mistakes that show before the text is read.
    """
    check_format(format)
    return [open_reader(path, format, text_field) for path in check_inputs(inputs)]


def read_documents(
    inputs: str | Path | Sequence[str | Path],
    *,
    format: str = "auto",
    text_field: str = "text",
    progress: Progress | None = None,
) -> Iterator[str]:
    """Yields the documents of an input, or of several, in order; documents without text are left out.

    An input is a path, a URL that fsspec knows (s3://..., https://..., patterns as "gs://texts/*.txt.gz" too), or the
    `hf://` name of a dataset. format: a name in `readers.FORMATS`, or "auto": by the file's name, else by how its
    content begins. Text is UTF-8. Files may be compressed (gzip, bzip2, xz, zstd), Parquet aside. text_field: the field
    or column that holds the text, where there are any. `progress` is called with the number of bytes of the input read
    since its last call.

    Raises ValueError naming the input and, where there is one, the line, row or page that can't be read.
    """
    readers = open_inputs(inputs, format=format, text_field=text_field)
    documents = chain.from_iterable(reader.documents(progress or (lambda _: None)) for reader in readers)
    return filter(str.strip, map(plain_text, documents))


def read_entities(readers: Sequence[Reader], field: str) -> None:
    """Have the documents of `readers` come with entities: JSON lines with those in `field`, dumps with their links.

    Raises ValueError for inputs that have none.
    """
    for reader in readers:
        if isinstance(reader, JsonLines):
            reader.entities_field = field
        elif not isinstance(reader, WikipediaDump):
            raise ValueError(
                f"entities are read from JSON lines and wiki dumps, and {reader.path} is something else: convert it"
            )
