"""Small models with every head, with a tokenizer, as folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from electra_fast.data.tokenizer import train_wordpiece
from electra_fast.models.swap import SWAPS
from tests.small import WORDS as SMALL_WORDS

STOCK = {cls.__name__: cls for cls in SWAPS if issubclass(cls, transformers.PreTrainedModel)}
HEADS = [name for name in STOCK if not name.endswith(("CausalLM", "LMHeadModel"))]
WORDS = [*SMALL_WORDS, "hill", "and", "never", "again", "jumped", "sleeping"]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Of 1 to 30 words."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 31, (count,), generator=g).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (n,), generator=g).tolist()) for n in lengths]


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("deployment") / "sentences.txt"
    file.write_text("\n".join(sentences(60)) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tokenizer_folder(texts: Path) -> Path:
    train_wordpiece([texts], texts.parent / "tokenizer", vocab_size=80, min_frequency=1)
    return texts.parent / "tokenizer"


def write_model(name: str, folder: Path, tokenizer_folder: Path, **config: object) -> Path:
    """A model of two layers, always the same, with weights large enough that errors show, and its tokenizer."""
    sizes = {
        "vocab_size": 80,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "initializer_range": 0.2,
    }
    if name.startswith("Electra"):
        sizes["embedding_size"] = 24
    made = STOCK[name].config_class(**(sizes | config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        STOCK[name](made).save_pretrained(folder)
    for file in tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
