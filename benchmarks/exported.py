"""An exported package beside stock transformers in float32, on the texts of a file.

    python -m benchmarks.exported MODEL PACKAGE FILE

Stock reads batches of 32 in the file's order, each padded to its longest text. The package's runner groups texts of
like length, which is its own affair; both give results in the file's order. Rounds alternate; the medians are shown, of
wall time and of processor time, which other programs on the machine disturb less. The result goes to
benchmarks/results/jobs.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.jobs import write_result
from electra_fast.data.tokenizer import load_tokenizer
from electra_fast.deployment import load
from electra_fast.deployment.padding import Feature, pad
from electra_fast.finetuning.tables import read_rows
from electra_fast.inspection import read_paragraphs
from electra_fast.twins import load_stock

BATCH_SIZE = 32
ROUNDS = 5


def compare(model: str, package: str, file: Path, rounds: int = ROUNDS) -> dict[str, object]:
    """Print times, ratios, and how often both name the same class; the same as values."""
    stock, folder = load_stock(model)
    deployed = load(package, threads=torch.get_num_threads())
    encoded = load_tokenizer(folder)(_texts(file), truncation=True, max_length=128)
    features = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]

    def by_stock() -> np.ndarray:
        with torch.inference_mode():
            return np.concatenate([_logits(stock, features[i : i + BATCH_SIZE]) for i in _starts(len(features))])

    def by_package() -> np.ndarray:
        return np.stack([outputs.logits for outputs in deployed.run(features)])

    seconds: dict[str, list[tuple[float, float]]] = {"stock": [], "package": []}
    logits = {}
    for turn in range(rounds + 1):
        for name, run in (("stock", by_stock), ("package", by_package)):
            taken, logits[name] = _timed(run)
            if turn:  # the first allocates
                seconds[name].append(taken)
    agreement = (logits["stock"].argmax(-1) == logits["package"].argmax(-1)).mean()
    lines = [f"{len(features):,} texts of {file}, {torch.get_num_threads()} threads, medians of {rounds} rounds"]
    result: dict[str, object] = {"texts": len(features), "threads": torch.get_num_threads(), "rounds": rounds}
    for index, clock in enumerate(("wall", "processor")):
        medians = {name: statistics.median(row[index] for row in seconds[name]) for name in seconds}
        ratio = medians["stock"] / medians["package"]
        lines.append(
            f"{clock}: stock {medians['stock']:.2f} s, package {medians['package']:.2f} s: {ratio:.2f} times as fast"
        )
        result[f"{clock}_seconds"] = medians
    print("\n".join([*lines, f"same class: {agreement:.2%}"]))
    size = f"{stock.config.num_hidden_layers} layers of {stock.config.hidden_size}"
    return result | {"model": size, "package": deployed.manifest.kind, "same_class": float(agreement)}


def _texts(file: Path) -> list[str]:
    if file.suffix not in (".csv", ".tsv", ".jsonl"):
        return read_paragraphs(file)
    rows = list(read_rows(file))
    column = "text" if rows[0].has("text") else "sentence"
    return [row.text(column) for row in rows]


def _starts(count: int) -> range:
    return range(0, count, BATCH_SIZE)


def _logits(model: torch.nn.Module, features: list[Feature]) -> np.ndarray:
    return model(**{name: torch.from_numpy(value) for name, value in pad(features, 0).items()}).logits.numpy()


def _timed(run: Callable[[], np.ndarray]) -> tuple[tuple[float, float], np.ndarray]:
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    return (time.perf_counter() - wall, time.process_time() - processor), result


if __name__ == "__main__":
    model, package, file = sys.argv[1:]
    result = compare(model, package, Path(file))
    print(write_result(f"exported-{result['package']}", "python -m benchmarks.exported MODEL PACKAGE FILE", result))
