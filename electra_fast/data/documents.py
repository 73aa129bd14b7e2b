"""Documents from files: plain text and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")


def check_inputs(inputs: str | Path | Sequence[str | Path]) -> list[Path]:
    """The input files as paths. Raises ValueError for none, and for one that is no file."""
    paths = [Path(path) for path in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    if not paths:
        raise ValueError("inputs is empty: name at least one text or JSONL file")
    for path in paths:
        if not path.is_file():
            wrong = "a folder: name the files in it" if path.is_dir() else f"not there, seen from {Path.cwd()}"
            raise ValueError(f"input {path} is {wrong}")
    return paths


def read_documents(
    path: str | Path,
    *,
    format: str = "auto",
    text_field: str = "text",
    progress: Callable[[int], object] | None = None,
) -> Iterator[str]:
    """Yields the documents of one UTF-8 file, in order; documents without text are left out.

    format: "text" (a paragraph a line, an empty line between documents; a document is its paragraphs joined by "\\n"),
    "jsonl" (a JSON object a line, the document in its string `text_field`), or "auto" (jsonl for .jsonl, .ndjson and
    .json, else text). `progress` is called with the number of bytes read since its last call.

    Raises ValueError naming the file, the line (from 1) and, for bytes that are not UTF-8, the byte offset in the file.
    """
    path = Path(path)
    if format == "auto":
        format = "jsonl" if path.suffix.lower() in JSONL_SUFFIXES else "text"
    if format == "text":
        return _text_documents(path, progress)
    if format == "jsonl":
        return _json_documents(path, text_field, progress)
    raise ValueError(f'format must be "auto", "text" or "jsonl", got {format!r}')


def _lines(path: Path, progress: Callable[[int], object] | None) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a file; a byte order mark is dropped."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if progress is not None:
                progress(len(raw))
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                position = raw.index(error.object) + error.start if number == 1 else error.start
                raise ValueError(
                    f"{path}, line {number}: byte {raw[position]:#04x} at offset {offset + position} is not UTF-8 "
                    f"({error.reason}); convert the file to UTF-8, or unpack it if it is compressed"
                ) from error
            offset += len(raw)
            yield number, line.rstrip("\r\n")


def _text_documents(path: Path, progress: Callable[[int], object] | None) -> Iterator[str]:
    paragraphs: list[str] = []
    for _, line in _lines(path, progress):
        if line.strip():
            paragraphs.append(line)
        elif paragraphs:
            yield "\n".join(paragraphs)
            paragraphs = []
    if paragraphs:
        yield "\n".join(paragraphs)


def _json_documents(path: Path, text_field: str, progress: Callable[[int], object] | None) -> Iterator[str]:
    for number, line in _lines(path, progress):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # numbers of too many digits, too many brackets
            raise ValueError(f"{path}, line {number}: not JSON ({error}); each line is an object by itself") from error
        text = record.get(text_field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with a string field {text_field!r}, got {line[:80]!r}; "
                "name the field with text_field"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{path}, line {number}: {text_field!r} holds a lone surrogate, not text") from error
        if text.strip():
            yield text
