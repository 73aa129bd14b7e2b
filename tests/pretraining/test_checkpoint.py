"""Checkpoints give back every bit, are whole or absent, and say which file is damaged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from electra_fast.pretraining.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from electra_fast.pretraining.config import OptimizerConfig
from electra_fast.pretraining.optimizer import build_optimizer


def trained(seed: int, width: int = 6) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.Linear(width, 1))
    model.tied = model[0]  # a shared module must not be stored twice
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.1))
    for _ in range(3):
        optimizer.zero_grad()
        model[2](model[1](model[0](torch.randn(8, 4)))).square().sum().backward()
        optimizer.step()
    return model, optimizer


def test_every_bit_comes_back(tmp_path, rng_seed):
    model, optimizer = trained(rng_seed)
    path = save_checkpoint(tmp_path, 12, model, optimizer, {"corpus": "abc"}, keep=2)
    other, other_optimizer = trained(rng_seed + 1)
    state = load_checkpoint(path, other, other_optimizer)
    assert (state["step"], state["corpus"]) == (12, "abc")
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(optimizer.state[p][moment], other_optimizer.state[q][moment])


def test_only_the_newest_are_kept_and_partial_ones_are_not_seen(tmp_path, rng_seed):
    model, optimizer = trained(rng_seed)
    for step in (5, 10, 100, 15):
        save_checkpoint(tmp_path, step, model, optimizer, {}, keep=3)
    (tmp_path / ".step-00000200.partial").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010", "step-00000015", "step-00000100"]


def test_damage_is_named_and_changes_nothing(tmp_path, rng_seed):
    model, optimizer = trained(rng_seed)
    before = [p.clone() for p in model.parameters()]
    for step, (file, content) in enumerate(
        {"model.safetensors": b"", "optimizer.safetensors": b"\x00" * 40, "state.json": b"{"}.items()
    ):
        path = save_checkpoint(tmp_path, step, model, optimizer, {}, keep=9)
        (path / file).write_bytes(content)
        with pytest.raises(CheckpointError, match=file):
            load_checkpoint(path, model, optimizer)
    (path / "state.json").write_text('{"format_version": 99}')
    with pytest.raises(CheckpointError, match="upgrade"):
        read_state(path)
    wider, wider_optimizer = trained(rng_seed, width=7)
    path = save_checkpoint(tmp_path, 50, wider, wider_optimizer, {}, keep=9)
    with pytest.raises(CheckpointError, match=r"another model: 0\.bias is \(7,\)"):
        load_checkpoint(path, model, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
