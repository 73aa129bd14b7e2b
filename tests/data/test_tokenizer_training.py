"""Unigram and byte-level BPE; WordPiece is in test_tokenizer.py."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from electra_fast.data.corpus import Corpus
from electra_fast.data.prepare import prepare
from electra_fast.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, tokenizer_hash
from electra_fast.data.tokenizer_training import TRAINERS
from tests.data.texts import random_documents, write_text

ROOT = Path(__file__).parents[2]
SPACE = "\u2581"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_autotokenizer_loads_what_was_trained(tmp_path: Path, rng_seed: int, kind: str, lowercase: bool) -> None:
    documents = random_documents(np.random.default_rng(rng_seed), 150)
    source = write_text(tmp_path / "a.txt", documents)
    trained = TRAINERS[kind]([source], tmp_path / "t", vocab_size=340, lowercase=lowercase, max_length=77)
    stock = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert stock.is_fast
    assert stock.model_max_length == 77
    assert 280 < len(stock) <= 340 if kind == "bpe" else 30 < len(stock) <= 340
    assert stock.get_vocab() == trained.get_vocab() == load_tokenizer(tmp_path / "t").get_vocab()
    assert sorted(stock.get_vocab().values()) == list(range(len(stock)))
    assert stock.convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKENS)
    named = (stock.pad_token_id, stock.unk_token_id, stock.cls_token_id, stock.sep_token_id, stock.mask_token_id)
    assert named == (0, 1, 2, 3, 4)
    pair = stock("ba", "de")
    first, second = (stock(text, add_special_tokens=False).input_ids for text in ("ba", "de"))
    assert pair.input_ids == [2, *first, 3, *second, 3]
    assert pair.token_type_ids == [0] * (2 + len(first)) + [1] * (1 + len(second))
    assert stock("ba [MASK] de").input_ids.count(4) == 1
    assert (stock.tokenize("BA") == stock.tokenize("ba")) == lowercase
    assert {0, 1, 2, 3, 4}.isdisjoint(stock("[MASK] [CLS]", split_special_tokens=True).input_ids[1:-1]) or kind != "bpe"
    assert 4 not in stock("[MASK] [CLS]", split_special_tokens=True).input_ids


def test_byte_level_decodes_to_the_text_itself(tmp_path: Path, rng_seed: int) -> None:
    g = np.random.default_rng(rng_seed)
    source = write_text(tmp_path / "a.txt", random_documents(g, 50))
    tokenizer = TRAINERS["bpe"](source, None, vocab_size=300, lowercase=False)
    for _ in range(50):
        points = g.integers(0, 0x110000, 40)
        text = "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000) + " x  y\n\n"
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
        assert 1 not in ids  # nothing is unknown


def test_unigram_decodes_to_the_normalised_text(tmp_path: Path, rng_seed: int) -> None:
    documents = random_documents(np.random.default_rng(rng_seed), 150)
    source = write_text(tmp_path / "a.txt", documents)
    tokenizer = TRAINERS["unigram"](source, None, vocab_size=500, lowercase=False)
    for document in documents:
        ids = tokenizer(document, add_special_tokens=False, split_special_tokens=True).input_ids
        assert 1 not in ids
        text = unicodedata.normalize("NFKC", document).replace("\u00ad", "")
        assert tokenizer.decode(ids) == " ".join(text.split())


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_gives_the_same_bytes_in_another_process(tmp_path: Path, rng_seed: int, kind: str) -> None:
    """The tokenizers library's own trainer of Unigram differs from process to process in the last bits."""
    source = write_text(tmp_path / "a.txt", random_documents(np.random.default_rng(rng_seed), 200))
    here = TRAINERS[kind](source, tmp_path / "here", vocab_size=400)
    code = (
        "import sys; from electra_fast.data.tokenizer_training import TRAINERS; "
        "TRAINERS[sys.argv[1]](sys.argv[2], sys.argv[3], vocab_size=400)"
    )
    subprocess.run([sys.executable, "-c", code, kind, source, tmp_path / "there"], check=True, cwd=ROOT)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    assert tokenizer_hash(here) == tokenizer_hash(load_tokenizer(tmp_path / "there"))


def test_byte_level_merges_are_the_most_frequent_pairs(tmp_path: Path) -> None:
    source = write_text(tmp_path / "a.txt", [" ".join(["xabc"] * 30 + ["xabd"] * 20 + ["cd"] * 10)])
    vocabulary = TRAINERS["bpe"](source, None, vocab_size=5 + 256 + 3).get_vocab()
    learned = sorted(vocabulary, key=vocabulary.get)[5 + 256 :]
    assert set("".join(learned)) <= set("\u0120xab")
    assert learned[0] in ("xa", "ab")  # 50 times each, and with them "Ġx" 49


def test_unigram_prefers_words_that_explain_the_text(tmp_path: Path) -> None:
    # Candidates are what occurs in several different words.
    words = Counter({"river": 60, "rivers": 30, "bank": 40, "banks": 20, "lake": 20, "lakes": 10})
    source = write_text(tmp_path / "a.txt", [" ".join(words.elements()), "rare"])
    tokenizer = TRAINERS["unigram"](source, None, vocab_size=60, min_frequency=2)
    assert tokenizer.tokenize("river bank lake") == [f"{SPACE}river", f"{SPACE}bank", f"{SPACE}lake"]
    assert f"{SPACE}rare" not in tokenizer.get_vocab()


def test_unigram_keeps_the_most_frequent_characters(tmp_path: Path) -> None:
    source = write_text(tmp_path / "a.txt", ["aab aab aab xab " * 9])
    tokens = TRAINERS["unigram"](source, None, vocab_size=40, limit_alphabet=3).get_vocab()
    assert set("".join(tokens.keys() - set(SPECIAL_TOKENS))) == {SPACE, "a", "b"}


def test_a_corpus_of_each(tmp_path: Path, rng_seed: int) -> None:
    documents = random_documents(np.random.default_rng(rng_seed), 40)
    source = write_text(tmp_path / "a.txt", documents)
    for kind in ("unigram", "bpe"):
        tokenizer = TRAINERS[kind](source, tmp_path / kind, vocab_size=320)
        prepare(source, tmp_path / kind, tmp_path / f"{kind}_corpus", workers=2, progress=False)
        corpus = Corpus.open(tmp_path / f"{kind}_corpus", verify=True)
        for index, document in enumerate(documents):
            ids = tokenizer(document, add_special_tokens=False, split_special_tokens=True).input_ids
            assert corpus.document(index).tolist() == ids
        assert corpus.load_tokenizer().get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_errors_name_what_is_wrong(tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"no text to train on in .*empty\.txt"):
        TRAINERS[kind](tmp_path / "empty.txt", None)
    source = write_text(tmp_path / "a.txt", ["abc abd"])
    with pytest.raises(ValueError, match=r"vocab_size=6 cannot hold"):
        TRAINERS[kind](source, None, vocab_size=6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "empty.txt"]
