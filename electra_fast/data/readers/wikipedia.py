"""A wiki's dump, `pages-articles.xml`, as Wikimedia publishes it, usually compressed with bzip2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from electra_fast.data.compression import open_content
from electra_fast.data.readers.base import Progress
from electra_fast.data.readers.wikitext import to_text, to_text_and_links
from electra_fast.data.remote import InputFile
from electra_fast.extras import require

# English names hold in every wiki, beside its own.
NAMESPACES = frozenset({"file", "image", "category", "media", "template"})


@dataclass(frozen=True)
class WikiPage:
    """An article as the dump has it. namespaces: what opens links that are not to articles, in lower case."""

    title: str
    wikitext: str
    namespaces: frozenset[str]

    def __len__(self) -> int:
        return len(self.wikitext)

    def text(self) -> str:
        """The title, then a paragraph, heading or list item a line; empty for a page without text."""
        text = to_text(self.wikitext, self.namespaces)
        return f"{self.title}\n{text}" if text else ""

    @property
    def entities(self) -> list[tuple[int, int]]:
        """Where in `text()` the names of other pages stand: what a link names is an entity."""
        return self.text_and_links()[1]

    def text_and_links(self) -> tuple[str, list[tuple[int, int]]]:
        """`text()`, and where in it the text of each link to another page stands, [start, end)."""
        text, links = to_text_and_links(self.wikitext, self.namespaces)
        shift = len(self.title) + 1
        return f"{self.title}\n{text}" if text else "", [(start + shift, end + shift) for start, end in links]


class WikipediaDump:
    """The articles: pages of the main namespace that are wikitext and no redirects. Streams, a page at a time."""

    def __init__(self, path: InputFile, text_field: str) -> None:
        require("mwparserfromhell", extra="wikipedia", purpose="Wikipedia dumps")
        self.path = path
        self.size = path.stat().st_size

    def documents(self, progress: Progress) -> Iterator[WikiPage]:
        namespaces = NAMESPACES
        with open_content(self.path, progress) as file:
            events = ElementTree.iterparse(file, events=("start", "end"))
            root: Any = None
            while True:
                try:
                    event, element = next(events, (None, None))
                except ElementTree.ParseError as error:
                    raise ValueError(f"{self.path} is damaged, or no dump of a wiki: {error}; get it again") from error
                if event is None:
                    return
                if root is None:
                    root = element
                if event == "start":
                    continue
                tag = element.tag.rpartition("}")[2]
                if tag == "namespaces":
                    namespaces |= {name.text.lower() for name in element if name.text}
                elif tag == "page":
                    page = _article(element, namespaces)
                    root.clear()  # else all pages stay in memory
                    if page is not None:
                        yield page


def _article(page: Any, namespaces: frozenset[str]) -> WikiPage | None:
    fields = {element.tag.rpartition("}")[2]: element for element in page}
    if "redirect" in fields or fields["ns"].text != "0" or "revision" not in fields:
        return None
    revision = {element.tag.rpartition("}")[2]: element.text for element in fields["revision"]}
    if revision.get("model", "wikitext") != "wikitext" or not revision.get("text"):
        return None
    return WikiPage(fields["title"].text, revision["text"], namespaces)
