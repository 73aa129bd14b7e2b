"""Prose from docstrings: the sentences of running English, without code, tables, argument types and markup."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator

LINE_WIDTH = 66  # no docstring breaks its lines before this column without meaning it
MIN_WORDS = 5
MAX_WORDS = 80
MAX_CODE_SHARE = 0.15  # of a sentence's words: identifiers, calls, file names, formulas
MIN_FUNCTION_SHARE = 0.15  # of a sentence's words; running English has about 0.4, lists of names have none

_FUNCTION_WORD = re.compile(
    r"a|an|the|this|that|these|those|it|its|is|are|was|were|be|been|being|has|have|had|do|does|did|will|would|can|could|"
    r"may|might|must|shall|should|and|or|but|nor|not|no|if|then|else|when|while|where|which|who|whose|what|how|why|than|"
    r"of|in|on|at|to|from|for|with|without|by|as|into|onto|over|under|between|within|about|after|before|during|until|"
    r"through|per|via|each|every|any|all|some|both|either|neither|such|only|also|so|there|here|we|you|they|he|i|your|"
    r"their|our|them|his|my|one|two|other|another|more|most|same|own|very|because|since|however",
    re.IGNORECASE,
)

# Directives whose body is prose; the body of every other one (code-block, math, table, image ...) is dropped.
_PROSE_DIRECTIVES = frozenset(
    ["note", "warning", "tip", "caution", "important", "attention", "hint", "seealso", "admonition", "impl-detail"]
)
_DROPPED_SECTIONS = frozenset(["example", "examples", "usage", "shape", "shapes", "references", "todo"])
_SECTION = re.compile(r"(?:\*\*|#+ )?([A-Z][A-Za-z]+(?: [A-Za-z]+){0,2}):{1,2}(?:\*\*)?$")
_DIRECTIVE = re.compile(r"\.\. (?:([\w:-]+)::\s*(.*)|.*)$")
_UNDERLINE = re.compile(r"([=\-~^*#\"+`.:])\1{2,}$")
_TABLE_ROW = re.compile(r"\||\+[-=]|.*\S\s+\|\s+\S.*\||[=-]{2,}(?: +[=-]{2,})+$|.*\S {3,}\S.* {3,}\S")
_BULLET = re.compile(r"(?:[-*+•]|\(?[0-9a-z]{1,2}[.)]|#+)\s+(?=\S)")
_FIELD = re.compile(r"[:@](param|arg|keyword|raises?|returns?|return|yields?|var|ivar|type|rtype|throws)\b[^:]*:\s*")
_TYPE = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_ARGUMENT = re.compile(
    rf"(?:[-*+]\s+)?[`*]*[\w.\[\]]+[`*]*(?:\s*[,/]\s*[`*]*[\w.]+[`*]*)*\s*(?:{_TYPE})?\s*(?::|--)(?:\s+|$)"
)
_TYPE_ONLY = re.compile(r"(?:`[^`]*`|[\w.\[\], |]+?)(?:, \*optional\*)?(?:, defaults to [^:]*)?:(?:\s+|$)")

_MAYBE_MARKUP = re.compile(r"[`*$\[\\<{]|://|www\.|\(\)|--")
_BAD = "\x00"  # stands for a formula, a placeholder or a link: the sentence around it is dropped
_MARKUP = [
    (re.compile(r"\{\{.*?\}\}|\$[^$]*\$|\\\(.*?\\\)|\[\[.*?\]\]"), _BAD),
    (re.compile(r":math:`(\w+)`"), r"\1"),
    (re.compile(r":math:`[^`]*`"), _BAD),
    (re.compile(r"!?\[([^\[\]]+)\]\((?:[^()]|\([^()]*\))*\)"), r"\1"),
    (re.compile(r"(?::[\w:+-]+:)?`([^`<]+?)\s*<[^`>]+>`_{0,2}"), r"\1"),
    (re.compile(r":[\w:+-]+:`[~.!](?:[^`]*\.)?([^`.]+)`"), r"\1"),
    (re.compile(r"`[~.!](?:[^`]*\.)?([^`.]+)`"), r"\1"),
    (re.compile(r":[\w:+-]+:`([^`]*)`"), r"\1"),
    (re.compile(r"``([^`]*)``_{0,2}"), r"\1"),
    (re.compile(r"\[?`([^`]*)`_{0,2}\]?"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^\s*](?:[^*]*[^\s*])?)\*(?![\w*])"), r"\1"),
    (re.compile(r"\s*\((?:see:?\s+)?(?:https?://|www\.)[^\s)]*\)"), ""),
    (re.compile(r"<?(?:https?|ftp)://\S+|www\.\S+"), _BAD),
    (re.compile(r"\s*\[\d+\]_?"), ""),
    (re.compile(r"</?[a-zA-Z][^<>]*>"), _BAD),
    (re.compile(r"(?<=\w)\(\)"), ""),
    (re.compile(r"\s*--+\s*"), " - "),
    (re.compile(r" (?=[.,;:!?)](?:\s|$))"), ""),  # where something was taken out
]
_ASCII = str.maketrans(
    {
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{LEFT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
        "\N{EN DASH}": "-",
        "\N{EM DASH}": " - ",
        "\N{HORIZONTAL ELLIPSIS}": "...",
        "\N{ZERO WIDTH SPACE}": "",
    }
)
_SENTENCE_END = re.compile(
    r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)(?<!\bcf\.)(?<!\bal\.)(?<!\bFig\.)(?<!\bEq\.)"
    r"(?<=[.!?])(?<!\.\.)[\"')\]]{0,2}\s+(?=[\"'(\[]?[A-Z])"
)
_SENTENCE_STOP = re.compile(r"[.!?:;,][\"')\]]*$")
_PLAIN_WORD = re.compile(r"[A-Za-z]?[a-z]+(?:['/-][A-Za-z]?[a-z]+)*'?|[A-Z]{1,6}s?|\d+(?:[.,]\d+)*%?|-|&|/")
_NEVER = re.compile(
    r"[^\x20-\x7e]|[{}|<>\\=^~@#$*`]|->|::|\.\.\.\S|\b(?:copyright|licen[cs]ed|warrant(?:y|ies)|hereby)\b", re.I
)
# A block that ends so, without a stop, goes on in something left out: "is equivalent to", "such as".
_CUT_OFF = re.compile(r"\b(?:a|an|the|of|to|is|are|be|as|in|on|at|by|for|with|from|and|or|if|than|that|e\.g|i\.e)$")
_LABEL = re.compile(
    r"(?:Notes?|N\.?B\.?|Warning|Tip|Important|Caution|Example|Return|Returns|Yields|Summary)\s*:\s+(?=\S)"
)


def _without_code(text: str) -> Iterator[str]:
    """The docstring's lines without fenced code, doctests, literal blocks, tables and underlines; "" is a break."""
    closing_fence = ""
    in_doctest = False
    literal_owner: int | None = None  # indentation above which lines belong to a literal block
    for line in inspect.cleandoc(text).splitlines():
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if closing_fence:
            if stripped.startswith(closing_fence):
                closing_fence = ""
        elif not stripped:
            in_doctest = False
            yield ""
        elif literal_owner is not None and indent > literal_owner:
            continue
        elif stripped[:3] in ("```", "~~~", "$$"):
            closing_fence = "" if len(stripped) > 3 and stripped.endswith(stripped[:3]) else stripped[:3]
            yield ""
        elif in_doctest or stripped.startswith((">>>", "$ ", "% ")):
            in_doctest = True
            yield ""
        elif _TABLE_ROW.match(stripped):
            yield ""
        elif stripped.startswith(".."):
            match = _DIRECTIVE.match(stripped)
            is_prose = match is not None and match[1] in _PROSE_DIRECTIVES
            literal_owner = None if is_prose else indent
            yield ""
            if is_prose:
                yield match[2]
        elif (section := _SECTION.match(stripped)) and section[1].lower() in _DROPPED_SECTIONS:
            literal_owner = indent
            yield ""
        else:
            literal_owner = indent if stripped.endswith("::") else None
            yield line[:-1] if stripped.endswith("::") else line


