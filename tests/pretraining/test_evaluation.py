"""Held-out metrics against brute force, and the same at every call."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from electra_fast.data.corpus import Corpus
from electra_fast.data.loader import BatchLoader
from electra_fast.pretraining.evaluation import evaluate, exact_auc, unigram_log_probabilities
from electra_fast.pretraining.train import build_model


def test_exact_auc_against_all_pairs(rng_seed):
    g = np.random.default_rng(rng_seed)
    scores = torch.from_numpy(g.integers(0, 12, 300).astype(np.float32))  # many ties
    positive = torch.from_numpy(g.random(300) < 0.3)
    pairs = scores[positive][:, None] - scores[~positive][None, :]
    assert exact_auc(scores, positive) == pytest.approx(float(((pairs > 0) + 0.5 * (pairs == 0)).double().mean()))
    assert np.isnan(exact_auc(scores, torch.zeros(300, dtype=torch.bool)))


def test_unigram_probabilities_are_smoothed_counts(corpus):
    train = Corpus.open(corpus / "train")
    tokens = train.read(0, train.num_tokens).astype(np.int64)
    vocab_size = train.meta.vocab_size
    exact = (np.bincount(tokens, minlength=vocab_size) + 1) / (len(tokens) + vocab_size)
    np.testing.assert_allclose(unigram_log_probabilities([train], vocab_size).exp(), exact, rtol=1e-5)


def test_evaluation_repeats_exactly_and_leaves_the_model_in_training(corpus, quick_config, tmp_path):
    train, valid = Corpus.open(corpus / "train"), Corpus.open(corpus / "valid")
    torch.manual_seed(3)  # of 109 others, AUC was 0.36 to 0.61
    model = build_model(quick_config(tmp_path), train.meta).train()
    loader = BatchLoader(valid, batch_size=8, max_length=24, seed=0, shuffle=False)
    unigram = unigram_log_probabilities([train], train.meta.vocab_size)
    arguments = {"batches": 3, "device": torch.device("cpu")}
    first = evaluate(model, loader, unigram, **arguments)
    torch.manual_seed(5)
    assert evaluate(model, loader, unigram, **arguments) == first
    assert model.training
    # An untrained generator knows nothing: about ln V nats. The discriminator's mean loss is about ln 2.
    assert first["generator_loss"] == pytest.approx(np.log(train.meta.vocab_size), rel=0.05)
    assert first["unigram_loss"] < first["generator_loss"]
    assert 0.2 < first["auc"] < 0.8
