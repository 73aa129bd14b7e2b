"""The scripts in examples/ run, in a small form, each in a process of its own as its reader starts it."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from tests.small import write_small

ROOT = Path(__file__).parents[1]


def run(script: str, folder: Path, *arguments: str | Path) -> str:
    """What the script prints."""
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


def test_generate(tmp_path: Path) -> None:
    out = run("generate.py", tmp_path, "--pairs", 40, "--epochs", 1, "--num_beams", 2)
    assert re.search(r"^ROUGE-L \d+\.\d, BLEU \d+\.\d, exact match \d+\.\d$", out, re.MULTILINE)
    assert out.count("  ->  ") == 5
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "runs" / "generate" / "run" / "model")
    assert type(model) is transformers.EncoderDecoderModel


def test_finetune_sst2(tmp_path: Path) -> None:
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


def test_domain_pretraining(tmp_path: Path) -> None:
    sizes = ("--steps", 4, "--sentences", 400, "--labelled", 24, "--epochs", 1, "--seeds", 1)
    out = run("domain_pretraining.py", tmp_path, *sizes)
    pattern = r"^Accuracy from random weights (\S+), pretrained on the domain (\S+): ([+-]\S+) points$"
    random_, pretrained, gain = map(float, re.search(pattern, out, re.MULTILINE).groups())
    assert gain == pytest.approx(pretrained - random_, abs=0.11)  # each is rounded
