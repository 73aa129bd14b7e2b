"""The same fine-tuning run by stock transformers and by electra-fast: losses, predictions, time.

    python -m benchmarks.finetuning MODEL SST-2 [STEPS]

MODEL is a checkpoint's folder, SST-2 one of the task's files. Stock is transformers' class in transformers' Trainer on
padded batches; both start from the same weights, see the same examples in the same order with the paper's rates by
layer, float32, no dropout. Whole runs follow each other, without loading, tokenizing and evaluation. The result goes to
benchmarks/results/jobs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.jobs import write_result
from electra_fast.finetuning.config import FinetuneConfig
from electra_fast.finetuning.model import find_pretrained
from electra_fast.finetuning.task import task_class
from electra_fast.finetuning.train import Prepared, prepare
from electra_fast.finetuning.trainer import FinetuneTrainer, make_arguments, predict_and_score

BATCH_SIZE = 32


@dataclass(frozen=True)
class Comparison:
    """What came out of both."""

    steps: int
    largest_difference: list[float]  # of the loss, so far, after each step
    same_predictions: int
    predictions: int
    accuracy: float  # percent, of ours
    seconds: dict[str, float]
    processor_seconds: dict[str, float]

    def __str__(self) -> str:
        first = self.largest_difference[: min(20, self.steps)]
        ratios = [clock["ours"] / clock["stock"] for clock in (self.seconds, self.processor_seconds)]
        return (
            f"losses: differ by at most {first[-1]:.2g} over {len(first)} steps, "
            f"{self.largest_difference[-1]:.2g} over {self.steps}\n"
            f"predictions: {self.same_predictions} of {self.predictions} the same; accuracy {self.accuracy:.2f}\n"
            f"time: ours {self.seconds['ours']:.1f} s, stock {self.seconds['stock']:.1f} s: "
            f"{ratios[0]:.3f} (processor time {ratios[1]:.3f})"
        )


def compare(model: str, data: Path, *, steps: int, task: str = "sst2") -> Comparison:
    """Train both for `steps` updates, in the order that one seed draws, and predict the development set."""
    config = FinetuneConfig(max_steps=steps, batch_size=BATCH_SIZE, dropout=0.0, device="cpu")
    prepared = prepare(task_class(task)(), model, data, config)
    with tempfile.TemporaryDirectory() as folder:
        ours = prepared.load_model(0)
        ours.save_pretrained(folder)
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        stock = transformers.ElectraForSequenceClassification.from_pretrained(folder, **no_dropout)
        arguments = make_arguments(prepared.config, Path(folder), seed=0)
        arguments.logging_steps, arguments.save_strategy, arguments.eval_strategy = 1, "no", "no"
        losses, seconds, processor_seconds = {}, {}, {}
        for name, trainer in (
            ("ours", _ours(ours, prepared, arguments)),
            ("stock", _stock(stock, prepared, arguments)),
        ):
            log = _Losses()
            trainer.add_callback(log)
            wall, processor = time.perf_counter(), time.process_time()
            trainer.train()
            seconds[name], processor_seconds[name] = time.perf_counter() - wall, time.process_time() - processor
            losses[name] = log.losses
    largest, so_far = [], 0.0
    for a, b in zip(losses["ours"], losses["stock"], strict=True):
        so_far = max(so_far, abs(a - b))
        largest.append(so_far)
    scored = prepared.scored[0]
    predictions, metrics = predict_and_score(ours, prepared.tokenizer, prepared.task, scored)
    labels = prepared.task.labels
    theirs = [labels[index] for index in _stock_classes(stock, prepared, scored.features)]
    same = sum(prediction["label"] == label for prediction, label in zip(predictions, theirs, strict=True))
    return Comparison(
        len(largest), largest, same, len(theirs), metrics[prepared.task.metric], seconds, processor_seconds
    )


class _Losses(TrainerCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def _ours(model: nn.Module, prepared: Prepared, arguments: Any) -> Trainer:
    return FinetuneTrainer(
        task=prepared.task,
        tokenizer=prepared.tokenizer,
        scored=prepared.scored[0],
        model=model,
        args=arguments,
        train_dataset=prepared.train,
    )


_SAME = (
    "output_dir", "learning_rate", "max_steps", "per_device_train_batch_size", "lr_scheduler_type", "warmup_steps",
    "max_grad_norm", "use_cpu", "seed", "logging_steps", "remove_unused_columns", "disable_tqdm", "log_level",
)  # fmt: skip


def _stock(model: nn.Module, prepared: Prepared, arguments: Any) -> Trainer:
    """As the paper says, written out: the rate of layer i of n is that of the head times decay ** (n - i)."""
    rate, decay, layers = arguments.learning_rate, arguments.layer_decay, model.config.num_hidden_layers
    depth = {f"electra.encoder.layer.{i}.": i + 1 for i in range(layers)} | {"electra.embedding": 0}
    groups = []
    for name, parameter in model.named_parameters():
        of = next((number for start, number in depth.items() if name.startswith(start)), layers + 1)
        groups.append({"params": [parameter], "lr": rate * decay ** (layers + 1 - of)})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0)
    same = {name: getattr(arguments, name) for name in _SAME}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**same, save_strategy="no", report_to="none"),
        train_dataset=[_read_by_stock(feature) for feature in prepared.train],
        data_collator=DataCollatorWithPadding(prepared.tokenizer),
        optimizers=(optimizer, None),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _read_by_stock(feature: dict[str, Any]) -> dict[str, Any]:
    return {name: feature[name] for name in ("input_ids", "token_type_ids", "labels") if name in feature}


@torch.inference_mode()
def _stock_classes(model: nn.Module, prepared: Prepared, features: Any) -> list[int]:
    model.eval()
    classes: list[int] = []
    for start in range(0, len(features), BATCH_SIZE):
        rows = [_read_by_stock(feature) for feature in features[start : start + BATCH_SIZE]]
        for row in rows:
            row.pop("labels", None)
        classes += model(**prepared.tokenizer.pad(rows, return_tensors="pt")).logits.argmax(-1).tolist()
    return classes


def main(model: str, data: str, steps: str = "200") -> None:
    """Print the comparison, and keep it."""
    comparison = compare(model, Path(data), steps=int(steps))
    print(comparison)
    config = AutoConfig.from_pretrained(find_pretrained(model))
    size = f"{config.num_hidden_layers} layers of {config.hidden_size}"
    command = f"python -m benchmarks.finetuning MODEL SST-2 {steps}"
    print(write_result("finetuning", command, {"model": size} | asdict(comparison)))


if __name__ == "__main__":
    main(*sys.argv[1:])
