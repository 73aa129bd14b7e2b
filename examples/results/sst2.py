"""Does pretraining help? Fine-tune on some of SST-2's sentences, with settings chosen on sentences of their own.

    python examples/results/sst2.py --model runs/rtd --data sst2 --output runs/sst2-rtd [--from_scratch]

Data is what split_sst2.py wrote. For each number of labels: every rate with three seeds, scored on choose/dev.tsv; then
the best of them with five other seeds, scored on score/dev.tsv. `--from_scratch`: the same model with random weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from electra_fast.finetuning.config import FinetuneConfig
from electra_fast.finetuning.task import task_class
from electra_fast.finetuning.train import finetune

SETTINGS = {1000: (6, (5e-4, 1e-3, 2e-3)), 8000: (3, (5e-4,))}  # labels: epochs, learning rates
AT_THE_END = 10**6  # updates between evaluations, more than there are


def run(model: str, data: Path, output: Path, **settings: Any) -> dict[str, Any]:
    """The development set's accuracy in percent: median, min, max and std over the seeds."""
    config = FinetuneConfig(layer_decay=1.0, evaluate_every=AT_THE_END, save_every=AT_THE_END, **settings)
    result = finetune(task_class("sst2")(), model, data, output, config, overwrite=True, progress=False)
    return result["summary"]["dev"]["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a pretraining run")
    parser.add_argument("--data", type=Path, required=True, help="what split_sst2.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for all runs and results.json")
    parser.add_argument("--from_scratch", action="store_true", help="random weights instead of the run's")
    parser.add_argument("--labels", type=int, nargs="+", default=[1000, 8000], help="default: 1000 8000")
    arguments = parser.parse_args()

    results = {}
    for labels in arguments.labels:
        epochs, rates = SETTINGS[labels]
        same = {"train_examples": labels, "epochs": epochs, "from_scratch": arguments.from_scratch}
        chosen = {}
        for rate in rates if len(rates) > 1 else ():
            folder = arguments.output / f"choose-{labels}-{rate}"
            score = run(arguments.model, arguments.data / "choose", folder, learning_rate=rate, seeds=3, **same)
            chosen[rate] = score["median"]
            print(f"{labels} labels, rate {rate}: {score['median']:.2f} on sentences to choose by", flush=True)
        best = max(chosen, key=chosen.__getitem__) if chosen else rates[0]
        folder = arguments.output / f"score-{labels}"
        same |= {"learning_rate": best, "seeds": 5, "seed": 100}
        score = run(arguments.model, arguments.data / "score", folder, **same)
        print(f"{labels} labels, rate {best}: {score['median']:.2f} ({score['min']:.2f} to {score['max']:.2f})")
        results[labels] = {"epochs": epochs, "chosen_by": chosen, "rate": best, "accuracy": score}
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
