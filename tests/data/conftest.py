"""A tokenizer, and corpora, for the data tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertTokenizer, PreTrainedTokenizerFast

from electra_fast.data.corpus import Corpus
from electra_fast.data.prepare import prepare
from tests.data.texts import SYLLABLES, write_text


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(set("".join(SYLLABLES).lower() + "abcdefghijklmnopqrstuvwxyz[]-.") - {"\u00ad"})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters if c.isalnum())]
    pieces += [f"##{s}" for s in SYLLABLES[:6]] + SYLLABLES[:6]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, model_max_length=64)


@pytest.fixture
def make_corpus(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[[list[str]], Corpus]:
    def make(documents: list[str], **options: int) -> Corpus:
        source = write_text(tmp_path / "source.txt", documents)
        prepare([source], tokenizer, tmp_path / "corpus", progress=False, overwrite=True, **options)
        return Corpus.open(tmp_path / "corpus", verify=True)

    return make
