"""Cut SST-2's training sentences into parts without duplicates: 8,000 to score on, 2,000 to choose by, and labels.

    python split_sst2.py GLUE/SST-2/train.tsv OUTPUT

OUTPUT gets train_1000.tsv, train_8000.tsv (the 1,000 and 7,000 more), tune.tsv (2,000) and score.tsv (8,000).
"""

import random
import sys
from pathlib import Path

SIZES = {"train_1000": 1000, "train_8000": 8000, "tune": 2000, "score": 8000}


def read(path: Path) -> dict[str, str]:
    """Label of each different sentence, spacing and case aside; one with two labels is left out."""
    labels: dict[str, set[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        sentence, label = line.split("\t")
        labels.setdefault(" ".join(sentence.lower().split()), set()).add(label)
    return {sentence: found.pop() for sentence, found in labels.items() if len(found) == 1}


def main(source: str, output: str) -> None:
    """Write the four parts."""
    rows = sorted(read(Path(source)).items())
    random.Random(0).shuffle(rows)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    labelled = rows[: SIZES["train_8000"]]
    tune = rows[len(labelled) : len(labelled) + SIZES["tune"]]
    score = rows[len(labelled) + len(tune) :][: SIZES["score"]]
    parts = {"train_1000": labelled[: SIZES["train_1000"]], "train_8000": labelled, "tune": tune, "score": score}
    for name, part in parts.items():
        assert len(part) == SIZES[name], f"{source} has too few sentences: {len(rows):,}"
        text = "".join(f"{sentence}\t{label}\n" for sentence, label in part)
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + text, encoding="utf-8")
        positive = sum(label == "1" for _, label in part) / len(part)
        print(f"{name}: {len(part):,} sentences, {positive:.1%} positive")


if __name__ == "__main__":
    main(*sys.argv[1:])
