"""Plain text, UTF-8: a paragraph a line and an empty line between documents, or the file as one document."""

from __future__ import annotations

from collections.abc import Iterator

from electra_fast.data.compression import open_content
from electra_fast.data.readers.base import Progress
from electra_fast.data.remote import InputFile


def lines(path: InputFile, progress: Progress) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a file, compressed or not; a byte order mark is dropped.

    Raises ValueError naming the line and the byte's offset in the content for bytes that are not UTF-8.
    """
    offset = 0
    with open_content(path, progress) as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                position = raw.index(error.object) + error.start if number == 1 else error.start
                raise ValueError(
                    f"{path}, line {number}: byte {raw[position]:#04x} at offset {offset + position} is not UTF-8 "
                    f"({error.reason}); convert the file to UTF-8, or say its --format if it is no text"
                ) from error
            offset += len(raw)
            yield number, line.rstrip("\r\n")


class TextFile:
    """A document is its paragraphs, joined by "\\n"."""

    def __init__(self, path: InputFile, text_field: str) -> None:
        self.path = path
        self.size = path.stat().st_size

    def documents(self, progress: Progress) -> Iterator[str]:
        paragraphs: list[str] = []
        for _, line in lines(self.path, progress):
            if line.strip():
                paragraphs.append(line)
            elif paragraphs:
                yield "\n".join(paragraphs)
                paragraphs = []
        if paragraphs:
            yield "\n".join(paragraphs)


class WholeFile:
    """The file is one document, as a book is: its empty lines part paragraphs, not documents."""

    def __init__(self, path: InputFile, text_field: str) -> None:
        self.path = path
        self.size = path.stat().st_size

    def documents(self, progress: Progress) -> Iterator[str]:
        document = "\n".join(line for _, line in lines(self.path, progress) if line.strip())
        if document:
            yield document
