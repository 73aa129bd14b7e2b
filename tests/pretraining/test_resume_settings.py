"""What may change when a run goes on, and what may not; options of the command that stand for settings."""

from __future__ import annotations

import shutil

import pytest

from electra_fast.cli import main
from electra_fast.pretraining.config import ConfigError, PretrainConfig
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


def test_a_run_goes_on_without_its_settings_where_a_checkpoint_knows_them(tmp_path, quick_config, monkeypatch):
    settings = {"data.valid": None, "training.eval_every": 0, "training.steps": 4, "training.save_every": 0}
    pretrain(quick_config(tmp_path / "whole", **settings), progress=False)
    interrupt_after(monkeypatch, 2)
    pretrain(quick_config(tmp_path / "cut", **settings), progress=False)
    (tmp_path / "cut" / "config.yaml").write_bytes(b"training: {st")
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged"):
        pretrain(quick_config(tmp_path / "cut", **settings, **{"optimizer.lr": 1.0}), resume=True, progress=False)
    with pytest.warns(RuntimeWarning, match=r"config\.yaml is damaged.*; going on"):
        assert pretrain(quick_config(tmp_path / "cut", **settings), resume=True, progress=False).step == 4
    assert_same_end(tmp_path / "cut", tmp_path / "whole", 4)
    assert read_config(tmp_path / "cut" / "config.yaml").training.steps == 4


def test_the_corpora_of_a_mixture_may_move(tmp_path, quick_config, corpus, monkeypatch):
    places = [shutil.copytree(corpus / part, tmp_path / part) for part in ("train", "valid")]

    def config(output: str, weights: tuple[int, int] = (2, 1)) -> PretrainConfig:
        mixture = [{"path": str(place), "weight": weight} for place, weight in zip(places, weights, strict=True)]
        settings = {"data.train": "", "data.valid": None, "data.mixture": mixture, "training.steps": 4}
        return quick_config(tmp_path / output, **settings)

    pretrain(config("whole"), progress=False)
    interrupt_after(monkeypatch, 2)
    assert pretrain(config("cut"), progress=False).step == 2
    places = [place.rename(tmp_path / f"moved {place.name}") for place in places]
    with pytest.raises(ConfigError, match=r"data\.mixture"):
        pretrain(config("cut", (1, 1)), resume=True, progress=False)
    assert pretrain(config("cut"), resume=True, progress=False).step == 4
    assert_same_end(tmp_path / "cut", tmp_path / "whole", 4)
    places.reverse()
    with pytest.raises(ConfigError, match=r"not what .* was trained on"):
        pretrain(config("cut", (2, 1)), resume=True, progress=False)
