"""`prepare`, text on disk to a corpus on disk, beside the loop over transformers' fast tokenizer that people write.

Ours runs in one process, as `electra-fast prepare` does unless it is told `--workers`; the tokenizer of the loop
spreads a batch over all cores by itself. The text is made up: words as frequent as those of a language (Zipf's law),
documents as long as Wikipedia's.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizer

from electra_fast.data.corpus import Corpus
from electra_fast.data.prepare import prepare

WORDS, KNOWN_WORDS = 50_000, 28_000  # in the text, and whole in the vocabulary
BATCH = 1000  # documents


def write_text(path: Path, words_in_all: int) -> BertTokenizer:
    """About so many words, a paragraph a line, documents apart by an empty line; and a tokenizer for it."""
    g = np.random.default_rng(0)
    letters = np.array(list(string.ascii_lowercase))
    words = list(dict.fromkeys("".join(g.choice(letters, n)) for n in g.integers(2, 11, WORDS)))
    pieces = ["".join(each) for each in product(string.ascii_lowercase, repeat=2)] + list(string.ascii_lowercase)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *string.ascii_lowercase]
    vocabulary += [f"##{piece}" for piece in pieces] + words[:KNOWN_WORDS]
    shares = 1 / (np.arange(len(words)) + 2.7)
    lengths = np.maximum(1, np.exp(g.normal(5.5, 1, words_in_all // 400))).astype(np.int64)
    drawn = g.choice(len(words), int(lengths.sum()), p=shares / shares.sum())
    with path.open("w", encoding="utf-8") as file:
        for indices in np.split(drawn, lengths.cumsum()[:-1]):
            file.write(" ".join(map(words.__getitem__, indices.tolist())).capitalize() + ".\n\n")
    return BertTokenizer(vocab={token: index for index, token in enumerate(dict.fromkeys(vocabulary))})


def documents(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield line.strip()


def plain_prepare(path: Path, tokenizer: BertTokenizer, output: Path) -> np.ndarray:
    """The ids of all documents, written to a file, and beside it how many each has."""
    ids, lengths = [], []
    texts = documents(path)
    while batch := list(islice(texts, BATCH)):
        encoded = tokenizer(
            batch,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        lengths += map(len, encoded)
        ids += [np.array(row, np.uint16) for row in encoded]
    output.mkdir(exist_ok=True)
    np.save(output / "lengths.npy", np.array(lengths))
    np.save(output / "ids.npy", np.concatenate(ids))
    return np.concatenate(ids)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="work of the CPU; on a machine with a GPU the suite measures that"
)
@pytest.mark.timeout(300)
def test_prepare(compare, benchmark, tmp_path):
    text = tmp_path / "text.txt"
    tokenizer = write_text(text, 2_000_000 if benchmark.enabled else 20_000)

    def ours(path: Path) -> int:
        return prepare(path, tokenizer, tmp_path / "ours", progress=False, overwrite=True).tokens

    def plain(path: Path) -> np.ndarray:
        return plain_prepare(path, tokenizer, tmp_path / "plain")

    tokens = ours(text)
    corpus = Corpus.open(tmp_path / "ours")
    assert np.array_equal(corpus.read(0, tokens), plain(text))
    compare(
        "prepare",
        ours=ours,
        plain=plain,
        inputs=[(text,)],
        shape=f"{tokens:,} tokens of made-up text",
        dtype="uint16",
        direction="one process",
        tokens=tokens,
    )
