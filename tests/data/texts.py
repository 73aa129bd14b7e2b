"""Random text for the data tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SYLLABLES = ["ba", "de", "ki", "lo", "mu", "na", "ré", "shi", "tu", "漢", "字", "[MASK]", "x-y", "Ω", "7", "\u00ad"]


def random_documents(g: np.random.Generator, count: int, *, most_words: int = 80) -> list[str]:
    """Documents of 1.. most_words words in one or several paragraphs, none of them blank."""
    documents = []
    for words in g.integers(1, most_words + 1, count):
        text = ["".join(g.choice(SYLLABLES[:9], 2)).capitalize()]
        text += ["".join(g.choice(SYLLABLES, g.integers(1, 4))) for _ in range(words - 1)]
        breaks = g.random(words) < 0.05
        documents.append("".join(w + ("\n" if b else " ") for w, b in zip(text, breaks, strict=True)).strip())
    return documents


def write_text(path: Path, documents: list[str]) -> Path:
    path.write_bytes(("\n\n".join(documents) + "\n").encode())
    return path
