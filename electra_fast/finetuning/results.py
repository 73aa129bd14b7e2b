"""What a run came to: of each seed and over them, as JSON and as Markdown."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import electra_fast
from electra_fast.files import write_whole

Result = dict[str, Any]


def versions() -> dict[str, str]:
    """Of what computed."""
    return {
        "electra_fast": electra_fast.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """E.g. "cpu, 2 threads", or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def summarize(seeds: Sequence[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """Median, least, most and standard deviation (of the sample; 0 for one seed) of each metric of each split."""
    return {
        split: {name: _spread([seed["metrics"][split][name] for seed in seeds]) for name in metrics}
        for split, metrics in seeds[0]["metrics"].items()
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def best_seed(seeds: Sequence[Result], split: str, metric: str) -> Result:
    """The seed with the highest metric; of equal ones the first."""
    return max(seeds, key=lambda seed: seed["metrics"][split][metric])


def write_results(output: Path, result: Result) -> None:
    """`results.json` and `results.md`."""
    write_whole(output / "results.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    write_whole(output / "results.md", to_markdown(result))


def to_markdown(result: Result) -> str:
    """A page: metrics over the seeds, each seed, and the settings with where they came from."""
    seeds = result["seeds"]
    title = f"# {result['task']} with {Path(result['model']).name}"
    counts = ", ".join(f"{count:,} {split}" for split, count in result["examples"].items())
    start = "random weights" if result["settings"]["from_scratch"] else "pretrained weights"
    about = (
        f"{start} ({result['size']} by the paper's sizes); examples: {counts}; "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)}; metrics in percent."
    )
    overall = [
        [split, name, *(f"{spread[kind]:.2f}" for kind in ("median", "min", "max", "std"))]
        for split, metrics in result["summary"].items()
        for name, spread in metrics.items()
    ]
    columns = [(split, name) for split, metrics in seeds[0]["metrics"].items() for name in metrics]
    each = [
        [
            str(seed["seed"]),
            *(f"{seed['metrics'][split][name]:.2f}" for split, name in columns),
            f"{seed['train_loss']:.4f}",
            f"{seed['steps']:,}",
            f"{seed['train_seconds']:,.1f}",
            f"{seed['tokens_per_second']:,.0f}",
        ]
        for seed in seeds
    ]
    settings = [[f"`{name}`", f"{value}", result["sources"][name]] for name, value in result["settings"].items()]
    options = [[f"`{name}`", f"{value}"] for name, value in result["task_options"].items()]
    made_by = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n\n".join(
        [
            title,
            about,
            table(["split", "metric", "median", "min", "max", "std"], overall),
            f"The model is that of seed {result['best_seed']}, the best by {result['metric']} of {result['compared']}.",
            "## Seeds",
            table(
                ["seed", *(f"{split} {name}" for split, name in columns), "loss", "steps", "seconds", "tokens/s"], each
            ),
            "## Settings",
            table(["setting", "value", "from"], settings),
            "## The task's options",
            table(["option", "value"], options),
            f"{made_by}; {result['device']}.\n",
        ]
    )


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
