"""Wikitext to plain text: what a reader of the article would read in its paragraphs, headings and lists."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from electra_fast.extras import require

# Tags without prose. The parser makes "table" of {|...|} too.
DROPPED_TAGS = {
    "ref", "references", "table", "gallery", "math", "chem", "ce", "timeline", "imagemap", "graph", "score", "hiero",
    "categorytree", "inputbox", "mapframe", "maplink", "syntaxhighlight", "source", "templatestyles", "section",
    "indicator", "style", "script",
}  # fmt: skip
VARIANTS = ("zh-hans", "zh-cn", "zh")  # which of -{zh-hans:...;zh-hant:...}- is read, the first that is there
HEADING = "\x02"  # with the level's digit opens a line that is one; XML can't hold this nor the next two
LINK_START, LINK_END = "\x0e", "\x0f"

_QUOTES = re.compile(r"'{2,5}")  # bold and italics
_SWITCHES = re.compile(r"__[A-Z]+__")  # __NOTOC__
# What templates leave of "(German: {{lang|de|...}}; born 1970)". Brackets, commas and so on of Chinese too.
_OPEN, _CLOSE, _MARKS = r"[(\uff08]", r"[)\uff09]", r" \t\u00a0,;:/\u3001\uff0c\uff1b\uff1a"
_EMPTY_BRACKETS = re.compile(rf" *{_OPEN}[{_MARKS}\u2013-]*{_CLOSE}")
_BRACKETS_START = re.compile(rf"({_OPEN})[{_MARKS}]+")
_BRACKETS_END = re.compile(rf"[{_MARKS}]+({_CLOSE})")
_DOUBLE_MARKS = re.compile(r"[,;:\uff0c\uff1b\uff1a] *(?=[,;\uff0c\uff1b])")
_SPACES = re.compile(r"[^\S\n]+")
_VARIANT = re.compile(r"-\{([^{}]*)\}-")


def to_text(wikitext: str, namespaces: Collection[str] = ()) -> str:
    """The plain text of a page, a paragraph, heading or list item a line; empty if there is none.

    Templates, tables, references, comments, files and categories go; links leave their text. A heading without text
    below it goes too. `namespaces`: the wiki's, in lower case ("datei", "kategorie"); links into them are not text.

    Raises ValueError naming the extra if the parser is not installed.
    """
    return "\n".join(_lines(wikitext, namespaces, mark_links=False))


def to_text_and_links(wikitext: str, namespaces: Collection[str] = ()) -> tuple[str, list[tuple[int, int]]]:
    """`to_text`, and where in it the text of each link to another page stands, [start, end): the names of entities."""
    marked = "\n".join(_lines(wikitext, namespaces, mark_links=True))
    pieces, spans, start, length = [], [], 0, 0
    for piece in re.split(f"([{LINK_START}{LINK_END}])", marked):
        if piece == LINK_START:
            start = length
        elif piece == LINK_END:
            spans += [(start, length)] if start < length else []
        else:
            pieces.append(piece)
            length += len(piece)
    return "".join(pieces), spans


def _lines(wikitext: str, namespaces: Collection[str], mark_links: bool) -> list[str]:
    parser = require("mwparserfromhell", extra="wikipedia", purpose="Wikipedia dumps")
    if "-{" in wikitext:
        wikitext = _VARIANT.sub(_variant, wikitext)
    # Without the quotes: unbalanced ones, which are common, would hide the templates behind them.
    pieces: list[str] = []
    _write(parser.parse(wikitext, skip_style_tags=True), parser.nodes, namespaces, mark_links, pieces)
    text = _SWITCHES.sub("", _QUOTES.sub("", "".join(pieces)))
    text = _DOUBLE_MARKS.sub("", text)
    text = _BRACKETS_END.sub(r"\1", _BRACKETS_START.sub(r"\1", _EMPTY_BRACKETS.sub("", text)))
    return _without_empty_sections(line.strip() for line in _SPACES.sub(" ", text).split("\n"))


def _without_empty_sections(lines: Iterable[str]) -> list[str]:
    """Lines with a letter or digit; a heading only with text below it, before the next one of its level or above."""
    kept, headings = [], []
    for line in lines:
        if line.startswith(HEADING):
            headings = [heading for heading in headings if heading[1] < line[1]] + [line]
        elif any(map(str.isalnum, line)):
            kept += [heading[2:].strip() for heading in headings] + [line]
            headings = []
    return kept


def _write(wikicode, nodes, namespaces: Collection[str], mark_links: bool, out: list[str]) -> None:
    """Appends the text of all nodes, with the line ends of the wikitext."""
    for node in wikicode.nodes:
        kind = type(node)
        if kind is nodes.Text:
            out.append(node.value)
        elif kind is nodes.Wikilink:
            target = str(node.title).strip()
            if target.partition(":")[0].strip().lower() in namespaces:  # [[:File:a.png]] is a link, [[File:a.png]] not
                continue
            out.append(LINK_START if mark_links else "")
            if node.text is None:
                out.append(target.removeprefix(":").partition("#")[0] or target)
            else:
                _write(node.text, nodes, namespaces, False, out)
            out.append(LINK_END if mark_links else "")
        elif kind is nodes.Tag:
            name = str(node.tag).strip().lower()
            if name == "br":
                out.append(" ")
            elif node.contents is not None and name not in DROPPED_TAGS:
                _write(node.contents, nodes, namespaces, mark_links, out)
        elif kind is nodes.Heading:
            out.append(f"\n{HEADING}{node.level}")
            _write(node.title, nodes, namespaces, False, out)
            out.append("\n")
        elif kind is nodes.ExternalLink:
            if node.title is not None:
                _write(node.title, nodes, namespaces, False, out)
        elif kind is nodes.HTMLEntity:
            out.append(node.normalize() or "")
        # Template, Argument, Comment: nothing


def _variant(match: re.Match[str]) -> str:
    """What `-{...}-` shows: rules of conversion between kinds of Chinese. With the flag H, T, D or - nothing."""
    flags, bar, content = match[1].rpartition("|")
    if bar and any(flag.strip() in ("H", "T", "D", "-") for flag in flags.split(";")):
        return ""
    rules = dict(rule.split(":", 1) for rule in content.split(";") if ":" in rule)
    rules = {variant.strip(): text.strip() for variant, text in rules.items()}
    if not any(variant.startswith("zh") for variant in rules):
        return content
    return next((rules[variant] for variant in VARIANTS if variant in rules), next(iter(rules.values())))
