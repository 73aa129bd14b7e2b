"""Recipes hold the paper's numbers; settings that make no sense are refused by name."""

from __future__ import annotations

import pytest
import yaml

from electra_fast.pretraining.config import ConfigError, recipe_names, recipe_path
from electra_fast.pretraining.config_file import read_config

# ELECTRA paper, table 6 (small, base, large); google-research/electra README (small++: the released "small").
PAPER = {
    "small": (12, 256, 1024, 4, 128, (64, 1), 0.15, 5e-4, 128, 128, 1_000_000, 19),
    "small++": (12, 256, 1024, 4, 128, (256, 4), 0.15, 5e-4, 128, 512, 4_000_000, 79),
    "base": (12, 768, 3072, 12, 768, (256, 4), 0.15, 2e-4, 256, 512, 766_000, 79),
    "large": (24, 1024, 4096, 16, 1024, (256, 4), 0.25, 2e-4, 2048, 512, 400_000, 130),
}


def test_recipes_are_found_by_name():
    assert set(recipe_names()) == {"tiny", *PAPER}
    with pytest.raises(ConfigError, match=r"recipes: base, large, small, small\+\+, tiny"):
        recipe_path("medium")


@pytest.mark.parametrize("name", PAPER)
def test_recipes_hold_the_papers_numbers(name):
    config = read_config(name)
    model, generator = config.model, config.model.generator
    assert (
        model.num_hidden_layers,
        model.hidden_size,
        model.intermediate_size,
        model.num_attention_heads,
        model.embedding_size,
        (generator.hidden_size, generator.num_attention_heads),
        config.objective.mask_prob,
        config.optimizer.lr,
        config.data.batch_size,
        config.data.max_length,
        config.training.steps,
        config.max_per_sequence,
    ) == PAPER[name]
    assert generator.num_hidden_layers == model.num_hidden_layers
    assert generator.intermediate_size == 4 * generator.hidden_size
    optimizer, objective = config.optimizer, config.objective
    assert (optimizer.warmup_steps, optimizer.beta1, optimizer.beta2, optimizer.eps) == (10_000, 0.9, 0.999, 1e-6)
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.bias_correction) == (0.01, 1.0, False)
    assert (objective.generator_weight, objective.discriminator_weight, objective.temperature) == (1.0, 50.0, 1.0)
    assert (model.hidden_dropout_prob, model.attention_probs_dropout_prob, model.initializer_range) == (0.1, 0.1, 0.02)
    assert (model.max_position_embeddings, model.tie, model.glorot) == (512, "shared", True)


def test_overrides_and_a_round_trip_through_yaml(tmp_path):
    config = read_config("small", {"training.steps": 7, "model.generator.hidden_size": 32, "output": "x y"})
    assert (config.training.steps, config.model.generator.hidden_size, config.output) == (7, 32, "x y")
    path = tmp_path / "mine.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert read_config(path) == config
    assert yaml.safe_load(path.read_text())["optimizer"]["lr"] == 5e-4


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.rate", 1e-3, "optimizer.rate"),
        ("optimzer.lr", 1e-3, "optimzer"),
        ("optimizer.lr", 0.0, "optimizer.lr must be positive"),
        ("objective.mask_prob", 1.0, "objective.mask_prob"),
        ("data.max_length", 600, "max_position_embeddings"),
        ("model.hidden_size", 250, "multiple of num_attention_heads"),
        ("model.tie", "both", "shared, untied, all or gdes"),
        ("training.steps", 0, "training.steps"),
        ("training.device", "tpu", "auto, cpu or cuda"),
    ],
)
def test_bad_settings_are_refused(key, value, message):
    with pytest.raises(ConfigError, match=message):
        read_config("small", {key: value})
