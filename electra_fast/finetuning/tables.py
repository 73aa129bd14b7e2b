"""Rows of CSV, TSV and JSON-lines files, or of JSON objects, with errors that name file and row, or the example."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from electra_fast.arguments import nearest, shown

ENDINGS = (".csv", ".tsv", ".jsonl")
_MAX_FIELD = 2**31 - 1  # characters; csv's own default refuses long documents


@dataclass(frozen=True)
class Row:
    """One row: its values by column, and where it stands. `number` is the line in the file, from 1.

    Without a file it is an object out of a program: an example of a list, counted from 1 too.
    """

    file: Path | None
    number: int
    values: dict[str, Any]

    @property
    def place(self) -> str:
        """As errors name it, within its file."""
        return f"example {self.number:,}" if self.file is None else f"row {self.number:,}"

    def error(self, what: str) -> ValueError:
        """The error to raise about this row."""
        return error_at(self.file, self.place, what)

    def get(self, column: str) -> Any:
        """The value of `column`, of whatever type the file has. Raises ValueError where there is none."""
        if column not in self.values:
            have = ", ".join(self.values)
            kind = "key" if self.file is None else "column"
            raise self.error(f"no {kind} {column!r}{nearest(column, self.values)} ({kind}s: {have})")
        return self.values[column]

    def has(self, column: str) -> bool:
        """Whether `column` is there and holds anything but blanks."""
        value = self.values.get(column)
        return value is not None and str(value).strip() != ""

    def text(self, column: str, *, may_be_blank: bool = False) -> str:
        """A text, stripped, that is not blank unless it may be. Raises ValueError."""
        value = self.get(column)
        if not isinstance(value, str):
            raise self.error(f"{column} must be text; got {shown(value)}")
        if not (value.strip() or may_be_blank):
            raise self.error(f"{column} is empty")
        return value.strip()

    def real(self, column: str) -> float:
        """A finite number. Raises ValueError."""
        value = self.get(column)
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not abs(number) < float("inf"):
            raise self.error(f"{column} must be a number; got {shown(value)}")
        return number


def error_at(file: Path | None, place: str, what: str) -> ValueError:
    """The error to raise about a place in a file, or in a list of examples."""
    return ValueError(f"{place}: {what}" if file is None else f"{file}, {place}: {what}")


def object_rows(objects: Iterable[Any]) -> list[Row]:
    """Rows of JSON objects. Raises ValueError about one that is no object."""
    rows = []
    for number, values in enumerate(objects, start=1):
        row = Row(None, number, values)
        if not isinstance(values, dict):
            raise row.error(f"expected a JSON object; got {shown(values)}")
        rows.append(row)
    return rows


def read_rows(
    file: Path, *, columns: Sequence[str] | None = None, quoted: bool | None = None, skip_broken: bool = False
) -> Iterator[Row]:
    """The rows of a .csv, .tsv or .jsonl file (UTF-8), one after another.

    Args:
        columns: names of the columns where the first line is a row too; None: the first line has them.
        quoted: whether fields may stand in double quotes; None: in .csv they may, in .tsv not, as in GLUE's files.
        skip_broken: leave out rows with too few or too many fields.

    Raises:
        ValueError: another ending; no row; a row with too few or too many fields; broken JSON; not UTF-8.
    """
    if file.suffix not in ENDINGS:
        raise ValueError(f"{file}: expected a file whose name ends in {', '.join(ENDINGS)}")
    number = 0
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = (
                _json_rows(file, lines)
                if file.suffix == ".jsonl"
                else _fields(file, lines, columns, quoted, skip_broken)
            )
            for row in rows:
                number = row.number
                yield row
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}, after row {number:,}: not UTF-8 ({error.reason}): convert the file") from error
    except csv.Error as error:
        raise ValueError(f"{file}, after row {number:,}: {error}") from error
    if number == 0:
        raise ValueError(f"{file} holds no row")


def _json_rows(file: Path, lines: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file}, row {number:,}: broken JSON: {error.msg} at character {error.pos + 1}"
            ) from error
        if not isinstance(values, dict):
            raise ValueError(f"{file}, row {number:,}: expected a JSON object; got {shown(values)}")
        yield Row(file, number, values)


def _fields(
    file: Path, lines: Iterator[str], columns: Sequence[str] | None, quoted: bool | None, skip_broken: bool
) -> Iterator[Row]:
    is_tsv = file.suffix == ".tsv"
    quoted = not is_tsv if quoted is None else quoted
    csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(
        lines,
        delimiter="\t" if is_tsv else ",",
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=quoted,
    )
    for fields in reader:
        if not fields:
            continue
        if columns is None:
            columns = [name.strip() for name in fields]
            continue
        if len(fields) != len(columns):
            if skip_broken:
                continue
            raise ValueError(
                f"{file}, row {reader.line_num:,}: {len(fields)} fields, but {len(columns)} columns: "
                f"{', '.join(columns)}"
            )
        yield Row(file, reader.line_num, dict(zip(columns, fields, strict=True)))
