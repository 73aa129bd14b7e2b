"""AdamW with a learning rate for each layer: the nearer to the input, the lower."""

from __future__ import annotations

import re
from collections import defaultdict

import torch
from torch import nn
from transformers import EncoderDecoderModel

from electra_fast.pretraining.optimizer import STEP_WITHOUT_BIAS_CORRECTION, is_decayed

BETAS, EPS = (0.9, 0.999), 1e-6  # the paper's, table 7
_LAYER = re.compile(r"(?:^|\.)encoder\.layer\.(\d+)\.")
_EMBEDDINGS = re.compile(r"(?:^|\.)embeddings(?:_project)?\.")


def layer_rates(model: nn.Module, decay: float, *, doubled: bool = False) -> dict[str, float]:
    """What the learning rate of each parameter is multiplied by.

    With n layers, depth 0 for the embeddings and their projection, i + 1 for layer i and n + 1 for the head (and a
    pooler): decay ** (n + 1 - depth), so 1 for the head and `decay` for the last layer. `doubled`: the original counts
    a pooler that it no longer has, so that all below the head is decayed once more, the last layer twice
    (google-research/electra, model/optimization.py, issues 51 and 64).

    Of an `EncoderDecoderModel` this is so for the encoder; the decoder, with new cross attention, has the full rate.
    """
    names = [name for name, _ in model.named_parameters()]
    plain = "decoder." if isinstance(model, EncoderDecoderModel) else None
    depths: dict[str, int | None] = {}
    for name in names:
        if plain is not None and name.startswith(plain):
            depths[name] = None
        elif match := _LAYER.search(name):
            depths[name] = int(match[1]) + 1
        else:
            depths[name] = 0 if _EMBEDDINGS.search(name) else None
    layers = max((depth for depth in depths.values() if depth is not None), default=0)
    top = layers + 1 + doubled
    return {name: 1.0 if depth is None else decay ** (top - depth) for name, depth in depths.items()}


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float,
    doubled_layer_decay: bool = False,
    bias_correction: bool = True,
) -> torch.optim.AdamW:
    """Fused AdamW over the parameters that need a gradient, a group for each rate and weight decay."""
    rates = layer_rates(model, layer_decay, doubled=doubled_layer_decay)
    grouped: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            grouped[learning_rate * rates[name], weight_decay if is_decayed(name) else 0.0].append(parameter)
    groups = [{"params": parameters, "lr": lr, "weight_decay": wd} for (lr, wd), parameters in grouped.items()]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, eps=EPS, fused=True)
    if not bias_correction:
        for parameter in (parameter for group in groups for parameter in group["params"]):
            optimizer.state[parameter] = {
                "step": torch.tensor(STEP_WITHOUT_BIAS_CORRECTION, dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer
