from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from electra_fast.cli import main
from electra_fast.data import stats as stats_module
from electra_fast.data.corpus import Corpus
from electra_fast.data.prepare import prepare
from electra_fast.data.stats import QUANTILES, SEQUENCE_LENGTHS, corpus_stats, plot_lengths
from tests.data.texts import random_documents, write_text


def test_figures_against_plain_counting(make_corpus, rng_seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats_module, "READ", 37)  # tokens at a time: the corpus is read in many parts
    g = np.random.default_rng(rng_seed)
    documents = [*random_documents(g, 60, most_words=300), "ba \u3042 de \u3042 ba"]  # two letters nobody knows
    corpus = make_corpus(documents, shard_tokens=1000)
    tokenizer = corpus.load_tokenizer()
    tokens = [tokenizer.tokenize(document, split_special_tokens=True) for document in documents]
    flat = [token for of_document in tokens for token in of_document]
    lengths = sorted(map(len, tokens))

    stats = corpus_stats(corpus.folder)
    assert (stats.documents, stats.tokens) == (61, len(flat))
    assert stats.text_bytes == sum(len(document.encode()) for document in documents)
    assert stats.vocab_size == len(tokenizer)
    ordinary = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    assert stats.unused == len(ordinary - set(flat))
    assert stats.unknown_share == flat.count("[UNK]") / len(flat) == pytest.approx(2 / len(flat))
    counts = sorted(map(flat.count, set(flat)), reverse=True)[:10]
    assert [share * len(flat) for _, share in stats.frequent] == pytest.approx(counts)
    assert all(flat.count(token) == pytest.approx(share * len(flat)) for token, share in stats.frequent)
    assert stats.mean_length == pytest.approx(np.mean(lengths))
    for quantile in QUANTILES:  # the shortest length that this share of the documents does not exceed
        at_least = next(n for n in lengths if sum(m <= n for m in lengths) >= quantile * len(lengths) - 1e-9)
        assert stats.length_quantiles[quantile] == at_least
    for longest in SEQUENCE_LENGTHS:
        assert stats.longer_than[longest] == sum(n + 2 > longest for n in lengths) / len(lengths)
    assert [index for index, _ in stats.examples] == [0, 30, 60]
    assert stats.examples[2][1] == "ba [UNK] de [UNK] ba"


def test_the_picture_counts_documents_and_tokens(
    make_corpus, tmp_path: Path, rng_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), savefig(self, *args, **kw)))
    corpus = make_corpus(random_documents(np.random.default_rng(rng_seed), 80, most_words=200))
    plot_lengths(corpus.folder, tmp_path / "a.png")
    by_documents, by_tokens = figures[0].axes
    assert sum(bar.get_height() for bar in by_documents.patches) == 80
    assert sum(bar.get_height() for bar in by_tokens.patches) == corpus.num_tokens
    image = matplotlib.image.imread(tmp_path / "a.png")
    assert image.shape[:2] == (495, 1210)
    assert image.std() > 0.05  # something is drawn


def test_one_document(make_corpus, tmp_path: Path) -> None:
    corpus = make_corpus(["ba"])
    plot_lengths(corpus.folder, tmp_path / "a.png")
    stats = corpus_stats(corpus.folder)
    assert stats.examples == [(0, "ba")]
    assert set(stats.length_quantiles.values()) == {1}


def test_the_command(
    tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_text(tmp_path / "a.txt", ["ba de", "ba de", "ki [x] lo"])
    prepare(source, tokenizer, tmp_path / "c", deduplicate=True, progress=False)
    assert main(["data", "stats", "c", "--png", "a.png"]) == 0
    shown = capsys.readouterr().out
    for part in ("documents", "1 documents, 2 tokens", "Document 0: ba de", "Document 1: ki [ x ] lo", "a.png"):
        assert part in shown
    assert Path("a.png").is_file()
    assert main(["data", "stats", "c", "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert (stats["documents"], stats["duplicate_documents"], stats["length_quantiles"]["0.5"]) == (2, 1, 2)

    for wrong, message in (
        (["c", "--png", "a.png"], "a.png exists: name another file, or --overwrite"),
        (["c", "--png", "a.pdf"], "name a file that ends in .png"),
        (["c", "--png", "no/a.png"], "in a folder that exists"),
        (["a.txt"], "is no prepared corpus"),
    ):
        assert main(["data", "stats", *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["data", "stats", "c", "--png", "a.png", "--overwrite"]) == 0


def test_ids_outside_the_vocabulary_are_damage(make_corpus) -> None:
    corpus = make_corpus(["ba de ki lo"])
    shard = corpus.folder / "tokens-00000.bin"
    shard.write_bytes(b"\xff\xff" + shard.read_bytes()[2:])
    assert Corpus.open(corpus.folder).num_documents == 1  # the size is right
    with pytest.raises(ValueError, match="is damaged: token id 65535, but"):
        corpus_stats(corpus.folder)
