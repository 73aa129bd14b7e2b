from __future__ import annotations

import ast
import itertools
import random
import re
from pathlib import Path

import pytest

from electra_fast.data import demo_corpus
from electra_fast.data.demo_corpus import DemoCorpus, write_demo_corpus
from electra_fast.data.documents import read_documents


@pytest.fixture
def part_of_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference and a part of the standard library: a tenth of the text, in a tenth of the time."""
    sources = list(itertools.islice(demo_corpus._sources(), 400))
    monkeypatch.setattr(demo_corpus, "_sources", lambda: iter(sources))
    monkeypatch.setattr(demo_corpus, "VALID_SHARE", 0.2)


def ngrams(path: Path, n: int) -> list[tuple[str, ...]]:
    lines = path.read_text(encoding="ascii").lower().splitlines()
    words = [re.findall("[a-z]+", line) for line in lines]
    return [tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)]


def test_held_out_text_is_not_trained_on(tmp_path: Path, part_of_the_sources: None) -> None:
    corpus = write_demo_corpus(tmp_path)
    train, valid = list(read_documents(corpus.train)), list(read_documents(corpus.valid))
    assert (len(train), len(valid)) == (corpus.train_documents, corpus.valid_documents)
    assert (corpus.train.stat().st_size, corpus.valid.stat().st_size) == (corpus.train_bytes, corpus.valid_bytes)
    assert corpus.train_bytes > 300_000
    assert 0.03 < corpus.valid_bytes / corpus.train_bytes < 0.6
    lines = "\n".join(train + valid).split("\n")
    assert len(lines) == len(set(lines))
    seen = set(ngrams(corpus.train, 8))
    held_out = ngrams(corpus.valid, 8)
    assert sum(gram in seen for gram in held_out) / len(held_out) < 0.05
    assert min(len(line.split()) for line in lines) >= 5
    assert not re.search(r"[^\n\x20-\x7e]|[{}|<>\\=`]|::", "\n".join(lines))


def test_the_same_installation_gives_the_same_text(tmp_path: Path, part_of_the_sources: None) -> None:
    def content(corpus: DemoCorpus) -> tuple[bytes, bytes]:
        return corpus.train.read_bytes(), corpus.valid.read_bytes()

    first = content(write_demo_corpus(tmp_path / "a"))
    assert content(write_demo_corpus(tmp_path / "b")) == first
    assert content(write_demo_corpus(tmp_path / "c", seed=1))[1] != first[1]  # another split


def test_docstrings_are_what_ast_finds(rng_seed: int) -> None:
    """Lexing is held against the parser on random modules of the standard library."""
    root = Path(ast.__file__).parent
    files = [p for p in sorted(root.glob("*.py")) if '"""' in p.read_text(encoding="utf-8", errors="replace")]
    found = 0
    for file in random.Random(rng_seed).sample(files, 20):
        source = file.read_text(encoding="utf-8")
        lines = source.split("\n")
        lexed = set(demo_corpus._docstrings(source))
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if ast.get_docstring(node) is None:
                continue
            docstring = node.body[0]
            # As ast.get_source_segment gives it, which splits the whole source for each.
            rows = [line.encode() for line in lines[docstring.lineno - 1 : docstring.end_lineno]]
            rows[-1] = rows[-1][: docstring.end_col_offset]
            alone = rows[0][: docstring.col_offset].strip() == b""
            literal = b"\n".join(rows)[docstring.col_offset :].decode()
            if alone and re.match(r"[rRuU]?(?:\"{3}|'{3})", literal):
                found += 1
                assert ast.literal_eval(literal) in lexed, (file, literal[:80])
    assert found > 20
