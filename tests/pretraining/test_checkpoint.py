"""Checkpoints give back every bit, are whole or absent, and say which file is damaged."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
import torch
from torch import nn

import electra_fast.pretraining.checkpoint as checkpoint_module
from electra_fast.data.checksum import sealed
from electra_fast.pretraining.checkpoint import (
    CheckpointError,
    DamagedCheckpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest,
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
    (tmp_path / ".step-00000200.partial").mkdir()
    for step in (5, 10, 15, 100):
        save_checkpoint(tmp_path, step, model, optimizer, {}, keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010", "step-00000015", "step-00000100"]
    # A run that fell back to step 10 and goes on: what is newer is no part of it, and must not push out what is.
    save_checkpoint(tmp_path, 11, model, optimizer, {}, keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010", "step-00000011"]


def test_damage_is_named_and_changes_nothing(tmp_path, rng_seed):
    model, optimizer = trained(rng_seed)
    before = [p.clone() for p in model.parameters()]
    for step, (file, content) in enumerate(
        {"model.safetensors": b"", "optimizer.safetensors": b"\x00" * 40, "state.json": b"{"}.items()
    ):
        path = save_checkpoint(tmp_path, step, model, optimizer, {}, keep=9)
        (path / file).write_bytes(content)
        with pytest.raises(DamagedCheckpoint, match=file):
            load_checkpoint(path, model, optimizer)
    (path / "state.json").write_text(json.dumps(sealed({"format_version": 99})))
    with pytest.raises(CheckpointError, match="upgrade"):
        read_state(path)
    wider, wider_optimizer = trained(rng_seed, width=7)
    path = save_checkpoint(tmp_path, 50, wider, wider_optimizer, {}, keep=9)
    with pytest.raises(CheckpointError, match=r"another model: 0\.bias is float32 \(7,\)"):
        load_checkpoint(path, model, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_any_flipped_bit_is_noticed_and_the_checkpoint_before_is_taken(tmp_path, rng_seed):
    model, optimizer = trained(rng_seed)
    assert load_newest(tmp_path, model, optimizer) is None
    older = save_checkpoint(tmp_path, 5, model, optimizer, {"corpus": "abc"}, keep=2)
    weights = [p.clone() for p in model.parameters()]
    g = np.random.default_rng(rng_seed)
    for file in ("model.safetensors", "optimizer.safetensors", "state.json") * 8:
        other, other_optimizer = trained(rng_seed + 1)
        path = save_checkpoint(tmp_path, 10, other, other_optimizer, {"corpus": "abc"}, keep=2)
        content = bytearray((path / file).read_bytes())
        place = int(g.integers(len(content)))
        content[place] ^= 1 << int(g.integers(8))
        (path / file).write_bytes(content)
        with pytest.warns(RuntimeWarning, match=f"step-00000010.{file} .*trying the checkpoint before"):
            loaded, state = load_newest(tmp_path, other, other_optimizer)
        assert (loaded, state["step"]) == (older, 5), (file, place)
        assert all(torch.equal(p, q) for p, q in zip(weights, other.parameters(), strict=True))
    (older / "optimizer.safetensors").unlink()
    with (
        pytest.warns(RuntimeWarning, match="trying the checkpoint before"),
        pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: start anew with --overwrite"),
    ):
        load_newest(tmp_path, model, optimizer)


def test_of_another_model_is_no_damage_to_fall_back_from(tmp_path, rng_seed):
    model, optimizer = trained(rng_seed)
    save_checkpoint(tmp_path, 5, model, optimizer, {}, keep=2)
    save_checkpoint(tmp_path, 10, *trained(rng_seed, width=7), {}, keep=2)
    with pytest.raises(CheckpointError, match="another model"):
        load_newest(tmp_path, model, optimizer)


def test_a_failed_write_leaves_the_folder_as_it_was(tmp_path, rng_seed, monkeypatch):
    model, optimizer = trained(rng_seed)
    save_checkpoint(tmp_path, 5, model, optimizer, {}, keep=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(checkpoint_module, "save_file", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        save_checkpoint(tmp_path, 10, model, optimizer, {}, keep=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
