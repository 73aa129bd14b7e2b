"""A tokenizer, a corpus and a model so small that a whole run takes a tenth of a second, and folders as bytes."""

from __future__ import annotations

from pathlib import Path

from electra_fast.data.prepare import prepare
from electra_fast.data.tokenizer import train_wordpiece

WORDS = ["the", "a", "quick", "lazy", "old", "fox", "dog", "cat", "bird", "jumps", "runs", "over", "under", "river"]
TEXT = "\n\n".join(" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 9)) for i in range(1, 80)) + "\n"
SETTINGS = {
    "model.hidden_size": 16,
    "model.embedding_size": 8,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 32,
    "model.generator.hidden_size": 8,
    "model.generator.num_hidden_layers": 1,
    "model.generator.num_attention_heads": 1,
    "model.generator.intermediate_size": 16,
    "data.batch_size": 4,
    "data.max_length": 16,
    "training.device": "cpu",
}


def write_small(folder: Path) -> Path:
    """`folder` with text.txt and, made of it, `tokenizer` (80 entries) and `corpus` in shards of 200 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    train_wordpiece([folder / "text.txt"], folder / "tokenizer", vocab_size=80)
    prepare([folder / "text.txt"], folder / "tokenizer", folder / "corpus", shard_tokens=200, progress=False)
    return folder


def pretrain_arguments(corpus: Path | str, output: Path | str, steps: int, **more: object) -> list[str]:
    """The command line of a run of `steps` steps; `more` has dotted keys."""
    settings = SETTINGS | {"data.train": corpus, "output": output, "training.steps": steps} | more
    return ["pretrain", "--config", "tiny", *(f"--{key}={value}" for key, value in settings.items())]


def folder_bytes(folder: Path) -> dict[str, bytes | None]:
    """Every file below `folder` with its content; folders are None."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
