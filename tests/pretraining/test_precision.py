"""Sixteen bits: float32 masters, LayerNorm in float32, loss scaling, and a bfloat16 run that learns as float32 does."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from electra_fast.data.corpus import Corpus
from electra_fast.pretraining.build import build_model
from electra_fast.pretraining.config import OptimizerConfig
from electra_fast.pretraining.metrics import read_metrics
from electra_fast.pretraining.optimizer import build_optimizer
from electra_fast.pretraining.precision import LARGEST_LOSS_SCALE, LossScale, MasterWeights
from electra_fast.pretraining.train import pretrain
from tests.pretraining.test_phases import assert_same_end, interrupt_after


def test_masters_are_float32_and_layer_norms_are_their_own(tmp_path, quick_config, corpus):
    model = build_model(quick_config(tmp_path), Corpus.open(corpus / "train").meta)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masters = MasterWeights(model, torch.bfloat16)
    rounded = dict(model.named_parameters())
    for name, master in masters.named_parameters():
        assert master.dtype == torch.float32
        assert torch.equal(master, before[name])
        is_norm = "LayerNorm" in name
        assert rounded[name].dtype == (torch.float32 if is_norm else torch.bfloat16)
        assert (rounded[name] is master) == is_norm
        assert torch.equal(rounded[name], before[name].to(rounded[name].dtype))
    # The tied projection still is the word embeddings.
    assert model.generator.generator_lm_head.weight is model.discriminator.electra.embeddings.word_embeddings.weight
    masters.export()
    assert all(p.dtype == torch.float32 and torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_updates_too_small_for_sixteen_bits_add_up(rng_seed):
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    start = torch.ones(8, 8)
    model[0].weight.data.copy_(start)
    masters = MasterWeights(model, torch.bfloat16)
    optimizer = build_optimizer(masters, OptimizerConfig(lr=1e-4, weight_decay=0.0))
    gradient = torch.randn(8, 8).sign()
    for _ in range(100):
        model[0].weight.grad = gradient.bfloat16()
        masters.take_gradients()
        assert model[0].weight.grad is None
        optimizer.step()
        masters.clear_gradients()
        masters.give_weights()
    # m / sqrt(v) goes from 0.1 / sqrt(0.001) = 3.2 down to 1 / sqrt(0.095) = 3.2: about 100 * 1e-4 * 4.
    moved = ((start - dict(masters.named_parameters())["0.weight"].detach()) * gradient).mean()
    assert 0.02 < float(moved) < 0.08
    assert torch.equal(model[0].weight, dict(masters.named_parameters())["0.weight"].bfloat16())


def test_the_loss_scale_follows_overflows(monkeypatch):
    monkeypatch.setattr("electra_fast.pretraining.precision.STEPS_TO_A_LARGER_SCALE", 20)
    scale = LossScale(torch.device("cpu"), is_dynamic=True)
    yes, no = torch.tensor(True), torch.tensor(False)
    expected, steps = 2.0**16, 0
    for overflowed in [no] * 19 + [yes] + [no] * 21 + [yes] * 30 + [no] * 20 * 30:
        scale.update(overflowed)
        steps += 1
        if overflowed:
            expected, steps = max(expected / 2, 1.0), 0
        elif steps == 20:
            expected, steps = min(expected * 2, LARGEST_LOSS_SCALE), 0
        assert float(scale.scale) == expected
    assert float(scale.scale) == LARGEST_LOSS_SCALE
    other = LossScale(torch.device("cpu"), is_dynamic=True)
    other.load(json.loads(json.dumps(scale.state())))
    assert other.state() == scale.state()
    fixed = LossScale(torch.device("cpu"), is_dynamic=False)
    fixed.update(yes)
    assert float(fixed.scale) == 1.0
    assert fixed.state() == {}


def test_bfloat16_learns_as_float32_does_and_resumes_to_the_same_bits(tmp_path, quick_config, monkeypatch):
    settings = {"training.steps": 60, "data.batch_size": 24, "optimizer.lr": 1e-3, "optimizer.warmup_steps": 20}
    settings |= {"model.hidden_dropout_prob": 0.0, "training.eval_every": 0, "training.log_every": 10}
    curves = []
    for precision in ("float32", "bfloat16"):
        config = quick_config(tmp_path / precision, **settings, **{"training.precision": precision})
        pretrain(config, progress=False)
        rows = [row for row in read_metrics(tmp_path / precision / "metrics.jsonl") if row["kind"] == "train"]
        curves.append([row["loss"] for row in rows])
    print(*(f"{a:.3f} {b:.3f}" for a, b in zip(*curves, strict=True)), sep="\n")
    assert curves[0][-1] < curves[0][0] - 1.0
    assert all(ours == pytest.approx(theirs, rel=0.05) for theirs, ours in zip(*curves, strict=True))
    final = load_file(tmp_path / "bfloat16" / "discriminator" / "model.safetensors")
    saved = load_file(tmp_path / "bfloat16" / "checkpoints" / "step-00000060" / "model.safetensors")
    assert {tensor.dtype for tensor in final.values()} == {torch.float32}
    assert all(torch.equal(tensor, saved[f"discriminator.{name}"]) for name, tensor in final.items())

    interrupt_after(monkeypatch, 37)
    config = quick_config(tmp_path / "cut", **settings, **{"training.precision": "bfloat16"})
    assert pretrain(config, progress=False).step == 37
    pretrain(config, resume=True, progress=False)
    assert_same_end(tmp_path / "bfloat16", tmp_path / "cut", 60)


@pytest.mark.filterwarnings("ignore:.*does not take torch.float16")
def test_float16_leaves_out_overflowing_updates_and_goes_on(tmp_path, quick_config, monkeypatch):
    # The first scales are far too large for a loss of 50 times the discriminator's: gradients overflow, and halving
    # finds one that fits.
    settings = {"training.precision": "float16", "training.steps": 16, "training.log_every": 1, "optimizer.lr": 1e-3}
    settings |= {"training.eval_every": 0, "training.save_every": 0}
    monkeypatch.setattr("electra_fast.pretraining.precision.FIRST_LOSS_SCALE", 2.0**20)
    pretrain(quick_config(tmp_path / "whole", **settings), progress=False)
    rows = [row for row in read_metrics(tmp_path / "whole" / "metrics.jsonl") if row["kind"] == "train"]
    skipped = sum(row.get("skipped_updates", 0) for row in rows)
    assert 1 <= skipped <= 12
    assert rows[-1]["loss_scale"] == 2.0 ** (20 - skipped)
    assert "skipped_updates" not in rows[-1]
    assert rows[-1]["gradient_norm"] > 0
    interrupt_after(monkeypatch, 2)
    assert pretrain(quick_config(tmp_path / "cut", **settings), progress=False).step == 2
    pretrain(quick_config(tmp_path / "cut", **settings), resume=True, progress=False)
    assert_same_end(tmp_path / "whole", tmp_path / "cut", 16)
