"""The original's optimizer and learning-rate schedule, on PyTorch's fused AdamW."""

from __future__ import annotations

import torch
from torch import nn

from electra_fast.pretraining.config import OptimizerConfig

# From here on 1 - beta ** step is 1 in float32 for any beta that is used: Adam without bias correction.
STEP_WITHOUT_BIAS_CORRECTION = 1e8


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """The rate of update number `step` (from 0) of `steps`.

    Source: google-research/electra, model/optimization.py: linear decay to 0 times linear warm-up from 0, so the first
    update changes nothing and the peak stays under `lr`.
    """
    warmup = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    if config.decay_in_warmup:
        return config.lr * (1 - step / steps) * warmup
    if step < config.warmup_steps:
        return config.lr * warmup
    return config.lr * (1 - (step - config.warmup_steps) / max(steps - config.warmup_steps, 1))


def is_decayed(name: str) -> bool:
    """Weight decay applies to everything but LayerNorm and biases (embeddings too, as in the original)."""
    return "LayerNorm" not in name and "bias" not in name.rsplit(".", 1)[-1]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW whose update is the original's: m / (sqrt(v) + eps) + weight_decay * parameter, without bias correction.

    The moments exist from the start, so that a checkpoint written before the first step holds them too.
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