def _blocks(text: str) -> list[str]:
    """The docstring's paragraphs and list entries, each joined to one line; headings left out."""
    blocks: list[list[str]] = [[]]
    room = 0  # columns left on the line before
    for line in _without_code(text):
        stripped = line.strip()
        if _UNDERLINE.match(stripped):
            blocks[-1] = []  # the line above was a heading
            continue
        if not stripped or (_SECTION.match(stripped) and not blocks[-1]):
            blocks.append([])
            continue
        if field := _FIELD.match(stripped):
            blocks.append([])
            stripped = "" if field[1] in ("type", "rtype") else stripped[field.end() :]
        elif argument := _ARGUMENT.match(stripped):
            blocks.append([])
            stripped = stripped[argument.end() :]
            if type_only := _TYPE_ONLY.match(stripped):
                stripped = stripped[type_only.end() :]
        elif bullet := _BULLET.match(stripped):
            blocks.append([])
            stripped = stripped[bullet.end() :]
        elif stripped[0].isupper() and room > len(stripped.split(maxsplit=1)[0]):
            blocks.append([])  # the word had room on the line before: the break is meant
        if stripped:
            blocks[-1].append(stripped)
        room = LINE_WIDTH - len(line)
    return [" ".join(block) for block in blocks if block]


def _is_prose(sentence: str) -> bool:
    words = [word.strip(".,;:!?\"'()[]") for word in sentence.split()]
    words = [word for word in words if word]
    if not MIN_WORDS <= len(words) <= MAX_WORDS or _NEVER.search(sentence):
        return False
    if sentence.count("(") != sentence.count(")") or sentence.count('"') % 2:
        return False
    code = sum(_PLAIN_WORD.fullmatch(word) is None for word in words)
    function = sum(_FUNCTION_WORD.fullmatch(word) is not None for word in words)
    return code <= MAX_CODE_SHARE * len(words) and function >= MIN_FUNCTION_SHARE * len(words)


def paragraphs(docstring: str) -> list[tuple[str, ...]]:
    """The prose of one docstring: paragraphs, each a tuple of ASCII sentences; paragraphs without prose are left out.

    Understands reST, Google, NumPy and Markdown conventions. An argument's entry becomes its description
    ("`x` (`int`): The width." -> "The width."), a role or link its text; a sentence with a formula, a placeholder, a
    URL or more than `MAX_CODE_SHARE` of identifiers is dropped.
    """
    return [sentences for block in _blocks(docstring) if (sentences := _sentences(block))]


@functools.lru_cache(maxsize=1 << 16)  # transformers' docstrings repeat their entries
def _sentences(block: str) -> tuple[str, ...]:
    text = " ".join(block.translate(_ASCII).split())
    if _MAYBE_MARKUP.search(text):
        for pattern, replacement in _MARKUP:
            text = pattern.sub(replacement, text)
    text = _LABEL.sub("", text.strip())
    if _CUT_OFF.search(text):
        text += _BAD
    elif text and not _SENTENCE_STOP.search(text):
        text += "."
    return tuple(s[0].upper() + s[1:] for s in _SENTENCE_END.split(text) if s and _is_prose(s))
