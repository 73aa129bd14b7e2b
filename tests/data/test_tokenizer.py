from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, BertTokenizer

from electra_fast.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, save_tokenizer, tokenizer_hash, train_wordpiece
from tests.data.texts import random_documents, write_text


@pytest.mark.parametrize("lowercase", [True, False])
def test_autotokenizer_loads_what_was_trained(tmp_path: Path, rng_seed: int, lowercase: bool) -> None:
    documents = random_documents(np.random.default_rng(rng_seed), 100)
    source = write_text(tmp_path / "a.txt", documents)
    trained = train_wordpiece([source], tmp_path / "t", vocab_size=300, lowercase=lowercase, max_length=77)
    stock = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert isinstance(stock, BertTokenizer)
    assert stock.is_fast
    assert stock.model_max_length == 77
    assert len(stock) <= 300
    assert stock.get_vocab() == trained.get_vocab()
    assert sorted(stock.get_vocab().values()) == list(range(len(stock)))
    assert stock.convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKENS)
    named = (stock.pad_token_id, stock.unk_token_id, stock.cls_token_id, stock.sep_token_id, stock.mask_token_id)
    assert named == (0, 1, 2, 3, 4)
    assert stock(documents[0]).input_ids[0] == 2
    assert stock(documents[0]).input_ids[-1] == 3
    assert stock("a", "b").token_type_ids == [0, 0, 0, 1, 1]
    assert (stock.tokenize("BA") == stock.tokenize("ba")) == lowercase
    for document in documents:
        assert stock(document).input_ids == trained(document).input_ids
        assert 1 not in stock(document).input_ids  # all characters are in the alphabet


def test_training_gives_the_same_vocabulary_in_another_process(tmp_path: Path, rng_seed: int) -> None:
    """The trainer's hash maps are seeded freshly in each process, and their order showed in its ids."""
    documents = random_documents(np.random.default_rng(rng_seed), 200)
    source = write_text(tmp_path / "a.txt", documents)
    here = train_wordpiece(source, tmp_path / "here", vocab_size=400)
    code = (
        "import sys; from electra_fast.data.tokenizer import train_wordpiece; "
        "train_wordpiece(sys.argv[1], sys.argv[2], vocab_size=400)"
    )
    subprocess.run([sys.executable, "-c", code, source, tmp_path / "there"], check=True, cwd=Path(__file__).parents[2])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    assert tokenizer_hash(here) == tokenizer_hash(load_tokenizer(tmp_path / "there"))


def test_alphabet_is_the_most_frequent_characters(tmp_path: Path) -> None:
    source = write_text(tmp_path / "a.txt", ["aaaa bbb cc d " * 3])
    vocabulary = train_wordpiece(source, None, vocab_size=50, limit_alphabet=2, min_frequency=10**6).get_vocab()
    assert sorted(vocabulary, key=vocabulary.get) == [*SPECIAL_TOKENS, "a", "b", "##a", "##b"]


def test_merges_are_the_most_frequent_pairs(tmp_path: Path) -> None:
    words = {"abc": 30, "abd": 20, "cd": 10}
    source = write_text(tmp_path / "a.txt", [" ".join(w for w, n in words.items() for _ in range(n))])
    vocabulary = train_wordpiece(source, None, vocab_size=5 + 4 + 3 + 3).get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    pairs = Counter({"a ##b": 50, "##b ##c": 30, "##b ##d": 20, "c ##d": 10}).most_common(1)
    assert tokens[5:12] == ["a", "b", "c", "d", "##b", "##c", "##d"]
    assert pairs == [("a ##b", 50)]
    assert tokens[12:] == ["ab", "abc", "abd"]


def test_vocab_txt_and_its_saved_folder_are_one_tokenizer(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    vocab = shared_data("vocab/bert-base-uncased.vocab.txt")
    loaded = load_tokenizer(vocab)
    assert loaded("Hello wörld!").input_ids == [101, 7592, 2088, 999, 102]
    assert len(loaded) == 30522
    save_tokenizer(loaded, tmp_path / "a")
    again = load_tokenizer(tmp_path / "a")
    save_tokenizer(again, tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again("truncated", truncation=True, max_length=4, padding="max_length")  # runtime state, no other tokenizer
    assert tokenizer_hash(loaded) == tokenizer_hash(again)
    assert tokenizer_hash(loaded) != tokenizer_hash(load_tokenizer(vocab, lowercase=False))


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder with"):
        load_tokenizer(tmp_path / "missing")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n")
    with pytest.raises(ValueError, match=r"lacks \[MASK\]"):
        load_tokenizer(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS) + "\nword\nword\n")
    with pytest.raises(ValueError, match="1 tokens occur more than once"):
        load_tokenizer(tmp_path / "vocab.txt")
    BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1}, cls_token=None).save_pretrained(tmp_path / "no_cls")
    with pytest.raises(ValueError, match="no cls_token"):
        load_tokenizer(tmp_path / "no_cls")
    source = write_text(tmp_path / "a.txt", ["abc abd"])
    with pytest.raises(ValueError, match=r"vocab_size=10 cannot hold .* 4 characters: needs 12"):
        train_wordpiece(source, None, vocab_size=10)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="no text to train on"):
        train_wordpiece(tmp_path / "empty.txt", None)
