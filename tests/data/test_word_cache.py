from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import BertNormalizer

from electra_fast.data import word_cache
from electra_fast.data.tokenizer import load_tokenizer
from electra_fast.data.tokenizer_training import train_byte_level_bpe
from electra_fast.data.word_cache import WordCache

# Accents and other marks, control characters, all kinds of space, letters that change length with case, scripts.
STRANGE = [
    *map(chr, range(0x2000, 0x2070)), *map(chr, range(0x300, 0x310)), *map(chr, range(33)),
    *"\x7f\x85\xa0\xad\u0130ßΣς", "\u3000", "\u3001", "\uff0c", "\ufffd", "\ufeff", "\U00020000", "\uf900",
    "漢", "字", "か", "e\u0301", "😀", "[MASK]",
]  # fmt: skip
COMMON = [*" \n\t.,!?-_'\"()[]{}~`^$+<=>|#@/\\", *"aeiouxyzABC019"] * 3


@pytest.mark.parametrize(("lowercase", "chinese"), [(True, True), (False, True), (True, False), (False, False)])
def test_the_same_ids_as_whole_texts(
    tokenizer, rng_seed: int, monkeypatch: pytest.MonkeyPatch, lowercase: bool, chinese: bool
) -> None:
    g = np.random.default_rng(rng_seed)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = BertNormalizer(lowercase=lowercase, handle_chinese_chars=chinese)
    backend.encode_special_tokens = True
    assert WordCache.supports(backend)
    cache = WordCache(backend, np.dtype("<u2"))
    pool = [*COMMON, *STRANGE, *map(chr, g.integers(1, 0xD800, 200))]
    for number in range(40):
        if number == 20:
            monkeypatch.setattr(word_cache, "WORDS", 300)  # from here on it forgets
        texts = ["".join(g.choice(pool, g.integers(0, 80))) for _ in range(20)]
        expected = backend.encode_batch_fast(texts, add_special_tokens=False)
        lengths, ids = cache(texts)
        assert lengths.tolist() == [len(encoding) for encoding in expected]
        assert ids.tolist() == [id for encoding in expected for id in encoding.ids]
    assert ids.dtype == np.dtype("<u2")
    assert [len(part) for part in cache([])] == [0, 0]


def test_other_tokenizers_are_left_alone(tmp_path: Path, tokenizer) -> None:
    (tmp_path / "a.txt").write_text("some words")
    assert not WordCache.supports(train_byte_level_bpe(tmp_path / "a.txt", None, vocab_size=300).backend_tokenizer)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken("new york")])  # a token across a space
    assert not WordCache.supports(backend)


@pytest.mark.parametrize(("text", "vocab"), [("en/wiki_en", "uncased"), ("zh/wiki_zh", "chinese")])
def test_real_text(shared_data: Callable[[str], Path], text: str, vocab: str) -> None:
    backend = load_tokenizer(shared_data(f"vocab/bert-base-{vocab}.vocab.txt")).backend_tokenizer
    backend.encode_special_tokens = True
    texts = shared_data(f"pretrain_{text}.valid.txt").read_text(encoding="utf-8")[:150_000].split("\n\n")
    _, ids = WordCache(backend, np.dtype("<u2"))(texts)
    expected = backend.encode_batch_fast(texts, add_special_tokens=False)
    assert ids.tolist() == [id for encoding in expected for id in encoding.ids]
