"""What a fine-tuning run is made of, and the paper's values for what is not given."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from electra_fast.arguments import shown
from electra_fast.finetuning.task import Task


@dataclass
class FinetuneConfig:
    """The settings of a run. Those that are null are the paper's for the model's size and the task: see `resolve`.

    Args:
        learning_rate: at the top of the warm-up, of the head; null: 3e-4 small, 1e-4 base, 5e-5 large.
        epochs: passes over the training data; null: the task's, mostly 3.
        max_steps: updates in all, instead of epochs.
        batch_size: examples an update.
        accumulation: parts an update's batch is cut into, for less memory; a divisor of batch_size.
        warmup: share of the updates in which the rate rises; then it falls to 0 along a line.
        weight_decay: of all but biases and LayerNorm.
        layer_decay: the rate of each layer is that of the one above times this; null: 0.8 small and base, 0.9 large.
        doubled_layer_decay: the last layer's rate is decayed twice, and all below once more, a slip of the original.
        dropout: of hidden states and attention.
        clip: the gradient's largest norm; 0: any.
        bias_correction: Adam's, which the original lacks; without it few examples train unsteadily.
        head: transformers or original, that of google-research/electra: one linear layer, joint span search.
        precision: fp32, or bf16 for products with float32 weights (autocast).
        packed: batches without padding; false: padded, for comparison.
        seed: of the first seed's new head, order of examples and dropout; the others follow it.
        seeds: how often to train, each with a seed of its own.
        train_examples: how many training examples to use, drawn by split_seed; null: all.
        dev_examples: how many training examples are held out where there are no others to compare by.
        dev_fraction: the same as a share, if dev_examples is null.
        split_seed: draws what is held out and what is used; more train_examples contain fewer.
        from_scratch: random weights instead of the pretrained ones, for comparison.
        evaluate_every: updates between evaluations; null: once an epoch.
        save_every: updates between checkpoints for --resume; null: once an epoch.
        device: cpu, cuda, or auto: the GPU where there is one.
    """

    learning_rate: float | None = None
    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int = 32
    accumulation: int = 1
    warmup: float = 0.1
    weight_decay: float = 0.0
    layer_decay: float | None = None
    doubled_layer_decay: bool = False
    dropout: float = 0.1
    clip: float = 1.0
    bias_correction: bool = True
    head: str = "transformers"
    precision: str = "fp32"
    packed: bool = True
    seed: int = 0
    seeds: int = 1
    train_examples: int | None = None
    dev_examples: int | None = None
    dev_fraction: float = 0.1
    split_seed: int = 0
    from_scratch: bool = False
    evaluate_every: int | None = None
    save_every: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            optional = name not in ("batch_size", "accumulation", "seeds")
            _check((optional and value is None) or (value is not None and value >= 1), name, value, "1 or more")
        for name in ("learning_rate", "epochs"):
            value = getattr(self, name)
            _check(value is None or 0 < value < math.inf, name, value, "positive")
        for name in ("weight_decay", "clip"):
            _check(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more")
        for name in ("warmup", "dropout"):
            _check(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and less than 1")
        _check(self.layer_decay is None or 0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "in (0, 1]")
        _check(0 < self.dev_fraction < 1, "dev_fraction", self.dev_fraction, "between 0 and 1")
        _check(self.batch_size % self.accumulation == 0, "accumulation", self.accumulation, "a divisor of batch_size")
        _check(self.precision in ("fp32", "bf16"), "precision", self.precision, "fp32 or bf16")
        _check(self.head in ("transformers", "original"), "head", self.head, "transformers or original")
        for name in ("seed", "split_seed"):
            _check(0 <= getattr(self, name) < 2**31, name, getattr(self, name), "at least 0 and less than 2**31")


_COUNTS = (
    "max_steps", "batch_size", "accumulation", "seeds", "train_examples", "dev_examples", "evaluate_every", "save_every"
)  # fmt: skip


def _check(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {expected}; got {shown(value)}")


class Size(NamedTuple):
    """What the paper fine-tunes models of a size with (Clark et al., 2020, table 7)."""

    name: str
    widest: float  # hidden size of the widest model that counts as such
    learning_rate: float
    layer_decay: float


# The paper's models are 256, 768 and 1,024 wide; between them, the one that is nearer.
SIZES = (Size("small", 512, 3e-4, 0.8), Size("base", 896, 1e-4, 0.8), Size("large", math.inf, 5e-5, 0.9))


def size_of(hidden_size: int) -> Size:
    """The paper's model nearest in width."""
    return next(size for size in SIZES if hidden_size <= size.widest)


def resolve(config: FinetuneConfig, hidden_size: int, task: Task) -> tuple[FinetuneConfig, dict[str, str]]:
    """The settings with the paper's values for those that are None, and where each value came from."""
    size = size_of(hidden_size)
    of_size = f"the paper's for {size.name} models"
    paper = {
        "learning_rate": (size.learning_rate, of_size),
        "layer_decay": (size.layer_decay, of_size),
        "epochs": (task.epochs, f"for {task.name}"),
    }
    chosen = {name: value for name, (value, _) in paper.items() if getattr(config, name) is None}
    defaults = FinetuneConfig()
    sources = {
        field.name: paper[field.name][1]
        if field.name in chosen
        else ("default" if getattr(config, field.name) == getattr(defaults, field.name) else "given")
        for field in fields(config)
    }
    if config.max_steps is not None:
        sources["epochs"] = "as max_steps says"
    return replace(config, **chosen), sources
