"""A checkpoint and data so small that a run takes a second or two."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import transformers

from tests.small import WORDS, write_small


def write_checkpoint(folder: Path, seed: int = 0, *, layers: int = 1) -> Path:
    """A stock ELECTRA discriminator with its tokenizer in `folder/src`; large weights, so that outputs differ."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(write_small(folder) / "tokenizer")
    torch.manual_seed(seed)
    config = transformers.ElectraConfig(
        vocab_size=len(tokenizer),
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    transformers.ElectraForPreTraining(config).save_pretrained(folder / "src")
    tokenizer.save_pretrained(folder / "src")
    return folder / "src"


def write_texts(folder: Path, seed: int, **counts: int) -> Path:
    """`SPLIT.tsv` of so many texts of 1 to 12 words each; the label is whether "fox" is in it. Both labels occur."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        rows = ["the fox\tyes", "a dog\tno"]
        while len(rows) < count:
            words = rng.choices(WORDS, k=rng.randint(1, 12))
            rows.append(f"{' '.join(words)}\t{'yes' if 'fox' in words else 'no'}")
        rng.shuffle(rows)
        (folder / f"{split}.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8", newline="\n")
    return folder
