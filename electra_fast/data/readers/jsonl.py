"""JSON lines: an object a line, the document in its string `text_field`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from electra_fast.data.readers.base import Document, Progress
from electra_fast.data.readers.text import lines
from electra_fast.data.remote import InputFile
from electra_fast.data.units import AnnotatedText, entity_spans


class JsonLines:
    """Blank lines and documents without text are left out.

    Where `entities_field` is set, documents come with the spans in that field of theirs.
    """

    entities_field: str | None = None

    def __init__(self, path: InputFile, text_field: str) -> None:
        self.path = path
        self.text_field = text_field
        self.size = path.stat().st_size

    def documents(self, progress: Progress) -> Iterator[Document]:
        for number, line in lines(self.path, progress):
            if line.strip():
                where = f"{self.path}, line {number}"
                record = self._record(line, where)
                text = record[self.text_field]
                if text.strip() and self.entities_field is not None:
                    yield AnnotatedText(text, entity_spans(record.get(self.entities_field), text, where))
                elif text.strip():
                    yield text

    def _record(self, line: str, where: str) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # numbers of too many digits, too many brackets
            raise ValueError(f"{where}: not JSON ({error}); each line is an object by itself") from error
        text = record.get(self.text_field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise ValueError(
                f"{where}: expected a JSON object with a string field {self.text_field!r}, got {line[:80]!r}; "
                "name the field with text_field"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: {self.text_field!r} holds a lone surrogate, not text") from error
        return record
