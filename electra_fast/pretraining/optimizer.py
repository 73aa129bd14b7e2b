"""The original's optimizer and learning-rate schedule, on PyTorch's fused AdamW."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from electra_fast.pretraining.config import OptimizerConfig
from electra_fast.pretraining.precision import MasterWeights

# From here on 1 - beta ** step is 1 in float32 for any beta that is used: Adam without bias correction.
STEP_WITHOUT_BIAS_CORRECTION = 1e8


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """The rate of update number `step` (from 0) of `steps`, those of a phase.

    With x from 0 at the end of the warm-up to 1 at `steps`, and min(1, step / warmup_steps) for the warm-up:

    - paper: lr * (1 - step / steps) * warm-up, so that the first update changes nothing and the peak stays under lr
      (google-research/electra, model/optimization.py); without `decay_in_warmup`, lr * warm-up, then lr * (1 - x);
    - wsd: lr * warm-up, and over the last round(decay_share * steps) updates lr * (1 - sqrt(y)), y from 0 to 1 over
      them (warm-up, stable, decay: Hu et al., 2024; the form of the decay: Haegele et al., 2024);
    - cosine: lr * warm-up, then lr * (1 + cos(pi * x)) / 2;
    - constant: lr * warm-up.
    """
    rate = config.lr * (min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0)
    if config.lr_schedule == "paper" and config.decay_in_warmup:
        return rate * (1 - step / steps)
    if config.lr_schedule == "wsd":
        decay_start = steps - round(config.decay_share * steps)
        return rate if step < decay_start else rate * (1 - math.sqrt((step - decay_start) / (steps - decay_start)))
    if config.lr_schedule == "constant" or step < config.warmup_steps:
        return rate
    x = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
    return config.lr * (1 - x if config.lr_schedule == "paper" else (1 + math.cos(math.pi * x)) / 2)


def is_decayed(name: str) -> bool:
    """Weight decay applies to everything but LayerNorm and biases (embeddings too, as in the original)."""
    return "LayerNorm" not in name and "bias" not in name.rsplit(".", 1)[-1]


def build_optimizer(model: nn.Module | MasterWeights, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW whose update is the original's: m / (sqrt(v) + eps) + weight_decay * parameter, without bias correction.

    The moments exist from the start, so that a checkpoint written before the first step holds them too. A parameter
    without a gradient stays as it is, moments and all: towers that take turns have optimizers of their own in this one.
    """
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if is_decayed(name)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if not is_decayed(name)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
    first_step = 0.0 if config.bias_correction else STEP_WITHOUT_BIAS_CORRECTION
    for _, parameter in named:
        optimizer.state[parameter] = {
            "step": torch.tensor(first_step, dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def state_tensors(model: nn.Module | MasterWeights, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Weights and moments, with names for messages."""
    for name, parameter in model.named_parameters():
        yield f"weight {name}", parameter
        for moment in ("exp_avg", "exp_avg_sq"):
            yield f"{moment} of {name}", optimizer.state[parameter][moment]
