"""A run on a mixture, with a curriculum, two segments and spans; and what a configuration of data may not say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from electra_fast.data.prepare import prepare
from electra_fast.pretraining.config import ConfigError
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.train import pretrain


@pytest.fixture(scope="module")
def worded(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `one`, `two` and `valid`, prepared with their words."""
    folder = tmp_path_factory.mktemp("worded")
    for name, text in (("one", "train"), ("two", "valid"), ("valid", "valid")):
        prepare([corpus / f"{text}.txt"], corpus / "tokenizer", folder / name, units=["word"], progress=False)
    return folder


def test_a_run_with_everything_resumes_to_the_same_weights(worded: Path, quick_config, tmp_path: Path) -> None:
    settings = {
        "data.train": "",
        "data.mixture": f"[{{path: {worded / 'one'}, weight: 2}}, {{path: {worded / 'two'}, weight: 1}}]",
        "data.valid": str(worded / "valid"),
        "data.curriculum": [
            {"steps": 4, "max_length": 16, "batch_tokens": 100},
            {"steps": 3, "max_length": 24, "batch_size": 5},
            {"max_length": 16, "batch_size": 6},
        ],
        "data.segments": 2,
        "data.mask_units": "span",
        "data.fixed_shapes": True,
        "training.micro_batch_tokens": 60,
        "training.steps": 10,
        "training.save_every": 6,
    }
    whole = pretrain(quick_config(tmp_path / "whole", **settings), progress=False)
    assert whole.step == 10
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    _, last = sorted((tmp_path / "parts" / "checkpoints").iterdir())  # of steps 6 and 10
    shutil.rmtree(last)
    parts = pretrain(quick_config(tmp_path / "parts", **settings), resume=True, progress=False)
    assert parts.metrics == whole.metrics
    for tower in ("generator", "discriminator"):
        one, other = (load_file(tmp_path / run / tower / "model.safetensors") for run in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.mask_units": "letters"}, "data.mask_units must be token, word, span or entity; got 'letters'"),
        ({"data.segments": 3}, "data.segments must be 1 or 2"),
        ({"data.segments": 2, "data.max_length": 7}, "data.max_length must be between 8 and 8192"),
        ({"data.alpha": -1.0}, r"data.alpha must be in \[0, 1\]"),
        ({"data.batch_tokens": 100}, "data.batch_tokens must be between 128, a sequence"),
        ({"data.batch_tokens": 200, "data.fixed_shapes": True}, "data.batch_tokens must be between 256, two sequences"),
        ({"data.mixture": "[{path: a}]", "data.train": "b"}, "data.train must be left out where there is data.mixture"),
        ({"data.mixture": "[{path: a, weight: 1}, {path: b}]"}, "a weight for each, or for none"),
        ({"data.mixture": "[{path: a, weight: 0}]"}, r"data.mixture\[0\].weight must be positive"),
        ({"data.mixture": "[{weight: 1}]"}, r"data.mixture\[0\].path must be the folder of a corpus"),
        ({"data.mixture": "[{folder: a}]"}, r"unknown config key data.mixture\[0\].folder"),
        ({"data.mixture": "a"}, "data.mixture must be a list of sections"),
        ({"data.curriculum": "[{max_length: 64}, {max_length: 128}]"}, r"data.curriculum\[0\].steps must be between 1"),
        ({"data.curriculum": "[{steps: 5}]"}, r"data.curriculum\[0\].steps must be null: the last stage goes on"),
        ({"data.curriculum": "[{batch_size: 5, batch_tokens: 500}]"}, "batch_size or batch_tokens, not both"),
        ({"data.curriculum": "[{max_length: 600}]"}, "data.max_length must be at most model.max_position_embeddings"),
        ({"data.curriculum": "[{max_length: two}]"}, r"data.curriculum\[0\].max_length must be a whole number"),
    ],
)
def test_bad_settings_of_data_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config("small", settings)


def test_lists_go_through_yaml(tmp_path: Path) -> None:
    settings = {
        "data.mixture": "[{path: a, weight: 2}, {path: b, weight: 0.5}]",
        "data.curriculum": [{"steps": 9, "max_length": 64}, {"batch_tokens": 4096}],
    }
    config = read_config("small", settings)
    assert (config.data.train_corpora, config.data.weights, config.data.longest) == (["a", "b"], [2.0, 0.5], 128)
    stages = [(stage.steps, stage.max_length, stage.batch_size, stage.batch_tokens) for stage in config.data.stages()]
    assert stages == [(9, 64, 128, None), (None, 128, 128, 4096)]
    (tmp_path / "mine.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert read_config(tmp_path / "mine.yaml") == config
