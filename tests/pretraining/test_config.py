"""Recipes hold the paper's numbers; settings that make no sense are refused by name."""

from __future__ import annotations

import pytest
import yaml

from electra_fast.pretraining.config import ConfigError, PhaseConfig, recipe_names, recipe_path
from electra_fast.pretraining.config_file import read_config

# ELECTRA paper, table 6 (small, base, large); google-research/electra README (small++: the released "small").
PAPER = {
    "small": (12, 256, 1024, 4, 128, (64, 1), 0.15, 5e-4, 128, 128, 1_000_000, 19),
    "small++": (12, 256, 1024, 4, 128, (256, 4), 0.15, 5e-4, 128, 512, 4_000_000, 79),
    "base": (12, 768, 3072, 12, 768, (256, 4), 0.15, 2e-4, 256, 512, 766_000, 79),
    "large": (24, 1024, 4096, 16, 1024, (256, 4), 0.25, 2e-4, 2048, 512, 400_000, 130),
}


def test_recipes_are_found_by_name():
    assert set(recipe_names()) == {"tiny", "two-stage", "continue", *PAPER}
    with pytest.raises(ConfigError, match=r"recipes: base, continue, large, small, small\+\+, tiny, two-stage"):
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


def test_two_stage_is_three_phases_of_towers_of_one_size():
    config = read_config("two-stage")
    assert [phase.objective for phase in config.phases] == ["generator", "discriminator", "joint"]
    assert [phase.discriminator_from_generator for phase in config.phases] == [False, True, False]
    assert sum(phase.steps for phase in config.phases) == 1_000_000
    assert config.model.tie == "untied"
    for name, size in vars(config.model.generator).items():
        assert getattr(config.model, name) == size


def test_a_schedule_from_a_file_a_command_line_and_python(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("schedule:\n- {objective: generator, epochs: 1.5}\n- {steps: 5, lr: 1e-4}\n", encoding="utf-8")
    expected = [PhaseConfig(objective="generator", epochs=1.5), PhaseConfig(steps=5, lr=1e-4)]
    assert read_config(path).schedule == expected
    text = "[{objective: generator, epochs: 1.5}, {steps: 5, lr: 1.0e-4}]"
    assert read_config("small", {"schedule": text}).phases == expected
    assert read_config(path, {"schedule": [{"steps": 5}]}).phases == [PhaseConfig(steps=5)]
    assert read_config("small").phases == [PhaseConfig(objective="joint")]


PHASES = {
    "3": "schedule must be a list of sections",
    "{steps: 3}": "schedule must be a list of sections",
    "[3]": r"schedule\[0\] must be a section with keys",
    "[": "schedule is not YAML",
    "[{}, {objektive: joint}]": r"schedule\[1\]\.objektive; did you mean schedule\[1\]\.objective",
    "[{objective: generatr}]": r"schedule\[0\]\.objective must be joint, .* or adversarial; got 'generatr'",
    "[{steps: 2.5}]": r"schedule\[0\]\.steps must be a whole number or null; got 2\.5",
    "[{steps: [1, 2]}]": r"schedule\[0\]\.steps must be a whole number or null; got \[1, 2\]",
    "[{steps: 1, steps: 2}]": "steps is given twice",
    "[{epochs: -1}]": r"schedule\[0\]\.epochs must be positive",
    "[{turn_steps: 5}]": "turn_steps must be null where the objective is joint",
    "[{objective: alternate}]": "model.tie untied",
    "[{patience: 2}]": "null without data.valid",
}


@pytest.mark.parametrize("text", PHASES, ids=range(len(PHASES)))
def test_bad_phases_are_refused(text):
    with pytest.raises(ConfigError, match=PHASES[text]):
        read_config("small", {"schedule": text})


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
        ("training.precision", "bf16", "float32, bfloat16 or float16"),
        ("training.micro_batch_tokens", 100, r"at least data\.max_length \(128\)"),
        ("training.probe.train", "task.tsv", r"training\.probe\.valid must be a file too"),
        ("optimizer.lr_schedule", "linear", "paper, wsd, cosine or constant"),
    ],
)
def test_bad_settings_are_refused(key, value, message):
    with pytest.raises(ConfigError, match=message):
        read_config("small", {key: value})
