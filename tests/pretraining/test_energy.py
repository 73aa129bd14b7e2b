"""Runs with the objectives `electric` and `adversarial`."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain_energy
from electra_fast import ElectraForJointPreTraining
from electra_fast.data.corpus import Corpus
from electra_fast.data.loader import BatchLoader
from electra_fast.pretraining.build import build_model
from electra_fast.pretraining.config import ConfigError
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.metrics import read_metrics
from electra_fast.pretraining.throughput import step_flops
from electra_fast.pretraining.train import pretrain
from tests.pretraining.test_phases import assert_same_end, interrupt_after

SCHEDULE = "[{objective: electric, steps: 4}, {objective: adversarial, steps: 4}, {steps: 3}]"


def test_a_run_cut_anywhere_ends_with_the_same_bits(tmp_path, quick_config, monkeypatch):
    settings = {"schedule": SCHEDULE, "training.eval_batches": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(quick_config(whole, **settings), progress=False)
    interrupt_after(monkeypatch, 2, 6)
    for step in (2, 6, 11):
        assert pretrain(quick_config(cut, **settings), resume=True, progress=False).step == step
        torch.manual_seed(999)  # nothing of the global generator's state may matter
    assert_same_end(whole, cut, 11)

    rows = read_metrics(whole / "metrics.jsonl")
    losses = {"generator_loss", "discriminator_loss"}
    for row in rows:
        trained = {"policy_loss", "baseline_loss", "reward"} if row["objective"] == "adversarial" else set()
        assert losses | (trained if row["kind"] == "train" else set()) <= row.keys(), row
    model = ElectraForJointPreTraining.from_pretrained(whole)
    assert set(model.objectives) == {"electric", "adversarial", "joint"}
    transformers.ElectraForPreTraining.from_pretrained(whole / "discriminator")


def test_sixteen_bits_follow_thirty_two(tmp_path, quick_config):
    rows = []
    for precision in ("float32", "bfloat16"):
        schedule = "[{objective: electric, steps: 3}, {objective: adversarial, steps: 3}]"
        settings = {"schedule": schedule, "training.precision": precision, "training.log_every": 1, "data.valid": None}
        pretrain(quick_config(tmp_path / precision, **settings), progress=False)
        rows.append(read_metrics(tmp_path / precision / "metrics.jsonl"))
    for whole, half in zip(*rows, strict=True):
        for name in ("generator_loss", "discriminator_loss"):
            assert half[name] == pytest.approx(whole[name], rel=1e-2)


def test_flops_are_what_pytorch_counts(tmp_path, quick_config, corpus, rng_seed):
    """The two-tower generator's forward pass in the plain model, sequence after sequence."""
    train = Corpus.open(corpus / "train")
    model = build_model(quick_config(tmp_path, schedule=[{"objective": "electric"}]), train.meta)
    batch = BatchLoader(train, batch_size=9, max_length=24, seed=rng_seed).batch(0)
    plain = plain_energy.from_joint(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for ids in batch.input_ids.split(batch.cu_seqlens.diff().tolist()):
            plain.cloze_logits(ids[None], torch.ones(1, len(ids), dtype=torch.bool), torch.zeros_like(ids)[None])
    joint, generator, electric = (step_flops(model, batch, name) for name in ("joint", "generator", "electric"))
    assert (electric - (joint - generator)) / 3 == pytest.approx(counter.get_total_flops(), rel=1e-9)


@pytest.mark.parametrize("option", [{"objective.temperature": 2.0}, {"objective.disallow_correct": True}])
@pytest.mark.parametrize("objective", ["electric", "adversarial"])
def test_samples_must_come_from_the_generator(objective, option):
    with pytest.raises(ConfigError, match=rf"{next(iter(option))} must be .* for {objective}"):
        read_config("small", {"schedule": [{"objective": objective}]} | option)
