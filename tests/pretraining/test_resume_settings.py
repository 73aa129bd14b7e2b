"""What may change when a run goes on, and what may not; options of the command that stand for settings."""

from __future__ import annotations

import pytest

from electra_fast.cli import main
from electra_fast.pretraining.config import ConfigError
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.train import pretrain
from tests.pretraining.test_phases import assert_same_end, interrupt_after
from tests.small import pretrain_arguments


def test_what_changes_no_bit_may_change(tmp_path, quick_config, monkeypatch):
    pretrain(quick_config(tmp_path / "whole"), progress=False)
    interrupt_after(monkeypatch, 3)
    first = {"training.activation_checkpointing": True, "training.save_every": 0}
    assert pretrain(quick_config(tmp_path / "cut", **first), progress=False).step == 3
    then = {"training.deterministic": True, "training.peak_tflops": 0.1, "training.log_every": 3}
    assert pretrain(quick_config(tmp_path / "cut", **then), resume=True, progress=False).step == 12
    assert_same_end(tmp_path / "cut", tmp_path / "whole", 12)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.precision", "bfloat16"),
        ("schedule", [{"objective": "generator"}]),
        ("optimizer.lr_schedule", "wsd"),
        ("training.seed", 3),
    ],
)
def test_what_changes_the_run_may_not(tmp_path, quick_config, key, value):
    settings = {"training.steps": 1, "training.eval_every": 0, "data.valid": None}
    pretrain(quick_config(tmp_path / "run", **settings), progress=False)
    with pytest.raises(ConfigError, match=f"can't resume: {key} is "):
        pretrain(quick_config(tmp_path / "run", **settings, **{key: value}), resume=True, progress=False)


def test_the_deterministic_flag_is_the_setting(tmp_path, corpus, capsys):
    arguments = pretrain_arguments(corpus / "train", tmp_path / "run", 1)
    assert main([*arguments, "--deterministic", "--schedule", "[{objective: generator}]"]) == 0
    config = read_config(tmp_path / "run" / "config.yaml")
    assert config.training.deterministic
    assert [phase.objective for phase in config.phases] == ["generator"]
    assert "Models: " in capsys.readouterr().out
