"""A batch in micro-batches gives the gradients, losses and counts of the whole batch."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch

from electra_fast.data.corpus import Corpus
from electra_fast.data.loader import Batch, BatchLoader
from electra_fast.pretraining import train as train_module
from electra_fast.pretraining.accumulation import Share, count_predicted, micro_batches
from electra_fast.pretraining.build import build_model
from electra_fast.pretraining.distributed import Ranks
from electra_fast.pretraining.metrics import read_metrics
from electra_fast.pretraining.precision import MasterWeights
from electra_fast.pretraining.train import _Gradients, pretrain
from tests.pretraining.test_phases import assert_same_end

ONE = torch.ones(())


def random_batch(seed: int, lengths: list[int], vocab_size: int = 100) -> Batch:
    g = np.random.default_rng(seed)
    return Batch(
        input_ids=torch.from_numpy(g.integers(5, vocab_size, sum(lengths))),
        cu_seqlens=torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32),
        sequence_ids=torch.from_numpy(g.permutation(1000)[: len(lengths)]),
        epoch=int(g.integers(5)),
        max_seqlen=max(lengths),
        num_tokens=sum(lengths),
    )


def test_cuts_are_between_sequences_and_lose_nothing(rng_seed):
    g = np.random.default_rng(rng_seed)
    batch = random_batch(rng_seed, g.integers(3, 30, 23).tolist())
    assert micro_batches(batch, None) == micro_batches(batch, int(batch.cu_seqlens[-1])) == [batch]
    for max_tokens in (30, 47, 100):
        pieces = micro_batches(batch, max_tokens)
        assert len(pieces) > 1
        for name in ("input_ids", "sequence_ids"):
            assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(batch, name))
        lengths = torch.cat([piece.cu_seqlens.diff() for piece in pieces])
        assert torch.equal(lengths, batch.cu_seqlens.diff())
        sizes = [len(piece.input_ids) for piece in pieces]
        assert all(int(piece.cu_seqlens[-1]) == size <= max_tokens for piece, size in zip(pieces, sizes, strict=True))
        # Each is as long as can be: the next sequence would not fit in.
        following = [int(piece.cu_seqlens[1]) for piece in pieces[1:]]
        assert all(size + more > max_tokens for size, more in zip(sizes, following, strict=False))
        assert {(piece.epoch, piece.max_seqlen) for piece in pieces} == {(batch.epoch, batch.max_seqlen)}
    with pytest.raises(ValueError, match="more than the 5 of a micro-batch"):
        micro_batches(batch, 5)


@pytest.mark.filterwarnings("ignore:.*does not take torch.float64")
@pytest.mark.parametrize(
    ("objective", "dtype"),
    [
        *((name, torch.float64) for name in ("joint", "generator", "discriminator", "mlm", "electric", "adversarial")),
        # In float32 rounding may change a sample, about once in a thousand batches: what no sample takes part in.
        ("generator", torch.float32),
        ("mlm", torch.float32),
    ],
)
def test_gradients_are_those_of_the_unsplit_batch_with_dropout(
    tmp_path, quick_config, corpus, rng_seed, dtype, objective
):
    train = Corpus.open(corpus / "train")
    # In float64 PyTorch attends, whose dropout goes by a generator of its own instead of the tokens' names.
    settings = {"model.attention_probs_dropout_prob": 0.1 * (dtype == torch.float32)}
    config = quick_config(tmp_path, **settings, schedule=[{"objective": objective}])
    assert config.model.hidden_dropout_prob == 0.1
    torch.manual_seed(rng_seed)
    model = build_model(config, train.meta).to(dtype).train()
    masters = MasterWeights(model, torch.float32)  # no masters beside the weights
    loader = BatchLoader(train, batch_size=24, max_length=24, seed=rng_seed)
    batch = loader.batch(rng_seed % 1000)
    results = []
    for max_tokens in (None, 24, 97):
        run = _Gradients(model, masters, config, Ranks(torch.device("cpu")))
        run.max_tokens = max_tokens
        totals = run.compute(5, Share(batch, batch.num_tokens, {}), objective, ONE)
        gradients = {name: p.grad for name, p in masters.named_parameters() if p.grad is not None}
        results.append((totals.sums, gradients))
    # The order of sums differs, no more. In float64 the counts and the loss's weight still are float32.
    tolerance = 1e-7 if dtype == torch.float64 else 2e-5
    (whole, expected), *others = results
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for sums, gradients in others:
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            assert float((gradient - expected[name]).abs().max()) <= tolerance * largest, name
        assert sums.keys() == whole.keys()
        for name, value in sums.items():
            if name.endswith(("loss", "reward")):
                assert float(value) == pytest.approx(float(whole[name]), rel=1e-5)
            elif name == "masked" or dtype == torch.float64:  # counts, and the same samples
                assert torch.equal(value, whole[name]), name


def test_the_count_of_masked_tokens_is_exact(tmp_path, quick_config, corpus, rng_seed):
    train = Corpus.open(corpus / "train")
    model = build_model(quick_config(tmp_path), train.meta)
    batch = BatchLoader(train, batch_size=50, max_length=24, seed=rng_seed).batch(0)
    out = model(batch.input_ids, cu_seqlens=batch.cu_seqlens, sequence_ids=batch.sequence_ids, seed=1, mask_seed=2)
    count = count_predicted(model, batch, "joint", 2)
    assert count == out.masked.weights.sum() == (out.masked.weights > 0).sum()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_in_micro_batches_follows_the_whole_one(tmp_path, quick_config, precision):
    # The generator alone: rounding may change a sample, and with it the discriminator's text.
    settings = {"optimizer.lr": 1e-3, "training.precision": precision, "training.log_every": 1}
    settings["schedule"] = [{"objective": "generator"}]
    rows = []
    for name, tokens in (("whole", None), ("cut", 40)):
        config = quick_config(tmp_path / name, **settings, **{"training.micro_batch_tokens": tokens})
        pretrain(config, progress=False)
        rows.append(read_metrics(tmp_path / name / "metrics.jsonl"))
    for whole, cut in zip(*rows, strict=True):
        expected = whole["generator_loss"]
        assert cut["generator_loss"] == pytest.approx(expected, rel=1e-4 if precision == "float32" else 1e-2)


def test_a_signal_between_micro_batches_gives_the_step_up_and_loses_nothing(tmp_path, quick_config, monkeypatch):
    settings = {"training.micro_batch_tokens": 40, "training.steps": 5, "training.save_every": 0}
    pretrain(quick_config(tmp_path / "whole", **settings), progress=False)
    add, count = train_module.StepTotals.add, 0

    def interrupting(self, out):
        nonlocal count
        count += 1
        if count == 9:
            signal.raise_signal(signal.SIGTERM)
        add(self, out)

    monkeypatch.setattr(train_module.StepTotals, "add", interrupting)
    cut = pretrain(quick_config(tmp_path / "cut", **settings), progress=False)
    assert cut.interrupted_by == "SIGTERM"
    assert count == 9  # no micro-batch after the signal
    assert cut.step < 5
    assert pretrain(quick_config(tmp_path / "cut", **settings), resume=True, progress=False).step == 5
    assert_same_end(tmp_path / "whole", tmp_path / "cut", 5)
