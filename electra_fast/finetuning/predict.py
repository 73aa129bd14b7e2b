"""A fine-tuned model on files: scores of labelled ones, predictions of any."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from electra_fast.finetuning.inference import BATCH_TOKENS, num_tokens, predict
from electra_fast.finetuning.model import FineTuned, load_finetuned
from electra_fast.finetuning.task import Example, Prediction, is_labelled
from electra_fast.twins import choose_device


class Predicted(NamedTuple):
    """Predictions, one an example, and what they took."""

    predictions: list[Prediction]
    tokens: int  # of the features; once also where a task reads twice
    seconds: float  # tokenizing, the model and decoding; not reading

    @property
    def throughput(self) -> str:
        """E.g. "872 texts in 1.5 s: 581 texts/s, 14,560 tokens/s"."""
        count, seconds = len(self.predictions), max(self.seconds, 1e-9)
        return (
            f"{count:,} texts in {seconds:,.1f} s: {count / seconds:,.0f} texts/s, "
            f"{self.tokens / seconds:,.0f} tokens/s"
        )


def open_finetuned(folder: Path, device: str = "auto") -> FineTuned:
    """`load_finetuned` on a device: cpu, cuda, or auto, the GPU where there is one."""
    chosen = choose_device(device)
    model, tokenizer, task = load_finetuned(folder)
    return FineTuned(model.to(chosen), tokenizer, task)


def predict_examples(
    finetuned: FineTuned, examples: list[Example], *, batch_tokens: int = BATCH_TOKENS, show_progress: bool = False
) -> Predicted:
    """A prediction for each example, in their order."""
    model, tokenizer, task = finetuned
    start = time.perf_counter()
    features = task.encode(examples, tokenizer, training=False)
    with tqdm(total=len(features), unit="text", dynamic_ncols=True, leave=False, disable=not show_progress) as bar:
        predictions = predict(
            model, tokenizer, task, examples, features, batch_tokens=batch_tokens, progress=bar.update
        )
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return Predicted(predictions, sum(map(num_tokens, features)), time.perf_counter() - start)


class Evaluated(NamedTuple):
    """A file's metrics in percent, and its predictions."""

    metrics: dict[str, float]
    predicted: Predicted


def evaluate(
    finetuned: FineTuned, path: Path, *, batch_tokens: int = BATCH_TOKENS, show_progress: bool = False
) -> dict[str, Evaluated]:
    """Scores by split: of a folder all that have labels but the training data, of a file itself, as "dev".

    Raises:
        ValueError: about the data; the folder holds none with labels.
    """
    task = finetuned.task
    files = {"dev": path} if path.is_file() else task.files(path)
    chosen = {split: file for split, file in files.items() if split != "train" and is_labelled(split)}
    if not chosen:
        raise ValueError(f"{path} holds no file with labels to evaluate on, only {', '.join(files)}: name a file")
    results = {}
    for split, file in chosen.items():
        examples = task.read(file, split)
        predicted = predict_examples(finetuned, examples, batch_tokens=batch_tokens, show_progress=show_progress)
        results[split] = Evaluated(task.score(examples, predicted.predictions), predicted)
    return results
