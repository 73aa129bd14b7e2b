"""Whole runs of each kind of text task on made-up data that a word decides: learned, scored, and files for GLUE."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import ElectraConfig, ElectraForPreTraining

from electra_fast.finetuning.config import FinetuneConfig
from electra_fast.finetuning.predict import evaluate, open_finetuned
from electra_fast.finetuning.task import task_class
from electra_fast.finetuning.train import finetune
from tests.finetuning.words import word_tokenizer

NOISE = ["the", "a", "of", "and", "is", "was", "it", "on"]
SIGNS = ["good", "bad", "odd"]
TOKENIZER = word_tokenizer(" ".join(NOISE + SIGNS))
LEARNED = 95.0  # percent, on other texts


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights: what is learned is learned by fine-tuning."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        embedding_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.1,  # learns in a few dozen steps
    )
    ElectraForPreTraining(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def _config(**settings: object) -> FinetuneConfig:
    fast = {"epochs": 4, "learning_rate": 2e-3, "batch_size": 16, "dropout": 0.0, "layer_decay": 1.0, "device": "cpu"}
    return FinetuneConfig(**(fast | settings))


def _text(rng: random.Random, sign: str | None = None) -> str:
    words = rng.choices(NOISE, k=rng.randrange(1, 5))
    if sign is not None:
        words.insert(rng.randrange(len(words) + 1), sign)
    return " ".join(words)


def _write(file: Path, lines: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def test_classes(pretrained: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    for split, count in (("train", 256), ("dev", 60)):
        rows = [f"{_text(rng, sign)},{sign}" for sign in rng.choices(SIGNS, k=count)]
        _write(tmp_path / "data" / f"{split}.csv", ["text,label", *rows])
    task = task_class("classification")()
    result = finetune(task, str(pretrained), tmp_path / "data", tmp_path / "run", _config(), progress=False)
    assert result["summary"]["dev"]["accuracy"]["median"] >= LEARNED
    again = evaluate(open_finetuned(tmp_path / "run", "cpu"), tmp_path / "data")
    assert again["dev"].metrics == {
        name: pytest.approx(spread["median"]) for name, spread in result["summary"]["dev"].items() if name != "loss"
    }


def test_numbers_of_pairs_in_glues_layout_by_the_originals_head(pretrained: Path, tmp_path: Path) -> None:
    rng = random.Random(2)
    columns = "index\tsentence1\tsentence2"
    scores = {"good": 4.5, "odd": 2.0, "bad": 0.5}
    for split, count in (("train", 256), ("dev", 60)):
        signs = enumerate(rng.choices(SIGNS, k=count))
        rows = [f"{index}\t{_text(rng, sign)}\t{_text(rng)}\t{scores[sign]}" for index, sign in signs]
        _write(tmp_path / "glue" / "STS-B" / f"{split}.tsv", [f"{columns}\tscore", *rows])
    # The sign stands in the second text, which training saw only since pairs are learned in both orders.
    rows = [f"{index}\t{_text(rng)}\t{_text(rng, sign)}" for index, sign in enumerate(SIGNS)]
    _write(tmp_path / "glue" / "STS-B" / "test.tsv", [columns, *rows])
    config = _config(head="original", epochs=6)
    result = finetune(
        task_class("stsb")(), str(pretrained), tmp_path / "glue", tmp_path / "run", config, progress=False
    )
    assert result["summary"]["dev"]["pearson"]["median"] >= 90
    header, *lines = (tmp_path / "run" / "submission" / "STS-B.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "index\tprediction"
    submitted = dict(line.split("\t") for line in lines)
    good, bad, odd = (float(submitted[str(index)]) for index in range(3))
    assert bad < odd < good


def test_mnli_and_the_diagnostic_set(pretrained: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    columns = "index\tsentence1\tsentence2"
    words = dict(zip(SIGNS, ("entailment", "contradiction", "neutral"), strict=True))
    for split, count in (("train", 256), ("dev_matched", 40), ("dev_mismatched", 50)):
        signs = enumerate(rng.choices(SIGNS, k=count))
        rows = [f"{index}\t{_text(rng)}\t{_text(rng, sign)}\t{words[sign]}" for index, sign in signs]
        _write(tmp_path / "glue" / "MNLI" / f"{split}.tsv", [f"{columns}\tgold_label", *rows])
    rows = [f"{index}\t{_text(rng)}\t{_text(rng, sign)}" for index, sign in enumerate(SIGNS)]
    for file in ("MNLI/test_matched.tsv", "MNLI/test_mismatched.tsv", "diagnostic/diagnostic.tsv"):
        _write(tmp_path / "glue" / file, [columns, *rows])

    task = task_class("mnli")()
    result = finetune(task, str(pretrained), tmp_path / "glue", tmp_path / "run", _config(), progress=False)
    assert result["compared"] == "dev_matched"
    for split in ("dev_matched", "dev_mismatched"):
        assert result["summary"][split]["accuracy"]["median"] >= LEARNED
    answers = "".join(f"{index}\t{words[sign]}\n" for index, sign in enumerate(SIGNS))
    written = {file.name: file.read_text(encoding="utf-8") for file in (tmp_path / "run" / "submission").iterdir()}
    assert written == dict.fromkeys(["MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"], f"index\tprediction\n{answers}")


def test_choices(pretrained: Path, tmp_path: Path) -> None:
    rng = random.Random(4)
    for split, count in (("train", 256), ("dev", 60)):
        rows = []
        for label in rng.choices(range(3), k=count):
            choices = [_text(rng, "good" if index == label else "bad") for index in range(3)]
            rows.append(json.dumps({"context": _text(rng), "question": _text(rng), "choices": choices, "label": label}))
        _write(tmp_path / "data" / f"{split}.jsonl", rows)
    task = task_class("choice")()
    result = finetune(task, str(pretrained), tmp_path / "data", tmp_path / "run", _config(), progress=False)
    assert result["summary"]["dev"]["accuracy"]["median"] >= LEARNED
