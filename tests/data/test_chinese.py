"""From Chinese text to a batch, with a vocabulary of characters as BERT's Chinese one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from electra_fast.data.corpus import Corpus
from electra_fast.data.prepare import prepare
from electra_fast.data.stats import corpus_stats
from electra_fast.data.tokenizer import SPECIAL_TOKENS, load_tokenizer
from electra_fast.data.tokenizer_training import TRAINERS
from tests.data.texts import write_text

# Written for this test. Simplified and traditional, with digits, Latin letters and full-width punctuation.
DOCUMENTS = [
    "早上的火车晚了十分钟。\n站台上的人都在看手机, 没有人说话。",
    "我用Python写了3个小程序, 它们会把句子切成字。",
    "圖書館今天不開門, 我們去河邊走走吧!",
    "小猫睡在窗台上。\n小狗睡在门口。",
]


def test_characters_of_a_vocabulary(tmp_path: Path) -> None:
    characters = sorted({c for c in "".join(DOCUMENTS).lower() if not c.isspace()} - {"圖", "3"})
    vocabulary = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in "python")]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    source = write_text(tmp_path / "zh.txt", DOCUMENTS)
    meta = prepare(source, tmp_path / "vocab.txt", tmp_path / "c", workers=2, progress=False)
    corpus = Corpus.open(tmp_path / "c", verify=True)
    tokens = [corpus.load_tokenizer().convert_ids_to_tokens(corpus.document(i).tolist()) for i in range(4)]
    assert tokens[0] == [c for c in DOCUMENTS[0] if not c.isspace()]
    assert tokens[1][:11] == ["我", "用", "p", "##y", "##t", "##h", "##o", "##n", "写", "了", "[UNK]"]
    assert tokens[2][:4] == ["[UNK]", "書", "館", "今"]
    assert tokens[3] == [c for c in DOCUMENTS[3] if not c.isspace()]
    assert corpus_stats(tmp_path / "c").unknown_share == 2 / meta.tokens


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_trained_tokenizers(tmp_path: Path, kind: str) -> None:
    source = write_text(tmp_path / "zh.txt", DOCUMENTS * 3)
    tokenizer = TRAINERS[kind](source, tmp_path / "t", vocab_size=420)
    prepare(source, tmp_path / "t", tmp_path / "c", deduplicate=True, progress=False)
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.num_documents == 4
    for index, document in enumerate(DOCUMENTS):
        ids = corpus.document(index).tolist()
        assert tokenizer.unk_token_id not in ids
        decoded = tokenizer.decode(ids).lower()
        assert "".join(decoded.split()) == "".join(document.lower().split())


def test_real_text_and_its_vocabulary(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    source, vocab = shared_data("pretrain_zh/wiki_zh.valid.txt"), shared_data("vocab/bert-base-chinese.vocab.txt")
    prepare(source, vocab, tmp_path / "c", workers=2, progress=False)
    corpus = Corpus.open(tmp_path / "c", verify=True)
    documents = [d.strip("\n") for d in source.read_text(encoding="utf-8").split("\n\n") if d.strip()]
    assert corpus.num_documents == len(documents)
    tokenizer = load_tokenizer(vocab)
    for index in range(0, len(documents), 5):
        expected = tokenizer(documents[index], add_special_tokens=False, verbose=False).input_ids
        assert corpus.document(index).tolist() == expected
    unknown = np.mean(corpus.read(0, corpus.num_tokens) == tokenizer.unk_token_id)
    assert unknown < 0.01
