"""JSON lines: an object a line, the document in its string `text_field`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from electra_fast.data.readers.base import Progress
from electra_fast.data.readers.text import lines


class JsonLines:
    """Blank lines and documents without text are left out."""

    def __init__(self, path: Path, text_field: str) -> None:
        self.path = path
        self.text_field = text_field
        self.size = path.stat().st_size

    def documents(self, progress: Progress) -> Iterator[str]:
        for number, line in lines(self.path, progress):
            if line.strip():
                text = self._text(line, f"{self.path}, line {number}")
                if text.strip():
                    yield text

    def _text(self, line: str, where: str) -> str:
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
        return text
