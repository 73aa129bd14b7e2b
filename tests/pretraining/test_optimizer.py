"""The optimizer and schedule against the original's formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from electra_fast.pretraining.config import OptimizerConfig
from electra_fast.pretraining.optimizer import build_optimizer, is_decayed, learning_rate


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(7, 5)
        self.LayerNorm = nn.LayerNorm(5)


@pytest.mark.parametrize("bias_correction", [False, True])
def test_fifty_updates_follow_the_originals_rule(bias_correction, rng_seed):
    config = OptimizerConfig(lr=1e-2, weight_decay=0.1, bias_correction=bias_correction)
    model = Model()
    optimizer = build_optimizer(model, config)
    exact = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    m = {name: np.zeros_like(value) for name, value in exact.items()}
    v = {name: np.zeros_like(value) for name, value in exact.items()}
    g = np.random.default_rng(rng_seed)
    for t in range(1, 51):
        for name, p in model.named_parameters():
            gradient = g.normal(0, 1, p.shape).astype(np.float32)
            p.grad = torch.from_numpy(gradient)
            m[name] = 0.9 * m[name] + 0.1 * gradient
            v[name] = 0.999 * v[name] + 0.001 * gradient.astype(np.float64) ** 2
            first, second = m[name], v[name]
            if bias_correction:
                first, second = first / (1 - 0.9**t), second / (1 - 0.999**t)
            update = first / (np.sqrt(second) + 1e-6)
            if name == "dense.weight":  # neither biases nor LayerNorm decay
                update += 0.1 * exact[name]
            exact[name] -= 1e-2 * update
        optimizer.step()
    for name, p in model.named_parameters():
        moved = np.abs(exact[name] - exact[name].mean()).max()
        assert np.abs(p.detach().double().numpy() - exact[name]).max() <= 2e-5 * max(moved, 1.0), name


def test_embeddings_decay_and_output_bias_does_not():
    assert is_decayed("discriminator.electra.embeddings.word_embeddings.weight")
    assert not is_decayed("generator.generator_lm_head.bias")
    assert not is_decayed("generator.generator_predictions.LayerNorm.weight")


def test_schedule_is_decay_times_warmup():
    config = OptimizerConfig(lr=2.0, warmup_steps=10)
    rates = [learning_rate(t, 100, config) for t in range(100)]
    assert rates[0] == 0.0
    assert rates[5] == 2.0 * 0.95 * 0.5
    assert max(rates) == rates[10] == 2.0 * 0.9  # the peak never reaches lr
    assert rates[99] == pytest.approx(2.0 * 0.01)
    later = OptimizerConfig(lr=2.0, warmup_steps=10, decay_in_warmup=False)
    assert [learning_rate(t, 100, later) for t in (5, 10, 55)] == [1.0, 2.0, 1.0]
    assert learning_rate(0, 100, OptimizerConfig(lr=2.0, warmup_steps=0)) == 2.0


def test_schedules_follow_their_formulas():
    """Every rate of 100 updates after a warm-up of 10, against the formulas written out."""
    steps = np.arange(100)
    warmup = np.minimum(1, steps / 10)
    after = np.clip((steps - 10) / 90, 0, None)
    falling = 1 - np.sqrt(np.clip((steps - 80) / 20, 0, None))  # wsd: over the last fifth
    formulas = {
        "paper": warmup * (1 - steps / 100),
        "wsd": np.where(steps < 80, warmup, falling),
        "cosine": np.where(steps < 10, warmup, 0.5 + 0.5 * np.cos(np.pi * after)),
        "constant": warmup,
    }
    for name, formula in formulas.items():
        config = OptimizerConfig(lr=3.0, lr_schedule=name, warmup_steps=10, decay_share=0.2)
        rates = [learning_rate(int(t), 100, config) for t in steps]
        np.testing.assert_allclose(rates, 3.0 * formula, rtol=1e-12, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("schedule", ["paper", "wsd", "cosine", "constant"])
def test_schedules_at_their_edges(schedule):
    """No warm-up, a run that is shorter than its warm-up or of one step, no decay, nothing but decay."""
    for steps, warmup, share in ((1, 0, 0.1), (1, 10, 0.5), (5, 10, 1.0), (20, 20, 0.0), (7, 0, 1.0)):
        config = OptimizerConfig(lr=2.0, lr_schedule=schedule, warmup_steps=warmup, decay_share=share)
        rates = [learning_rate(t, steps, config) for t in range(steps)]
        assert all(0 <= rate <= 2.0 for rate in rates)
        assert warmup or rates[0] == 2.0
        assert schedule != "constant" or rates[-1] == 2.0 * min(1, (steps - 1) / warmup if warmup else 1)
