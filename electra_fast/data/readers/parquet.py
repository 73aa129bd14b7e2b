"""Parquet: a document a row, in the string column `text_field`; no other column is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from electra_fast.data.readers.base import Progress
from electra_fast.data.remote import InputFile
from electra_fast.extras import require

ROWS = 256  # decoded at a time


class ParquetFile:
    """Streams: memory holds the text of one row group at most, and of ROWS rows as Python strings.

    Rows that are null or blank are left out.
    """

    def __init__(self, path: InputFile, text_field: str) -> None:
        require("pyarrow", extra="parquet", purpose="Parquet files")
        self.path = path
        self.text_field = text_field
        self.size = path.stat().st_size
        with self._open() as file:
            check_column(file.schema_arrow, text_field, path)

    def documents(self, progress: Progress) -> Iterator[str]:
        from pyarrow import ArrowException

        row, told = 0, 0
        with self._open() as file:
            # One row group at a time, on this thread: pyarrow would read ahead, and take the workers' cores.
            for group in range(file.num_row_groups):
                batches = file.iter_batches(ROWS, [group], columns=[self.text_field], use_threads=False)
                while True:
                    try:
                        batch = next(batches, None)
                    except (ArrowException, OSError) as error:
                        if getattr(error, "errno", None) is not None:
                            raise
                        raise _damaged(self.path, f"row group {group}: {error}") from error
                    if batch is None:
                        break
                    yield from texts(batch.column(0), self.path, row)
                    row += len(batch)
                    read = self.size * row // file.metadata.num_rows
                    progress(read - told)
                    told = read

    def _open(self) -> Any:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile as Parquet

        try:
            return Parquet(self.path if isinstance(self.path, Path) else self.path.open())
        except (ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise _damaged(self.path, str(error)) from error


def check_column(schema: Any, name: str, where: object) -> None:
    """Raises ValueError if an Arrow schema has no column of strings of that name."""
    from pyarrow import types

    column = schema.field(name).type if name in schema.names else None
    strings = [field.name for field in schema if _is_string(types, field.type)]
    if column is None or not _is_string(types, column):
        found = f"no column {name!r}" if column is None else f"{name!r} as {column}, which is no text"
        advice = f"its columns of text are {', '.join(strings)}" if strings else "it has no column of text"
        raise ValueError(f"{where} holds {found}; {advice}; name one with text_field")


def _is_string(types: Any, kind: Any) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def texts(column: Any, where: object, first_row: int) -> Iterator[str]:
    """The rows of an Arrow array that hold text. Raises ValueError for bytes that are not UTF-8, naming the row."""
    for row, scalar in enumerate(column, start=first_row):
        try:
            text = scalar.as_py()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}, row {row}: not UTF-8 ({error.reason} at byte {error.start})") from error
        if text is not None and text.strip():
            yield text


def _damaged(path: InputFile, reason: str) -> ValueError:
    reason = " ".join(reason.split())[:200]
    return ValueError(f"{path} is damaged, or no Parquet file: {reason}; get the file again")
