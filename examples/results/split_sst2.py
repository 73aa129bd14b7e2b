"""Cut SST-2's training sentences into labels to learn from, sentences to choose settings by, and others to score on.

    python split_sst2.py GLUE/SST-2/train.tsv OUTPUT

OUTPUT/choose and OUTPUT/score get the same train.tsv of 8,000 sentences (`--train_examples 1000` takes 1,000), and
each its own dev.tsv: 2,000 and 8,000 others. No sentence is in two of these files.
"""

import random
import sys
from pathlib import Path

TRAIN, CHOOSE, SCORE = 8000, 2000, 8000


def read(path: Path) -> list[tuple[str, str]]:
    """Each different sentence, case and spacing aside, with its label; one that has both labels is left out."""
    labels: dict[str, set[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        sentence, label = line.split("\t")
        labels.setdefault(" ".join(sentence.lower().split()), set()).add(label)
    return [(sentence, found.pop()) for sentence, found in labels.items() if len(found) == 1]


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    """In GLUE's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    print(f"{path}: {len(rows):,} sentences, {sum(label == '1' for _, label in rows) / len(rows):.1%} positive")


def main(source: str, output: str) -> None:
    """Write the four files; which sentence goes where is always the same."""
    rows = sorted(read(Path(source)))
    if len(rows) < TRAIN + CHOOSE + SCORE:
        sys.exit(f"{source} has {len(rows):,} different sentences: {TRAIN + CHOOSE + SCORE:,} are needed")
    random.Random(0).shuffle(rows)
    train, choose, score = rows[:TRAIN], rows[TRAIN:][:CHOOSE], rows[TRAIN + CHOOSE :][:SCORE]
    for folder, dev in (("choose", choose), ("score", score)):
        write(Path(output, folder, "train.tsv"), train)
        write(Path(output, folder, "dev.tsv"), dev)


if __name__ == "__main__":
    main(*sys.argv[1:])
