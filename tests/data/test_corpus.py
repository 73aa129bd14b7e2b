from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from electra_fast.data.corpus import Corpus
from tests.data.texts import random_documents


def test_reads_across_shards(make_corpus, rng_seed: int) -> None:
    g = np.random.default_rng(rng_seed)
    corpus = make_corpus(random_documents(g, 40), shard_tokens=97)
    raw = b"".join(p.read_bytes() for p in sorted(corpus.folder.glob("tokens-*.bin")))
    tokens = np.frombuffer(raw, "<u2")
    assert len(corpus.meta.shards) > 5
    assert corpus.num_tokens == len(tokens)
    places = [0, 97, 194, len(tokens), *g.integers(0, len(tokens) + 1, 40)]
    for start in places:
        for stop in places:
            if start <= stop:
                read = corpus.read(start, stop)
                assert read.dtype == np.uint16
                np.testing.assert_array_equal(read, tokens[start:stop])
    joined = np.concatenate([corpus.document(i) for i in range(corpus.num_documents)])
    np.testing.assert_array_equal(joined, tokens)
    assert np.diff(corpus.offsets).min() > 0


def test_places_outside_are_errors(make_corpus) -> None:
    corpus = make_corpus(["ba de ki", "lo"])
    for start, stop in ((-1, 1), (2, 1), (0, corpus.num_tokens + 1)):
        with pytest.raises(IndexError, match=f"of a corpus of {corpus.num_tokens} tokens"):
            corpus.read(start, stop)
    for index in (-1, 2):
        with pytest.raises(IndexError, match="of a corpus of 2 documents"):
            corpus.document(index)


@pytest.mark.parametrize("name", ["tokens-00001.bin", "offsets.bin"])
def test_a_damaged_file_is_named(make_corpus, rng_seed: int, name: str) -> None:
    corpus = make_corpus(random_documents(np.random.default_rng(rng_seed), 20), shard_tokens=50)
    path = corpus.folder / name
    good = path.read_bytes()

    path.write_bytes(good[:-1])
    with pytest.raises(ValueError, match=rf"{name} is damaged: {len(good) - 1} bytes, expected {len(good)}"):
        Corpus.open(corpus.folder)
    path.write_bytes(good + b"\0")
    with pytest.raises(ValueError, match=rf"{name} is damaged: {len(good) + 1} bytes"):
        Corpus.open(corpus.folder)
    flipped = bytearray(good)
    flipped[9] ^= 1
    path.write_bytes(flipped)
    if name != "offsets.bin":  # which is small, and checked always
        Corpus.open(corpus.folder)
    with pytest.raises(ValueError, match=rf"{name} is damaged: its sha256"):
        Corpus.open(corpus.folder, verify=True)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing"):
        Corpus.open(corpus.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "corpus version 3, but this release reads 1 and 2"),
        ({"format": "other"}, "does not describe a prepared corpus"),
        ({"tokens": 1}, "damaged: its content is not the one"),
        ({"dtype": "int8"}, "damaged: its content is not the one"),
        ({"sha256": None}, "damaged: its content is not the one"),
    ],
)
def test_meta_is_checked(make_corpus, change: dict, message: str) -> None:
    corpus = make_corpus(["ba de ki", "lo"])
    path = corpus.folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Corpus.open(corpus.folder)


def test_another_tokenizer_in_the_folder_is_noticed(make_corpus, tokenizer) -> None:
    corpus = make_corpus(["ba de ki", "lo"])
    assert corpus.load_tokenizer().get_vocab() == tokenizer.get_vocab()
    path = corpus.tokenizer_folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": False}))
    with pytest.raises(ValueError, match="not the tokenizer that"):
        corpus.load_tokenizer()
    (corpus.tokenizer_folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="can't be loaded, a file of it is missing or damaged"):
        corpus.load_tokenizer()


def test_a_folder_without_meta_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no prepared corpus: it holds no meta\.json"):
        Corpus.open(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(ValueError, match=r"meta\.json is damaged"):
        Corpus.open(tmp_path)
