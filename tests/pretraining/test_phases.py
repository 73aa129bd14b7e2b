"""Phases: when they end, what they train, and that a run cut anywhere in them ends with the same bits."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, ElectraForMaskedLM, ElectraForPreTraining

from electra_fast import ElectraForJointPreTraining
from electra_fast.data.corpus import Corpus
from electra_fast.pretraining.build import build_model, copy_generator_to_discriminator
from electra_fast.pretraining.config import OptimizerConfig
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.metrics import read_metrics
from electra_fast.pretraining.optimizer import build_optimizer, learning_rate
from electra_fast.pretraining.phases import Progress, resolve_phases
from electra_fast.pretraining.precision import MasterWeights
from electra_fast.pretraining.train import pretrain

EQUAL_TOWERS = {
    "model.generator.hidden_size": 32,
    "model.generator.num_hidden_layers": 2,
    "model.generator.num_attention_heads": 2,
    "model.generator.intermediate_size": 64,
    "model.tie": "untied",
}
STAGES = (
    "[{objective: generator, steps: 4}, {objective: discriminator, steps: 4, discriminator_from_generator: true},"
    " {steps: 3, lr: 1.0e-4, warmup_steps: 1}]"
)


def checkpoint_of(output: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def state_of(output: Path, step: int) -> dict[str, Any]:
    return json.loads((output / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())


def interrupt_after(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """SIGTERM comes in the middle of each of these updates, counted over all calls."""
    count = 0
    step = torch.optim.AdamW.step

    def interrupting(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count in steps:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupting)


def assert_same_end(a: Path, b: Path, step: int) -> None:
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (load_file(run / "checkpoints" / f"step-{step:08d}" / file) for run in (a, b))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows = [[row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "eval"] for run in (a, b)]
    assert rows[0] == rows[1]


def test_lengths_rates_and_turns():
    schedule = [
        {"objective": "generator", "epochs": 1.5},
        {"steps": 10, "epochs": 9.0, "lr": 2.0, "warmup_steps": 3},
        {"objective": "alternate", "turn_steps": 3},
        {"objective": "alternate", "patience": 2},
    ]
    overrides = {"schedule": schedule, "model.tie": "untied", "data.valid": "valid", "training.steps": 77}
    phases = resolve_phases(read_config("small", overrides), steps_per_epoch=12.6)
    assert [phase.steps for phase in phases] == [19, 10, 77, 77]
    assert [phase.optimizer.lr for phase in phases] == [5e-4, 2.0, 5e-4, 5e-4]
    assert [phase.optimizer.warmup_steps for phase in phases] == [10_000, 3, 10_000, 10_000]
    turns = "".join(phases[2].objective_at(step)[0] for step in range(12))
    assert turns == "gggdddgggddd"
    turns = [phases[3].objective_at(step) for step in range(40)]
    assert [turns.count(tower) for tower in ("generator", "discriminator")] == [13 + 12, 13 + 2]  # of 12.6 steps each
    assert [phase.watched_loss for phase in phases] == ["generator_loss", "loss", "loss", "loss"]


def test_patience_counts_evaluations_without_a_lower_loss():
    config = read_config("small", {"schedule": [{"steps": 100, "patience": 2}, {"steps": 5}], "data.valid": "valid"})
    phases = resolve_phases(config, steps_per_epoch=10)
    now = Progress(step=40, step_in_phase=40)
    now.observe(float("nan"))
    assert (now.best_loss, now.evaluations_since_best) == (None, 1)
    for loss, over in ((3.0, False), (3.0, False), (2.9, False), (float("nan"), False), (2.9, True)):
        now.observe(loss)
        assert now.is_over(phases[0]) == over, loss
    assert now.steps_left(phases) == 5
    now.enter_next_phase()
    assert now == Progress(step=40, phase=1)
    assert now.steps_left(phases) == 5


def test_a_phase_trains_what_it_names_and_rows_name_it(tmp_path, quick_config):
    settings = {"schedule": STAGES, "training.steps": 99, "training.save_every": 0, "training.keep_checkpoints": 9}
    output = tmp_path / "run"
    result = pretrain(quick_config(output, **EQUAL_TOWERS, **settings), progress=False)
    assert result.step == 11
    after = {step: checkpoint_of(output, step) for step in (4, 8, 11)}  # one at the end of each phase
    moved = {
        (first, last): {name.split(".")[0] for name in after[first] if not after[first][name].equal(after[last][name])}
        for first, last in ((4, 8), (8, 11))
    }
    assert moved == {(4, 8): {"discriminator"}, (8, 11): {"discriminator", "generator"}}
    rows = read_metrics(output / "metrics.jsonl")
    assert [(row["kind"], row["step"], row["phase"], row["objective"]) for row in rows] == [
        ("train", 4, 1, "generator"),
        ("eval", 4, 1, "generator"),
        ("eval", 6, 2, "discriminator"),
        ("train", 8, 2, "discriminator"),
        ("eval", 8, 2, "discriminator"),
        ("train", 11, 3, "joint"),
        ("eval", 11, 3, "joint"),
    ]
    train_rows = [row for row in rows if row["kind"] == "train"]
    assert [{"generator_loss", "discriminator_loss"} & row.keys() for row in train_rows] == [
        {"generator_loss"},
        {"discriminator_loss"},
        {"generator_loss", "discriminator_loss"},
    ]
    # Each phase's rate goes over its own steps: the last update of 4 (warm-up 4), and of 3 at a lower rate (warm-up 1).
    rates = [(OptimizerConfig(warmup_steps=4), 4), (OptimizerConfig(warmup_steps=4), 4)]
    rates.append((OptimizerConfig(lr=1e-4, warmup_steps=1), 3))
    assert [row["lr"] for row in train_rows] == [learning_rate(steps - 1, steps, config) for config, steps in rates]


@pytest.mark.parametrize("stops", [(1,), (4,), (6,), (8, 9), (3, 10)])
def test_a_run_cut_in_or_between_phases_ends_with_the_same_bits(tmp_path, quick_config, monkeypatch, stops):
    settings = EQUAL_TOWERS | {"schedule": STAGES, "training.eval_batches": 1}
    pretrain(quick_config(tmp_path / "whole", **settings), progress=False)
    interrupt_after(monkeypatch, *stops)
    for stop in stops:
        result = pretrain(quick_config(tmp_path / "cut", **settings), resume=True, progress=False)
        assert (result.step, result.interrupted_by) == (stop, "SIGTERM")
        torch.manual_seed(999)  # nothing of the global generator's state may matter
    assert pretrain(quick_config(tmp_path / "cut", **settings), resume=True, progress=False).step == 11
    assert_same_end(tmp_path / "whole", tmp_path / "cut", 11)


def test_every_objective_runs_is_measured_and_resumes_to_the_same_bits(tmp_path, quick_config, monkeypatch):
    names = ["mlm", "electric", "adversarial", "joint", "generator", "discriminator"]
    settings = {"schedule": [{"objective": name, "steps": 2} for name in names], "training.eval_batches": 2}
    pretrain(quick_config(tmp_path / "whole", **settings), progress=False)
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [row["objective"] for row in rows if row["kind"] == "train" and row["step"] % 2 == 0] == names
    for kind, missing in (("train", {"mlm": {"generator_loss"}}), ("eval", {"mlm": {"generator_loss", "auc"}})):
        of = {row["objective"]: row for row in rows if row["kind"] == kind}
        assert of.keys() == set(names)
        assert all(0 < row["loss"] < 200 for name, row in of.items() if (kind, name) != ("train", "adversarial"))
        assert of["mlm"]["mlm_loss"] == pytest.approx(5, rel=0.3)  # about ln 200
        assert not missing["mlm"] & of["mlm"].keys()
        assert {"generator_loss", "discriminator_loss", "auc"} <= of["electric"].keys() & of["adversarial"].keys()
    assert "reward" in next(row for row in rows if row["objective"] == "adversarial")
    interrupt_after(monkeypatch, 3, 6)
    for _ in range(3):
        result = pretrain(quick_config(tmp_path / "cut", **settings), resume=True, progress=False)
    assert result.step == 12
    assert_same_end(tmp_path / "whole", tmp_path / "cut", 12)


@pytest.mark.parametrize("turn", ["turn_steps: 2", "turn_steps: null"])
def test_alternate_leaves_the_idle_tower_alone_and_resumes_to_the_same_bits(tmp_path, quick_config, monkeypatch, turn):
    settings = {"schedule": f"[{{objective: alternate, steps: 7, {turn}}}]", "model.tie": "untied"}
    settings |= {"training.save_every": 1, "training.keep_checkpoints": 9, "training.eval_batches": 1}
    if turn == "turn_steps: null":
        settings["data.batch_size"] = 300  # an epoch is 2 to 3 steps
    pretrain(quick_config(tmp_path / "whole", **settings), progress=False)
    moved = []
    for step in range(1, 7):
        before, after = checkpoint_of(tmp_path / "whole", step), checkpoint_of(tmp_path / "whole", step + 1)
        moved.append({name[0] for name in before if not before[name].equal(after[name])})
    assert all(len(towers) == 1 for towers in moved)
    assert {"g", "d"} == set().union(*moved)
    if turn == "turn_steps: 2":
        assert moved == [{"g"}, {"d"}, {"d"}, {"g"}, {"g"}, {"d"}]
    interrupt_after(monkeypatch, 3, 6)
    for _ in range(3):
        result = pretrain(quick_config(tmp_path / "cut", **settings), resume=True, progress=False)
    assert result.step == 7
    assert_same_end(tmp_path / "whole", tmp_path / "cut", 7)


def test_a_phase_ends_when_its_loss_stops_falling_also_after_a_resumption(tmp_path, quick_config, monkeypatch):
    # With a rate of nothing no evaluation is better than the first.
    schedule = "[{objective: generator, steps: 40, patience: 2, lr: 1.0e-30}, {steps: 2}]"
    settings = {"schedule": schedule, "training.eval_every": 3, "training.eval_batches": 1, "training.save_every": 0}
    result = pretrain(quick_config(tmp_path / "whole", **settings), progress=False)
    assert result.step == 9 + 2  # the evaluation after 3 is the best, those after 6 and 9 are not better
    state = state_of(tmp_path / "whole", 9)
    assert (state["phase"], state["step_in_phase"], state["evaluations_since_best"]) == (0, 9, 2)
    train_rows = [row for row in read_metrics(tmp_path / "whole" / "metrics.jsonl") if row["kind"] == "train"]
    assert [(row["step"], row["objective"]) for row in train_rows] == [
        (4, "generator"),
        (8, "generator"),
        (9, "generator"),
        (11, "joint"),
    ]
    interrupt_after(monkeypatch, 7)
    assert pretrain(quick_config(tmp_path / "cut", **settings), progress=False).step == 7
    assert pretrain(quick_config(tmp_path / "cut", **settings), resume=True, progress=False).step == 11
    assert_same_end(tmp_path / "whole", tmp_path / "cut", 11)


def test_the_generator_is_copied_where_sizes_agree(tmp_path, quick_config, corpus, rng_seed):
    meta = Corpus.open(corpus / "train").meta
    for sizes in (EQUAL_TOWERS, {"model.tie": "untied"}):
        model = build_model(quick_config(tmp_path, **sizes), meta)
        masters = MasterWeights(model, torch.float32)
        optimizer = build_optimizer(masters, OptimizerConfig())
        for moments in optimizer.state.values():
            moments["exp_avg"].fill_(1.0)
        ours, theirs = (dict(tower.electra.named_parameters()) for tower in (model.discriminator, model.generator))
        if sizes is EQUAL_TOWERS:
            copied, agree = copy_generator_to_discriminator(model, masters, optimizer), list(ours)
        else:
            with pytest.warns(RuntimeWarning, match="embeddings alone"):
                copied = copy_generator_to_discriminator(model, masters, optimizer)
            agree = [name for name in ours if name.startswith("embeddings.")]
        assert copied == len(agree) > 0
        assert all(torch.equal(ours[name], theirs[name]) for name in agree)
        for name, parameter in ours.items():
            assert bool(optimizer.state[parameter]["exp_avg"].any()) == (name not in agree)
        assert all(optimizer.state[parameter]["exp_avg"].all() for parameter in theirs.values())


def test_a_run_of_masked_language_modelling_and_gdes_leaves_checkpoints_that_transformers_loads(
    tmp_path, quick_config, monkeypatch
):
    """Also one that was cut, and in 16 bits, where the masters come back as they were."""
    settings = {
        "model.tie": "gdes",
        "schedule": "[{objective: mlm, steps: 4}, {steps: 4}]",
        "training.precision": "bfloat16",
    }
    result = pretrain(quick_config(tmp_path / "whole", **settings), progress=False)
    assert result.step == 8
    interrupt_after(monkeypatch, 5)
    assert pretrain(quick_config(tmp_path / "cut", **settings), progress=False).step == 5
    assert pretrain(quick_config(tmp_path / "cut", **settings), resume=True, progress=False).step == 8
    assert_same_end(tmp_path / "whole", tmp_path / "cut", 8)

    weights = checkpoint_of(tmp_path / "whole", 8)
    words = "electra.embeddings.word_embeddings"
    assert weights[f"discriminator.{words}.delta"].any()
    joint = ElectraForJointPreTraining.from_pretrained(tmp_path / "whole")
    assert all(torch.equal(parameter, weights[name]) for name, parameter in joint.named_parameters())
    table = weights[f"generator.{words}.weight"] + weights[f"discriminator.{words}.delta"]
    for folder, kind in (("discriminator", ElectraForPreTraining), ("mlm", ElectraForMaskedLM)):
        model, tokenizer = kind.from_pretrained(tmp_path / "whole" / folder), tmp_path / "whole" / folder
        assert torch.equal(model.electra.embeddings.word_embeddings.weight, table)
        assert AutoTokenizer.from_pretrained(tokenizer).mask_token == "[MASK]"
