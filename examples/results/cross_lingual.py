"""The same classes in two languages: fine-tune in one, score in both.

    python examples/results/cross_lingual.py --model runs/enzh --english SST-2 --chinese chnsenticorp --output cross

The folders hold train.tsv and dev.tsv of SST-2 (sentence, label) and of ChnSentiCorp (label, text_a); 1 is positive in
both. `--from_scratch`: the same model with random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from electra_fast.finetuning.config import FinetuneConfig
from electra_fast.finetuning.predict import evaluate, open_finetuned
from electra_fast.finetuning.task import task_class
from electra_fast.finetuning.train import finetune

COLUMNS = {"english": "sentence", "chinese": "text_a"}
EXAMPLES = 2000


def convert(source: Path, column: str, target: Path) -> None:
    """Both corpora as `text` and `label`, so that one model reads both."""
    target.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev"):
        lines = (source / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
        header = lines[0].split("\t")
        text, label = header.index(column), header.index("label")
        rows = [line.split("\t") for line in lines[1:]]
        content = "".join(f"{row[text]}\t{['negative', 'positive'][int(row[label])]}\n" for row in rows)
        (target / f"{split}.tsv").write_text("text\tlabel\n" + content, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run on text of both languages")
    parser.add_argument("--english", type=Path, required=True, help="folder of SST-2")
    parser.add_argument("--chinese", type=Path, required=True, help="folder of ChnSentiCorp")
    parser.add_argument("--output", type=Path, required=True, help="folder for all runs and results.json")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--from_scratch", action="store_true", help="random weights instead of the run's")
    arguments = parser.parse_args()

    data = {name: arguments.output / "data" / name for name in COLUMNS}
    for name, column in COLUMNS.items():
        convert(getattr(arguments, name), column, data[name])
    results: dict[str, dict[str, float]] = {}
    for learned in COLUMNS:
        scores: dict[str, list[float]] = {name: [] for name in COLUMNS}
        for seed in range(arguments.seeds):
            run = arguments.output / f"{learned}-{seed}"
            config = FinetuneConfig(
                learning_rate=5e-4, epochs=3, layer_decay=1.0, train_examples=EXAMPLES, seed=seed,
                evaluate_every=10**6, save_every=10**6, from_scratch=arguments.from_scratch,
            )  # fmt: skip
            task = task_class("classification")()
            finetune(task, arguments.model, data[learned], run, config, overwrite=True, progress=False)
            for name, folder in data.items():
                scored = evaluate(open_finetuned(run), folder / "dev.tsv")["dev"]
                scores[name].append(scored.metrics["accuracy"])
        results[learned] = {name: statistics.median(values) for name, values in scores.items()}
        shown = ", ".join(f"{name} {value:.2f}" for name, value in results[learned].items())
        print(f"learned in {learned}: {shown} (median of {arguments.seeds} seeds)", flush=True)
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
