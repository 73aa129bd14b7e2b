from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from electra_fast.data import encoding
from electra_fast.data.corpus import Corpus
from electra_fast.data.deduplication import KEY_DTYPE, SeenKeys, document_key
from electra_fast.data.prepare import prepare
from tests.data.texts import random_documents, write_text
from tests.small import folder_bytes


def test_what_is_the_same_document() -> None:
    same = ["caf\u00e9 au lait\nnoir", "cafe\u0301 au  lait \n noir", " caf\u00e9\tau\u00a0lait noir\n"]
    other = ["Caf\u00e9 au lait noir", "cafe au lait noir", "caf\u00e9 aulait noir", ""]
    assert len({document_key(text) for text in same}) == 1
    assert len({document_key(text) for text in same + other}) == 1 + len(other)


def test_seen_keys_against_a_set(rng_seed: int) -> None:
    g = np.random.default_rng(rng_seed)
    seen, keys = set(), SeenKeys()
    for size in g.integers(0, 300, 60):
        # Some end in zero bytes, which NumPy's strings drop.
        batch = [bytes([*g.integers(0, 4, 3, np.uint8), *b"\0" * 13]) for _ in range(size)]
        expected = []
        for key in batch:
            expected.append(key not in seen)
            seen.add(key)
        assert keys.add(np.array(batch, KEY_DTYPE)).tolist() == expected
    assert len(keys) == len(seen)


def test_sixteen_bytes_a_key() -> None:
    keys = SeenKeys()
    g = np.random.default_rng(0)
    for _ in range(50):
        assert keys.add(np.frombuffer(g.bytes(16 * 1000), KEY_DTYPE)).all()
    assert sum(array.nbytes for array in keys._arrays) == 16 * 50_000
    assert len(keys._arrays) <= 16  # so that looking up stays quick


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_of_each_stays(tmp_path: Path, tokenizer, rng_seed: int, monkeypatch, workers: int) -> None:
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", 700)
    g = np.random.default_rng(rng_seed)
    # No two that differ in their spaces alone, as two words with a line's end between them or without.
    pool = list({" ".join(text.split()): text for text in random_documents(g, 100, most_words=30)}.values())
    drawn = [pool[i] for i in g.integers(0, len(pool), 300)]
    first, second = drawn[:200], drawn[200:]
    spaced = [document.replace(" ", "  ") if g.random() < 0.3 else document for document in second]
    inputs = [write_text(tmp_path / "1.txt", first), write_text(tmp_path / "2.txt", ["\u00ad", *spaced, "\u00ad"])]
    meta = prepare(inputs, tokenizer, tmp_path / "c", deduplicate=True, workers=workers, progress=False)

    expected = list(dict.fromkeys(drawn))
    lengths = {document: len(tokenizer.tokenize(document, split_special_tokens=True)) for document in expected}
    repeats = {document: count - 1 for document, count in Counter(drawn).items()}
    assert meta.documents == len(expected)
    assert meta.duplicate_documents == len(drawn) - len(expected)
    assert meta.duplicate_tokens == sum(lengths[document] * count for document, count in repeats.items())
    corpus = Corpus.open(tmp_path / "c", verify=True)
    assert [len(corpus.document(i)) for i in range(meta.documents)] == list(lengths.values())
    # What is left is as if the duplicates had never been.
    prepare(write_text(tmp_path / "3.txt", expected), tokenizer, tmp_path / "e", deduplicate=True, progress=False)
    made, wanted = folder_bytes(tmp_path / "c"), folder_bytes(tmp_path / "e")
    assert made.pop("meta.json") != wanted.pop("meta.json")  # it tells the duplicates
    assert made == wanted


def test_without_it_copies_stay(tmp_path: Path, tokenizer) -> None:
    meta = prepare(write_text(tmp_path / "a.txt", ["ba de"] * 3), tokenizer, tmp_path / "c", progress=False)
    assert (meta.documents, meta.duplicate_documents, meta.duplicate_tokens) == (3, None, None)
