"""transformers' Trainer with what it lacks: our optimizer, our batches, and evaluation by the task."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from electra_fast.finetuning.config import FinetuneConfig
from electra_fast.finetuning.heads import HEADS, Batch, Collate
from electra_fast.finetuning.inference import predict
from electra_fast.finetuning.optimizer import build_optimizer
from electra_fast.finetuning.task import Example, Feature, Prediction, Task

LOG_EVERY = 10  # updates: how often the loss is read from the device


@dataclass
class FinetuneArguments(TrainingArguments):
    """transformers' arguments, and those of `optimizer.build_optimizer`."""

    layer_decay: float = 1.0
    doubled_layer_decay: bool = False
    bias_correction: bool = True


def make_arguments(config: FinetuneConfig, folder: Path, *, seed: int) -> FinetuneArguments:
    """A seed's arguments. `config`: as `config.resolve` gives it; `folder`: of checkpoints."""
    arguments = FinetuneArguments(
        output_dir=str(folder),
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        max_steps=-1 if config.max_steps is None else config.max_steps,
        per_device_train_batch_size=config.batch_size // config.accumulation,
        gradient_accumulation_steps=config.accumulation,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup,  # below 1: a share of the updates
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        layer_decay=config.layer_decay,
        doubled_layer_decay=config.doubled_layer_decay,
        bias_correction=config.bias_correction,
        bf16=config.precision == "bf16",
        use_cpu=config.device == "cpu",
        seed=seed,
        eval_strategy="epoch" if config.evaluate_every is None else "steps",
        eval_steps=config.evaluate_every,
        save_strategy="epoch" if config.save_every is None else "steps",
        save_steps=config.save_every or 500,
        save_total_limit=1,
        logging_steps=LOG_EVERY,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=config.device != "cpu" and torch.cuda.is_available(),
    )
    if arguments.device.type == "cuda":
        arguments._n_gpu = 1  # nn.DataParallel cuts batches into rows, and packed ones have one
    return arguments


@dataclass(frozen=True)
class Scored:
    """A split with labels: its examples and the features that evaluation runs."""

    name: str
    examples: Sequence[Example]
    features: Sequence[Feature]


class FinetuneTrainer(Trainer):
    """Trains a model with the head of `task` and scores it by the task's own metrics.

    Args:
        task: after `fit`.
        scored: what `evaluate` scores.
        packed: batches without padding, where the head takes them.
        kwargs: of `Trainer`: model or model_init, args, train_dataset (a list of features), callbacks.
    """

    def __init__(
        self,
        *,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        scored: Scored,
        packed: bool = True,
        **kwargs: Any,
    ) -> None:
        self.task, self.tokenizer, self.scored = task, tokenizer, scored
        head = HEADS[task.head]
        self._collate: Collate = head.collate if packed or head.padded is None else head.padded
        super().__init__(data_collator=self._batch, eval_dataset=scored.features, **kwargs)
        self.pop_callback(PrinterCallback)
        self.add_callback(_Seeding)
        # All heads' losses are means, so with accumulation each part's is divided by their number.
        self.model_accepts_loss_kwargs = False
        self.tokens: int | Tensor = 0  # trained on, without padding
        self.evaluation_seconds = 0.0
        self.latest: tuple[int, list[Prediction], dict[str, float]] | None = None

    def _batch(self, features: Sequence[Feature]) -> Batch:
        return self._collate(features, self.tokenizer)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = build_optimizer(
                self.model if model is None else model,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                layer_decay=self.args.layer_decay,
                doubled_layer_decay=self.args.doubled_layer_decay,
                bias_correction=self.args.bias_correction,
            )
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        mask = inputs.get("attention_mask")
        self.tokens += inputs["input_ids"].numel() if mask is None else mask.sum()
        return super().training_step(model, inputs, num_items_in_batch)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The task's metrics of `scored`, as `eval_accuracy` etc., in percent. The arguments are the Trainer's own."""
        start = time.perf_counter()
        predictions, scores = predict_and_score(self.model, self.tokenizer, self.task, self.scored)
        self.evaluation_seconds += time.perf_counter() - start
        self.latest = self.state.global_step, predictions, scores
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def predict_and_score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, scored: Scored
) -> tuple[list[Prediction], dict[str, float]]:
    """Predictions, one an example, and metrics in percent."""
    predictions = predict(model, tokenizer, task, scored.examples, scored.features)
    return predictions, task.score(scored.examples, predictions)


class NotFinite(ValueError):
    """The loss is infinite or not a number."""


class _Seeding(TrainerCallback):
    """Dropout's draws depend on the seed alone, not on whether the Trainer or its caller made the model; a resumed run
    then takes its checkpoint's state."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        torch.manual_seed(args.seed)


class Progress(TrainerCallback):
    """A bar for a seed where someone watches, and a line for each evaluation."""

    def __init__(self, title: str, metric: str, *, show: bool) -> None:
        self.title, self.metric, self.show = title, metric, show
        self.loss = math.nan
        self.bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar = tqdm(
            desc=self.title,
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            dynamic_ncols=True,
            leave=False,
            disable=None if self.show else True,  # None: only on a terminal
        )

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        control.should_log |= control.should_evaluate  # so that the loss beside a score is of the updates before it

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_log |= control.should_evaluate

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.loss = logs["loss"]
            if not math.isfinite(self.loss):
                raise NotFinite(
                    f"the loss is {self.loss} at step {state.global_step:,}: lower learning_rate, or set precision fp32"
                )
            self.bar.set_postfix(loss=f"{self.loss:.3f}", refresh=False)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **_: Any
    ) -> None:
        if self.show:
            tqdm.write(
                f"{self.title}  step {state.global_step:,}/{state.max_steps:,}  epoch {state.epoch:.4g}  "
                f"loss {self.loss:.3f}  {self.metric} {metrics[f'eval_{self.metric}']:.2f}",
                file=sys.stdout,
            )
            sys.stdout.flush()

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class Stopping(TrainerCallback):
    """Saves a checkpoint and stops when a signal was received; saves none at the very end, where nothing is left.

    `received`: as `deferred_signals` fills it.
    """

    def __init__(self, received: Sequence[str]) -> None:
        self.received = received

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.received and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        self._not_at_the_end(state, control)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._not_at_the_end(state, control)

    def _not_at_the_end(self, state: TrainerState, control: TrainerControl) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False
