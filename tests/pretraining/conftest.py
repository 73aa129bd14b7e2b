"""A small prepared corpus of made-up but learnable text, for runs of seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from electra_fast.data.prepare import prepare
from electra_fast.data.tokenizer import train_wordpiece
from electra_fast.pretraining.config import PretrainConfig
from electra_fast.pretraining.config_file import read_config

SUBJECTS = ["the cat", "a dog", "my friend", "the old king", "every child", "some bird", "our teacher"]
VERBS = ["eats", "sees", "likes", "finds", "wants", "draws", "hears"]
OBJECTS = ["the red apple", "a small house", "an open door", "the blue sky", "a good book", "the long road"]


@pytest.fixture(scope="module", autouse=True)
def _no_pictures(no_pictures: None) -> None:
    """For all tests of this folder."""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `train` and `valid`, 400 and 60 documents of up to eight sentences."""
    folder = tmp_path_factory.mktemp("corpus")
    g = np.random.default_rng(7)
    for part, documents in (("train", 400), ("valid", 60)):
        text = "\n\n".join(
            " ".join(f"{g.choice(SUBJECTS)} {g.choice(VERBS)} {g.choice(OBJECTS)}." for _ in range(g.integers(1, 9)))
            for _ in range(documents)
        )
        (folder / f"{part}.txt").write_text(text, encoding="utf-8")
    train_wordpiece([folder / "train.txt"], folder / "tokenizer", vocab_size=200)
    for part in ("train", "valid"):
        prepare([folder / f"{part}.txt"], folder / "tokenizer", folder / part, progress=False)
    return folder


@pytest.fixture(scope="session")
def quick_config(corpus: Path):
    """Makes a run of a very small model on `corpus`: quick_config(output, **{"training.steps": 5})."""

    def make(output: Path, **overrides: Any) -> PretrainConfig:
        settings = {
            "model.embedding_size": 16,
            "model.hidden_size": 32,
            "model.num_hidden_layers": 2,
            "model.num_attention_heads": 2,
            "model.intermediate_size": 64,
            "model.generator.hidden_size": 16,
            "model.generator.num_hidden_layers": 1,
            "model.generator.intermediate_size": 32,
            "model.hidden_dropout_prob": 0.1,
            "model.attention_probs_dropout_prob": 0.1,
            "data.train": str(corpus / "train"),
            "data.valid": str(corpus / "valid"),
            "data.max_length": 24,
            "data.batch_size": 8,
            "optimizer.warmup_steps": 4,
            "training.steps": 12,
            "training.log_every": 4,
            "training.eval_every": 6,
            "training.eval_batches": 3,
            "training.save_every": 5,
            "output": str(output),
        }
        return read_config("small", settings | overrides)

    return make
