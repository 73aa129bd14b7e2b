"""The formats of input: a module for each, and here the table of them.

A new format is a class that does what `base.Reader` says, in a module of its own, and a row in FORMATS.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from electra_fast.data.compression import open_content, strip_compression
from electra_fast.data.readers.base import Reader
from electra_fast.data.readers.hugging_face import HuggingFaceDataset, is_dataset_folder, is_dataset_name
from electra_fast.data.readers.jsonl import JsonLines
from electra_fast.data.readers.parquet import ParquetFile
from electra_fast.data.readers.text import TextFile, WholeFile
from electra_fast.data.readers.wikipedia import WikipediaDump
from electra_fast.data.remote import InputFile, find_files, is_url

Input = InputFile | str  # a file, a dataset's folder, or a dataset's name


class Format(NamedTuple):
    """One kind of input: its reader, the suffixes of its files, how their content begins, and what it is."""

    reader: Callable[[Input, str], Reader]
    suffixes: tuple[str, ...]
    magic: bytes | None
    about: str
    compressed: bool = True  # whether its files may be compressed as a whole


FORMATS = {
    "text": Format(TextFile, (".txt", ".text"), None, "a paragraph a line, an empty line between documents"),
    "whole": Format(WholeFile, (), None, "text of which a file is one document, as a book"),
    "jsonl": Format(JsonLines, (".jsonl", ".ndjson", ".json"), None, "a JSON object a line, with a field of text"),
    "parquet": Format(ParquetFile, (".parquet",), b"PAR1", "a column of text", compressed=False),
    "huggingface": Format(HuggingFaceDataset, (), None, "a folder of save_to_disk, or hf://NAME[/CONFIG][:SPLIT]"),
    "wikipedia": Format(WikipediaDump, (".xml",), b"<mediawiki", "a dump of a wiki's pages (pages-articles.xml)"),
}


def find_format(path: Input) -> str:
    """The name of the format of an input that is there: by its name, else by how its content begins; else "text"."""
    if isinstance(path, str) or (isinstance(path, Path) and path.is_dir()):
        return "huggingface"
    name = strip_compression(path.name).lower()
    for format, row in FORMATS.items():
        if name.endswith(row.suffixes):
            return format
    with open_content(path) as file:
        head = file.peek(16)
    return next((format for format, row in FORMATS.items() if row.magic and head.startswith(row.magic)), "text")


def find_inputs(path: str | Path) -> list[Input]:
    """The inputs that a path, a dataset's `hf://` name or a URL, which may be a pattern, stands for.

    Raises ValueError for what is not there, and for a folder that `save_to_disk` didn't write.
    """
    if is_dataset_name(path):
        return [path]
    if is_url(path):
        return find_files(path)
    path = Path(path)
    if path.is_dir() and not is_dataset_folder(path):
        raise ValueError(f"input {path} is a folder: name the files in it")
    if not path.exists():
        raise ValueError(f"input {path} is not there, seen from {Path.cwd()}")
    return [path]


def open_reader(path: Input, format: str, text_field: str) -> Reader:
    """The reader of one input that was found, by a name in FORMATS or "auto".

    Raises ValueError where input and format don't fit, and what the reader finds wrong.
    """
    if format == "auto":
        format = find_format(path)
    is_file = not isinstance(path, str) and path.is_file()
    if is_file != (format != "huggingface"):
        raise ValueError(f"input {path} is {'a file' if is_file else 'a dataset'}: it can't be read as {format}")
    if is_file and not FORMATS[format].compressed and strip_compression(path.name) != path.name:
        raise ValueError(f"input {path} is compressed: {format} files are compressed inside, so unpack it first")
    return FORMATS[format].reader(path, text_field)
