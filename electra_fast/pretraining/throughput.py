"""How much arithmetic a step is, how much the device could do, and the memory that was needed at most."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from electra_fast.data.loader import Batch
from electra_fast.models import ElectraConfig, ElectraForJointPreTraining
from electra_fast.pretraining.config import TrainingConfig
from electra_fast.pretraining.hardware import find_gpu


def peak_flops(device: torch.device, settings: TrainingConfig) -> float | None:
    """FLOP/s the device could do: `training.peak_tflops`, else from a table of GPUs; None where neither knows."""
    if settings.peak_tflops is not None:
        return settings.peak_tflops * 1e12
    if device.type != "cuda":
        return None
    gpu = find_gpu(torch.cuda.get_device_name(device))
    return None if gpu is None else gpu.peak_flops(settings.precision)


def step_flops(model: ElectraForJointPreTraining, batch: Batch, objective: str) -> float | None:
    """Floating point operations of a step by the usual rule; None for an objective that it does not cover.

    Matrix products only, forward and twice that backward; the vocabulary's only at masked tokens; look-ups are free.
    What is computed again for activation checkpointing does not count.
    """
    return flops_of_sequences(model, np.diff(batch.cu_seqlens.numpy()), objective)


def flops_of_sequences(model: ElectraForJointPreTraining, lengths: Sequence[int], objective: str) -> float | None:
    """`step_flops` of sequences of so many tokens each. The model's weights are not looked at: it may be on "meta"."""
    lengths = np.asarray(lengths, dtype=np.float64)
    tokens, masked = lengths.sum(), model.mask_prob * lengths.sum()
    small, large = model.generator.config, model.discriminator.config
    generator = _tower(small, lengths) + masked * _vocabulary(small)
    discriminator = _tower(large, lengths) + tokens * 2 * (large.hidden_size**2 + large.hidden_size)
    wide = 2 * 2 * small.hidden_size * small.embedding_size  # both towers' states -> E
    two_tower = 2 * _tower(small, lengths) + tokens * (wide + 2 * small.embedding_size * small.vocab_size)
    forward, both = {
        "joint": (0.0, generator + discriminator),
        "adversarial": (0.0, generator + discriminator),
        "electric": (0.0, two_tower + discriminator),
        "generator": (0.0, generator),
        "discriminator": (generator, discriminator),
        "mlm": (0.0, _tower(large, lengths) + masked * _vocabulary(large)),
    }.get(objective, (None, 0.0))
    return None if forward is None else forward + 3 * both


def _tower(config: ElectraConfig, lengths: np.ndarray) -> float:
    hidden, inner = config.hidden_size, config.intermediate_size
    projection = 0 if config.embedding_size == hidden else 2 * config.embedding_size * hidden
    token = config.num_hidden_layers * 2 * (4 * hidden**2 + 2 * hidden * inner) + projection
    return lengths.sum() * token + config.num_hidden_layers * 4 * hidden * (lengths**2).sum()


def _vocabulary(config: ElectraConfig) -> float:
    return 2 * config.hidden_size * config.embedding_size + 2 * config.embedding_size * config.vocab_size


def peak_memory(device: torch.device) -> int | None:
    """Most bytes in use so far: of tensors on a GPU, else of the process; None where the system doesn't say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        # Not getrusage: a child of fork and exec begins with its parent's peak.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
