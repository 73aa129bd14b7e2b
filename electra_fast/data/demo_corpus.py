"""The demo's corpus: English prose that the installation itself brings, so that the demo needs no download.

Sources: Python's language reference (`pydoc_data.topics`) and the docstrings of the standard library, torch and
transformers, read from their source files without importing them. The text depends on the installed versions and, for
one installation, on nothing else.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from electra_fast.data.prose import paragraphs

VALID_SHARE = 0.05

# Tests, vendored copies, and files generated from others (transformers' modular_*.py repeat modeling_*.py).
_SKIPPED_FOLDERS = frozenset(
    [
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "testing",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "ensurepip",
        "pydoc_data",
        "_vendor",
    ]
)
_SKIPPED_FILES = re.compile(r"(?:modular|convert)_.*\.py|test_.*\.py")

# Lexing for docstrings takes 5 s for 100 MB of source, where ast.parse takes 45 s. Comments and one-line strings are
# matched to be stepped over.
_LEXEME = re.compile(r"""#[^\n]*|\"{3}|'{3}|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'""", re.DOTALL)
_PREFIX = re.compile(r"[ \t]*[rRuU]?")  # what may stand before a docstring on its line


@dataclass(frozen=True)
class DemoCorpus:
    """Where the demo's text is: a paragraph a line, an empty line between documents."""

    train: Path
    valid: Path
    train_documents: int
    valid_documents: int
    train_bytes: int
    valid_bytes: int


def _docstrings(source: str) -> Iterator[str]:
    """String literals in triple quotes that start a line: docstrings, and the arguments of torch's `add_docstr`."""
    position = 0
    while match := _LEXEME.search(source, position):
        position = match.end()
        quote = match[0]
        if quote not in ('"""', "'''"):
            continue
        end = source.find(quote, position)
        while end > 0 and source[end - 1] == "\\" and source[end - 2] != "\\":
            end = source.find(quote, end + 1)  # an escaped quote
        if end < 0:
            return
        position = end + len(quote)
        line_start = source.rfind("\n", 0, match.start()) + 1
        if _PREFIX.fullmatch(source, line_start, match.start()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
                yield ast.literal_eval(source[line_start:position].lstrip())


def _sources() -> Iterator[tuple[str, list[str]]]:
    """(name, texts) of each document in a fixed order: one topic of the reference, or one module's docstrings."""
    for name in sorted(topics):
        yield f"topics/{name}", [topics[name]]
    roots = {"python": Path(sysconfig.get_path("stdlib"))}
    for package in ("torch", "transformers"):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise RuntimeError(f"the demo's corpus is made from the source files of {package}, which is not installed")
        roots[package] = Path(spec.submodule_search_locations[0])
    for package, root in roots.items():
        files = (path.relative_to(root) for path in root.rglob("*.py"))
        for file in sorted(files, key=lambda path: path.as_posix()):
            if _SKIPPED_FOLDERS.isdisjoint(file.parts[:-1]) and not _SKIPPED_FILES.fullmatch(file.name):
                source = (root / file).read_text(encoding="utf-8", errors="replace")
                yield f"{package}/{file.as_posix()}", list(_docstrings(source))


def _key(sentence: str) -> str:
    """Sentences that differ in numbers, names or case only share a key."""
    first, *rest = sentence.split()
    words = [first.lower(), *("_" if not word.islower() else word for word in rest)]
    return re.sub(r"[^a-z_ ]", "", " ".join(words))


def _is_valid(name: str, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") < VALID_SHARE * 2**64


def write_demo_corpus(folder: str | Path, *, seed: int = 0) -> DemoCorpus:
    """Writes `train.txt` and `valid.txt` into `folder` (made if missing) and says how much they hold.

    Whole documents are held out, chosen by a hash of (seed, module path). A sentence occurs once in the whole corpus,
    up to numbers and names; one that would occur in both files stays in train.txt, so no held-out text was trained on.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(_sources(), key=lambda source: _is_valid(source[0], seed))  # stable: train first
    seen: set[str] = set()
    written = {False: [0, 0], True: [0, 0]}  # documents, bytes
    paths = {False: folder / "train.txt", True: folder / "valid.txt"}
    files = {valid: path.open("wb") for valid, path in paths.items()}
    with files[False], files[True]:
        for name, texts in sources:
            lines = []
            for paragraph in (p for text in texts for p in paragraphs(text)):
                new = []
                for sentence in paragraph:
                    key = _key(sentence)
                    if key not in seen:
                        seen.add(key)
                        new.append(sentence)
                if new:
                    lines.append(" ".join(new))
            if not lines:
                continue
            valid = _is_valid(name, seed)
            document = ("\n" if written[valid][0] else "") + "\n".join(lines) + "\n"
            files[valid].write(document.encode())
            written[valid][0] += 1
            written[valid][1] += len(document)
    return DemoCorpus(
        train=paths[False],
        valid=paths[True],
        train_documents=written[False][0],
        valid_documents=written[True][0],
        train_bytes=written[False][1],
        valid_bytes=written[True][1],
    )
