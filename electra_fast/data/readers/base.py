"""What a reader is, and what it yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from electra_fast.data.remote import InputFile

Progress = Callable[[int], object]


class Markup(Protocol):
    """A document that is dear to convert to text: `prepare` does so in its worker processes, hence it is pickled."""

    def __len__(self) -> int:
        """About how many characters it has."""
        ...

    def text(self) -> str:
        """The plain text; blank if there is none."""
        ...


Document = str | Markup


class Reader(Protocol):
    """One input. Making it does what is quick and finds mistakes: that the column is there, say.

    `path` is the input as it was given, `text_field` the field or column that holds the text, where there are any.
    """

    size: int  # of the input in bytes, compressed as it is: what `progress` will add up to

    def __init__(self, path: InputFile, text_field: str) -> None: ...

    def documents(self, progress: Progress) -> Iterator[Document]:
        """Yields the documents in order; `progress` is called with the bytes read since its last call.

        Raises ValueError naming the input and the place in it for what can't be read.
        """
        ...


def plain_text(document: Document) -> str:
    """The document's text, converted if need be."""
    return document if isinstance(document, str) else document.text()
