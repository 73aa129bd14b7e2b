"""Files with a word a line and an empty line between sentences, as CoNLL's shared tasks and WNUT write them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from electra_fast.arguments import nearest
from electra_fast.finetuning.tables import Row

ENDINGS = (".conll", ".txt", ".tsv", ".iob")
_DOCUMENT = "-DOCSTART-"
_EDGE = " \t\r\n\ufeff"  # WNUT 17 ends in a byte order mark


class Sentence(NamedTuple):
    """Words and, where the file has them, their tags; the row of each."""

    words: list[str]
    tags: list[str] | None
    rows: list[Row]


def read_conll(file: Path, word: str, tag: str | None, *, has_tags: bool | None) -> list[Sentence]:
    """The sentences of a file (UTF-8) whose columns are parted by tabs, or by blanks where its first row has no tab.

    Args:
        word, tag: column by number, from 1, or from -1 backwards; or both by name, where the first row has the names.
            `tag` None: the last column.
        has_tags: False: tags are not looked at; None: they are read if they are there.

    Raises:
        ValueError: no sentence; a row with another number of columns than the first; no such column; not UTF-8.
    """
    sentences: list[Sentence] = []
    columns: _Columns | None = None
    is_within = False
    for row, fields in _fields(file):
        if fields is None:
            is_within = False
            continue
        if columns is None:
            columns = _columns(row, fields, word, tag, has_tags)
            if not _is_number(word):
                continue
        if len(fields) != columns.count:
            raise row.error(f"{_counted(len(fields))}, but row {columns.row:,} has {columns.count}")
        if not is_within:
            sentences.append(Sentence([], None if columns.tag is None else [], []))
            is_within = True
        sentence = sentences[-1]
        sentence.words.append(fields[columns.word])
        sentence.rows.append(row)
        if columns.tag is not None:
            sentence.tags.append(fields[columns.tag])
    if not sentences:
        raise ValueError(f"{file} holds no sentence")
    return sentences


def _fields(file: Path) -> Iterator[tuple[Row, list[str] | None]]:
    """Each line's fields; None for one that parts sentences."""
    separator: str | None = None
    number = 0
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                row = Row(file, number, {})
                line = line.strip(_EDGE)
                if not line or line.startswith(_DOCUMENT):
                    yield row, None
                    continue
                if separator is None:
                    separator = "\t" if "\t" in line else " "
                fields = [field.strip(" ") for field in line.split(separator)]
                yield row, fields if separator == "\t" else [field for field in fields if field]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}, after row {number:,}: not UTF-8 ({error.reason}): convert the file") from error


class _Columns(NamedTuple):
    """Which columns are read, how many there are, and the row that says so."""

    word: int
    tag: int | None
    count: int
    row: int


def _columns(first: Row, fields: list[str], word: str, tag: str | None, has_tags: bool | None) -> _Columns:
    if tag is not None and _is_number(word) != _is_number(tag):
        raise ValueError(f"word is {word!r} and tag {tag!r}: give both columns by number, or both by name")
    word_at, tag_at = _place(first, fields, word), None
    is_there = len(fields) > 1 and (tag is None or _is_number(tag) or tag in fields)
    if has_tags or (has_tags is None and is_there):
        tag_at = _place(first, fields, tag or "-1")
        if tag_at == word_at:
            raise first.error(f"{_counted(len(fields))}: expected a word and its tag, parted by a tab or blank")
    return _Columns(word_at, tag_at, len(fields), first.number)


def _place(row: Row, fields: list[str], column: str) -> int:
    if not _is_number(column):
        if column not in fields:
            raise row.error(f"no column {column!r}{nearest(column, fields)} (columns: {', '.join(fields)})")
        return fields.index(column)
    number = int(column)
    if number == 0 or abs(number) > len(fields):
        raise row.error(f"{_counted(len(fields))}, and so no column {number}")
    return number - 1 if number > 0 else len(fields) + number


def _is_number(column: str) -> bool:
    return column.removeprefix("-").isdecimal()


def _counted(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"
