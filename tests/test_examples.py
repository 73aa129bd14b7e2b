"""The scripts in examples/ run, in a small form.

With ELECTRA_FAST_TEST_ALL=1 each in a process of its own, as its reader starts it; else in this one, which has
imported everything.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import transformers

from tests.finetuning.small import write_checkpoint
from tests.small import WORDS, write_small

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a script with a folder as the working directory; returns what it prints."""

    def in_this_process(script: str, folder: Path, *arguments: str | Path) -> str:
        path = str(ROOT / "examples" / script)
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", [path, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return in_its_own_process if os.environ.get("ELECTRA_FAST_TEST_ALL") else in_this_process


def in_its_own_process(script: str, folder: Path, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / script, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_generate(run: Callable[..., str], tmp_path: Path) -> None:
    out = run("generate.py", tmp_path, "--pairs", 40, "--epochs", 1, "--num_beams", 2)
    assert re.search(r"^ROUGE-L \d+\.\d, BLEU \d+\.\d, exact match \d+\.\d$", out, re.MULTILINE)
    assert out.count("  ->  ") == 5
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "runs" / "generate" / "run" / "model")
    assert type(model) is transformers.EncoderDecoderModel


def test_finetune_sst2(run: Callable[..., str], tmp_path: Path) -> None:
    from electra_fast import ElectraConfig, ElectraModel
    from electra_fast.data.tokenizer import load_tokenizer

    tokenizer = write_small(tmp_path / "small") / "tokenizer"
    sizes = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ElectraConfig(vocab_size=len(load_tokenizer(tokenizer)), intermediate_size=16, **sizes)
    ElectraModel(config).save_pretrained(tokenizer)
    generator = random.Random(0)
    data = tmp_path / "SST-2"
    data.mkdir()
    for split, count in (("train", 64), ("dev", 20)):
        with open(data / f"{split}.tsv", "w", encoding="utf-8") as file:
            print("sentence\tlabel", file=file)
            for _ in range(count):
                label = generator.randrange(2)
                print(f'the "{generator.choice(["old", "lazy"])} {["dog", "cat"][label]} \t{label}', file=file)
    options = ("--train_examples", 50, "--epochs", 2)
    out = run("finetune_sst2.py", tmp_path, "--model", tokenizer, "--data", data, *options)
    accuracy = float(re.search(r"^dev accuracy (\d+\.\d\d): runs/sst2$", out, re.MULTILINE)[1])
    assert 0 <= accuracy <= 100
    saved = transformers.ElectraForSequenceClassification.from_pretrained(tmp_path / "runs" / "sst2")
    assert saved.config.num_labels == 2


def test_domain_pretraining(run: Callable[..., str], tmp_path: Path) -> None:
    sizes = ("--steps", 4, "--sentences", 400, "--labelled", 24, "--epochs", 1, "--seeds", 1)
    out = run("domain_pretraining.py", tmp_path, *sizes)
    pattern = r"^Accuracy from random weights (\S+), pretrained on the domain (\S+): ([+-]\S+) points$"
    random_, pretrained, gain = map(float, re.search(pattern, out, re.MULTILINE).groups())
    assert gain == pytest.approx(pretrained - random_, abs=0.11)  # each is rounded


def module(script: str) -> ModuleType:
    """A script of examples/results, whose sizes a test makes smaller."""
    spec = importlib.util.spec_from_file_location(script, ROOT / "examples" / "results" / f"{script}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def rows(count: int, generator: random.Random) -> list[tuple[str, int]]:
    """So many different texts with labels, both of them."""
    texts = [f"{' '.join(generator.choices(WORDS, k=generator.randint(1, 9)))} {index}" for index in range(count)]
    return [(text, index % 2) for index, text in enumerate(texts)]


def test_gain_on_sst2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng_seed: int) -> None:
    """What is cut, chosen and scored is what the scripts say."""
    file = tmp_path / "train.tsv"
    made = rows(60, random.Random(rng_seed))
    both = [*made, (made[0][0].upper(), made[0][1]), ("odd", 0), ("odd", 1)]  # a repeated one, and one with two labels
    file.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in both), encoding="utf-8")
    split, sst2 = module("split_sst2"), module("sst2")
    for name, size in (("TRAIN", 24), ("CHOOSE", 12), ("SCORE", 16)):
        monkeypatch.setattr(split, name, size)
    split.main(str(file), str(tmp_path / "sst2"))
    parts = {
        path: (tmp_path / "sst2" / path).read_text(encoding="utf-8").splitlines()[1:]
        for path in ("choose/train.tsv", "choose/dev.tsv", "score/train.tsv", "score/dev.tsv")
    }
    assert parts["choose/train.tsv"] == parts["score/train.tsv"]
    drawn = parts["choose/train.tsv"] + parts["choose/dev.tsv"] + parts["score/dev.tsv"]
    assert len(drawn) == len(set(drawn)) == 52
    assert set(drawn) <= {f"{text}\t{label}" for text, label in made}

    monkeypatch.setattr(sst2, "SETTINGS", {16: (1, (1e-3, 1e-2))})
    output = tmp_path / "runs"
    options = {"--model": write_checkpoint(tmp_path), "--data": tmp_path / "sst2", "--output": output, "--labels": 16}
    monkeypatch.setattr("sys.argv", ["sst2.py", *(str(word) for pair in options.items() for word in pair)])
    sst2.main()
    result = json.loads((output / "results.json").read_text(encoding="utf-8"))["16"]
    assert result["chosen_by"][str(result["rate"])] == max(result["chosen_by"].values())
    run = json.loads((output / "score-16" / "results.json").read_text(encoding="utf-8"))
    assert run["examples"]["train"] == 16
    assert run["settings"]["learning_rate"] == result["rate"]
    assert [seed["seed"] for seed in run["seeds"]] == [100, 101, 102, 103, 104]
    assert run["summary"]["dev"]["accuracy"] == result["accuracy"]


def test_cross_lingual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng_seed: int) -> None:
    cross = module("cross_lingual")
    for language, header, order in (("en", "sentence\tlabel", 1), ("zh", "label\ttext_a", -1)):
        (tmp_path / language).mkdir()
        for split in ("train", "dev"):
            lines = ["\t".join((text, str(label))[::order]) for text, label in rows(20, random.Random(rng_seed))]
            (tmp_path / language / f"{split}.tsv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    options = ["--english", tmp_path / "en", "--chinese", tmp_path / "zh", "--output", tmp_path / "runs", "--seeds", 1]
    arguments = ["cross_lingual.py", "--model", write_checkpoint(tmp_path), *options]
    monkeypatch.setattr("sys.argv", list(map(str, arguments)))
    monkeypatch.setattr(cross, "EXAMPLES", 16)
    cross.main()
    scores = json.loads((tmp_path / "runs" / "results.json").read_text(encoding="utf-8"))
    assert scores.keys() == scores["english"].keys() == {"english", "chinese"}
    for learned in scores.values():  # both hold the same texts
        assert learned["english"] == learned["chinese"]
