"""Ten kinds of damage to a config file or a corpus: each a function of a NumPy generator and of what it damages."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

_VALUES = [
    "text", "''", "true", "null", "-1", "0", "1", "0.5", "3", "1e3", "1.0e-3", ".nan", "-.inf", "0x1F", "1_000",
    "9" * 25, "2020-01-01", "2020-99-99", "1:30", "[1, 2]", "{a: b}", "[]", "{}", "~", "yes", "!!python/none x",
    "!!binary aGk=", "*anchor", "&anchor 3", "|", "> folded", '"a\\0b"', '"\\uD800"', "'" + "long " * 500 + "'", "漢字",
    "${HOME}",
]  # fmt: skip
_VALUE = re.compile(r"(?<=: )[^,{}\n#]+(?=[,}\n]|$)")
_KEY = re.compile(r"[a-z_]+\w*(?=:)")
_PIECES = [
    "{",
    "}",
    "[",
    "]",
    ":",
    "'",
    '"',
    "\t",
    "\n",
    "- ",
    "? ",
    "&a",
    "*a",
    "%",
    "@",
    "\x00",
    "\x85",
    "\ufeff",
    "---\n",
]
_BAD_BYTES = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf", b"\xe9", b"\x80"]
_STRANGE = [
    "\ufeff", "\x00", "\r", "\r\n\r\n", "\u2028", "\x0b", "\x85", "[MASK] [CLS]", "\u00ad\u00ad", "\u202e",
    "😀👩\u200d🚀", "漢字かな", "e\u0301" * 50, "x" * 3000, "x " * 20_000, "\n" * 1000, " \t\n", "#" * 500,
    "\U0010ffff", "ﬀ ½ Ⅷ",
]  # fmt: skip


def _pick(g: np.random.Generator, items: list):
    return items[int(g.integers(len(items)))]


def _splice(g: np.random.Generator, text, part):
    """`text` with `part` put in at, or instead of, a random place."""
    start = int(g.integers(len(text) + 1))
    return text[:start] + part + text[start + int(g.integers(3)) :]


def deleted_line(g: np.random.Generator, config: str) -> bytes:
    lines = config.splitlines(keepends=True)
    for _ in range(g.integers(1, 4)):
        lines.pop(int(g.integers(len(lines))))
    return "".join(lines).encode()


def swapped_values(g: np.random.Generator, config: str) -> bytes:
    first, second = sorted(g.choice(list(_VALUE.finditer(config)), 2, replace=False), key=lambda match: match.start())
    parts = (config[: first.start()], second[0], config[first.end() : second.start()], first[0], config[second.end() :])
    return "".join(parts).encode()


def wrong_type(g: np.random.Generator, config: str) -> bytes:
    match = _pick(g, list(_VALUE.finditer(config)))
    return (config[: match.start()] + _pick(g, _VALUES) + config[match.end() :]).encode()


def misspelt_key(g: np.random.Generator, config: str) -> bytes:
    match = _pick(g, list(_KEY.finditer(config)))
    key = list(match[0])
    place = int(g.integers(len(key)))
    change = int(g.integers(4))
    if change == 0:
        key[place] = ""
    elif change == 1:
        key[place] *= 2
    elif change == 2:
        key[place] = _pick(g, list("abcxyz_.-0É"))
    else:
        key.insert(place, key.pop(int(g.integers(len(key)))))
    return (config[: match.start()] + "".join(key) + config[match.end() :]).encode()


def broken_yaml(g: np.random.Generator, config: str) -> bytes:
    for _ in range(g.integers(1, 4)):
        config = _splice(g, config, _pick(g, _PIECES))
    content = config.encode()
    return _splice(g, content, _pick(g, _BAD_BYTES)) if g.random() < 0.2 else content


def flipped_byte(g: np.random.Generator, corpus: Path) -> Path:
    path = _file(g, corpus)
    content = bytearray(path.read_bytes())
    content[int(g.integers(len(content)))] ^= int(g.integers(1, 256))
    path.write_bytes(content)
    return path


def truncated_file(g: np.random.Generator, corpus: Path) -> Path:
    path = _file(g, corpus)
    content = path.read_bytes()
    path.write_bytes(content[: int(g.integers(len(content)))] if g.random() < 0.8 else content + content[-2:])
    return path


def deleted_file(g: np.random.Generator, corpus: Path) -> Path:
    """Gone, empty, a folder, or exchanged with another file."""
    path, change = _file(g, corpus), int(g.integers(4))
    if change == 3:
        other = _file(g, corpus)
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return path
    path.unlink()
    if change == 1:
        path.touch()
    elif change == 2:
        path.mkdir()
    return path


def not_utf8(g: np.random.Generator, text: str) -> bytes:
    content = text.encode()
    for _ in range(g.integers(1, 3)):
        content = _splice(g, content, _pick(g, _BAD_BYTES))
    return content


def strange_text(g: np.random.Generator, text: str) -> bytes:
    text = _pick(g, [text, text[: int(g.integers(len(text)))], "", text.replace("\n", "\r\n"), text.replace("\n", " ")])
    for _ in range(g.integers(1, 4)):
        text = _splice(g, text, _pick(g, _STRANGE))
    return text.encode()


def _file(g: np.random.Generator, corpus: Path) -> Path:
    return _pick(g, sorted(path for path in corpus.rglob("*") if path.is_file()))


CONFIG_KINDS: dict[str, Callable[[np.random.Generator, str], bytes]] = {
    f.__name__: f for f in (deleted_line, swapped_values, wrong_type, misspelt_key, broken_yaml)
}
FOLDER_KINDS: dict[str, Callable[[np.random.Generator, Path], Path]] = {
    f.__name__: f for f in (flipped_byte, truncated_file, deleted_file)
}
TEXT_KINDS: dict[str, Callable[[np.random.Generator, str], bytes]] = {f.__name__: f for f in (not_utf8, strange_text)}
