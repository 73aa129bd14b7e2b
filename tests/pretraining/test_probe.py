"""The probe: what it measures, what it refuses, and that no bit of the run depends on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from electra_fast.data.corpus import Corpus
from electra_fast.pretraining.build import build_model
from electra_fast.pretraining.config import ConfigError, ProbeConfig
from electra_fast.pretraining.metrics import read_metrics
from electra_fast.pretraining.precision import MasterWeights
from electra_fast.pretraining.probe import Probe, _scores
from electra_fast.pretraining.train import pretrain
from tests.pretraining.conftest import OBJECTS, SUBJECTS, VERBS
from tests.pretraining.test_phases import assert_same_end


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Files of 240 and 120 sentences whose label is told by their verb, so that a bag of words is enough."""
    folder = tmp_path_factory.mktemp("task")
    g = np.random.default_rng(5)
    for part, count in (("train", 240), ("valid", 120)):
        lines = ["sentence\tlabel"] if part == "train" else []  # a header may be there or not
        for _ in range(count):
            verb = g.integers(len(VERBS))
            text = f"{g.choice(SUBJECTS)} {VERBS[verb]} {g.choice(OBJECTS)}."
            lines.append(f"{text}\t{'low' if verb < 4 else 'high'}")
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def make(task, corpus, quick_config, tmp_path):
    """make(kind, dtype): a probe of the task, and the towers of a fresh model."""

    def made(kind: str, dtype: torch.dtype = torch.float32, tie: str = "shared", **settings):
        train = Corpus.open(corpus / "train")
        torch.manual_seed(3)
        model = build_model(quick_config(tmp_path, **{"model.tie": tie}), train.meta).train()
        MasterWeights(model, dtype)
        config = ProbeConfig(train=str(task / "train.tsv"), valid=str(task / "valid.tsv"), kind=kind, **settings)
        return Probe.open(config, train.load_tokenizer(), 24), model

    return made


@pytest.mark.parametrize(
    ("kind", "dtype", "tie", "settings"),
    [
        ("linear", torch.float32, "shared", {}),
        ("linear", torch.bfloat16, "gdes", {}),
        ("finetune", torch.float32, "gdes", {"epochs": 10, "lr": 5e-3}),
        ("finetune", torch.bfloat16, "shared", {"epochs": 10, "lr": 5e-3}),
    ],
)
def test_a_task_that_words_tell_is_learned_and_nothing_else_changes(make, kind, dtype, tie, settings):
    probe, model = make(kind, dtype, tie, **settings)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(11)
    expected = torch.rand(5)
    torch.manual_seed(11)
    scores = probe.measure(model.discriminator)
    assert torch.equal(torch.rand(5), expected)
    assert scores["accuracy"] > 0.8
    assert scores["mcc"] > 0.6
    assert all(module.training for module in model.modules())
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    assert probe.measure(model.discriminator) == scores


def test_a_run_with_a_probe_has_the_bits_of_one_without(task, tmp_path, quick_config):
    settings = {"training.probe.train": str(task / "train.tsv"), "training.probe.valid": str(task / "valid.tsv")}
    settings |= {"training.probe.every": 5, "training.probe.kind": "finetune", "training.probe.epochs": 1}
    pretrain(quick_config(tmp_path / "without"), progress=False)
    pretrain(quick_config(tmp_path / "with", **settings), progress=False)
    assert_same_end(tmp_path / "without", tmp_path / "with", 12)
    rows = [row for row in read_metrics(tmp_path / "with" / "metrics.jsonl") if row["kind"] == "probe"]
    assert [row["step"] for row in rows] == [5, 10, 12]
    assert all(0 <= row["accuracy"] <= 1 and -1 <= row["mcc"] <= 1 for row in rows)


def test_correlation_of_two_and_more_classes(rng_seed):
    g = np.random.default_rng(rng_seed)
    for classes in (2, 5):
        labels, predicted = (torch.from_numpy(g.integers(0, classes, 200)) for _ in range(2))
        predicted[:120] = labels[:120]
        # Pearson's correlation of the two one-hot matrices, each column centred.
        ours, theirs = (np.eye(classes)[x.numpy()] for x in (predicted, labels))
        ours, theirs = ours - ours.mean(0), theirs - theirs.mean(0)
        expected = (ours * theirs).sum() / np.sqrt((ours**2).sum() * (theirs**2).sum())
        scores = _scores(predicted, labels, classes)
        assert scores["mcc"] == pytest.approx(expected)
        assert scores["accuracy"] == pytest.approx(float((predicted == labels).double().mean()))
    assert _scores(torch.zeros(4).long(), torch.tensor([0, 1, 0, 1]), 2) == {"accuracy": 0.5, "mcc": 0.0}


@pytest.mark.parametrize(
    ("train", "valid", "message"),
    [
        (None, "a\tx\n", "train.tsv is not there: give a file of lines TEXT<TAB>LABEL"),
        ("a\tx\nb\n", "a\tx\n", "train.tsv, line 2: expected TEXT<TAB>LABEL; got 'b'"),
        ("a\tx\nb\ty\n", "a\tz\n", "valid.tsv has the label 'z', which .*train.tsv has not"),
        ("a\tx\nb\tx\n", "a\tx\n", "train.tsv has the label 'x' only: a probe needs two"),
        ("text\tlabel\n", "a\tx\n", "train.tsv holds no line"),
        (b"\xff\tx\n", "a\tx\n", "train.tsv is not UTF-8 at byte 0"),
    ],
)
def test_files_that_are_no_task_are_refused_before_the_run(tmp_path, quick_config, train, valid, message):
    for name, content in (("train.tsv", train), ("valid.tsv", valid)):
        if content is not None:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    settings = {f"training.probe.{part}": str(tmp_path / f"{part}.tsv") for part in ("train", "valid")}
    with pytest.raises(ConfigError, match=message):
        pretrain(quick_config(tmp_path / "run", **settings), progress=False)
    assert not (tmp_path / "run").exists()
