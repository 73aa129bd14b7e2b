"""Word embeddings from counts: against a loop over all pairs, float64 and numpy's singular values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from electra_fast.data.corpus import Corpus
from electra_fast.models import ElectraForJointPreTraining
from electra_fast.pretraining import cooccurrence
from electra_fast.pretraining.build import build_model
from electra_fast.pretraining.config import ConfigError
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.cooccurrence import count_neighbours, embeddings, positive_information, start_embeddings
from electra_fast.pretraining.train import pretrain
from tests.pretraining.test_phases import assert_same_end, interrupt_after

pytest.importorskip("sklearn", reason="counts become vectors by scikit-learn: pip install 'electra-fast[finetune]'")


@pytest.fixture
def corpora(corpus: Path) -> list[Corpus]:
    return [Corpus.open(corpus / part) for part in ("train", "valid")]


def counted(corpora: list[Corpus]) -> np.ndarray:
    """Weights of all pairs in a document, float64 [V, V]."""
    size = corpora[0].meta.vocab_size
    counts = np.zeros((size, size))
    for corpus in corpora:
        for index in range(corpus.num_documents):
            ids = corpus.document(index)
            for i, token in enumerate(ids):
                for distance in range(1, cooccurrence.WINDOW + 1):
                    if i + distance < len(ids):
                        other = ids[i + distance]
                        counts[token, other] += distance**-0.5
                        counts[other, token] += distance**-0.5
    return counts


def informed(counts: np.ndarray) -> np.ndarray:
    """By the definition: p(a, b), p(a) and p(b)**0.75, normalised, each for itself."""
    p_context = counts.sum(0) ** 0.75 / (counts.sum(0) ** 0.75).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(counts / counts.sum() / (counts.sum(1) / counts.sum())[:, None] / p_context)
    return np.where(counts > 0, np.maximum(information, 0), 0)


def test_counts_are_those_of_a_loop(corpora, monkeypatch):
    expected = counted(corpora)
    # Sums of up to 2,000 float32 numbers.
    assert np.abs(count_neighbours(corpora).toarray() - expected).max() <= 1e-5 * expected.max()
    monkeypatch.setattr(cooccurrence, "_STRETCH", 701)  # pairs across the ends of stretches are not counted
    lost = expected - count_neighbours(corpora).toarray()
    stretches = sum(-(-corpus.num_tokens // 701) for corpus in corpora)
    most = 2 * sum(distance * distance**-0.5 for distance in range(1, cooccurrence.WINDOW + 1))
    assert lost.min() > -1e-3
    assert 0 < lost.sum() <= stretches * most


def test_only_part_of_a_large_corpus_is_read(corpora, monkeypatch):
    monkeypatch.setattr(cooccurrence, "MAX_TOKENS", 1000)
    each = sum(distance**-0.5 for distance in range(1, cooccurrence.WINDOW + 1))
    total = count_neighbours(corpora).sum()
    assert 0.5 * 2 * 1000 * each < total <= 2 * 1000 * each  # documents end in between


def test_information_and_its_singular_vectors(corpora, rng_seed):
    expected = informed(counted(corpora))
    information = positive_information(count_neighbours(corpora))
    assert np.abs(information.toarray() - expected).max() <= 1e-5 * expected.max()
    size = 24
    vectors = embeddings(corpora, size, seed=rng_seed).double().numpy()
    values = (vectors**2).sum(0)  # u sqrt(s) has the length sqrt(s)
    assert np.abs(values - np.linalg.svd(expected)[1][:size]).max() <= 0.02 * values[0]
    apart = vectors.T @ vectors - np.diag(values)
    assert np.abs(apart).max() <= 1e-4 * values[0]
    residual = expected @ (expected.T @ vectors[:, 0]) - values[0] ** 2 * vectors[:, 0]
    assert np.linalg.norm(residual) <= 1e-3 * values[0] ** 2.5


def model_of(corpus: Path, **settings: object) -> ElectraForJointPreTraining:
    sizes = {"model.embedding_size": 16, "model.hidden_size": 32, "model.num_hidden_layers": 1}
    config = read_config("small", {"data.train": str(corpus / "train"), **sizes, **settings})
    torch.manual_seed(3)
    return build_model(config, Corpus.open(corpus / "train").meta)


def tables(model: ElectraForJointPreTraining) -> tuple[Tensor, Tensor]:
    return tuple(tower.get_input_embeddings().weight.detach() for tower in (model.generator, model.discriminator))


@pytest.mark.parametrize("tie", ["shared", "untied", "all", "gdes"])
def test_both_towers_start_from_them(corpus, corpora, tie, rng_seed):
    same = {"model.generator.hidden_size": 32, "model.generator.num_hidden_layers": 1} if tie == "all" else {}
    same |= {"model.generator.num_attention_heads": 4, "model.generator.intermediate_size": 1024} if same else {}
    model, before = (model_of(corpus, **{"model.tie": tie, **same}) for _ in range(2))
    (line,) = start_embeddings(model, corpora, seed=2**40 + rng_seed)  # a run's seed may be larger than scikit-learn's
    vectors = embeddings(corpora, 16, seed=rng_seed)
    seen = torch.zeros(len(vectors), dtype=torch.bool)
    seen[np.unique(np.concatenate([corpus.read(0, corpus.num_tokens) for corpus in corpora]).astype(np.int64))] = True
    assert 16 < seen.sum() < len(seen)
    tokens = sum(corpus.num_tokens for corpus in corpora)
    assert line == f"embeddings: {int(seen.sum())} of {len(seen)} start from their neighbours in {tokens:,} tokens"
    for table, drawn in zip(tables(model), tables(before), strict=True):
        assert torch.equal(table[~seen], drawn[~seen])
        assert float((torch.cosine_similarity(table, vectors)[seen] - 1).abs().max()) < 1e-5
        assert float((table[seen].norm(dim=1) / drawn.norm(dim=1).mean() - 1).abs().max()) < 1e-4


def test_a_run_that_starts_so_and_is_interrupted_gives_the_same_bits(tmp_path, quick_config, monkeypatch, capsys):
    def config(name: str):
        return quick_config(tmp_path / name, **{"init.embeddings": "cooccurrence"})

    pretrain(config("whole"), progress=True)
    assert "start from their neighbours" in capsys.readouterr().out
    assert "word embeddings from co-occurrences" in (tmp_path / "whole" / "README.md").read_text(encoding="utf-8")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        pretrain(config("parts"), progress=False)
    patched = pytest.MonkeyPatch()
    patched.setattr(cooccurrence, "count_neighbours", None)  # nothing is counted again
    pretrain(config("parts"), resume=True, progress=False)
    patched.undo()
    assert_same_end(tmp_path / "whole", tmp_path / "parts", 12)


def test_mistakes_say_what_to_do(corpus, corpora):
    with pytest.raises(ConfigError, match=r"init\.embeddings must be random or cooccurrence; got 'counts'"):
        read_config("small", {"data.train": "corpus", "init.embeddings": "counts"})
    with pytest.raises(ConfigError, match=r"init\.embeddings must be random where a checkpoint has embeddings"):
        read_config("continue", {"data.train": "corpus", "init.run": "run", "init.embeddings": "cooccurrence"})
    model = model_of(corpus, **{"model.embedding_size": 512})
    with pytest.raises(ValueError, match=r"too few for embeddings of 512 numbers: leave it at random, or give more"):
        start_embeddings(model, corpora, seed=0)
