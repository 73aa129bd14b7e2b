"""A few steps of a run on this machine: the real model and optimizer, random tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from electra_fast.allocator import keep_freed_memory
from electra_fast.estimation.speed import HERE, Speed, physical_memory
from electra_fast.estimation.work import Part, Work, made_up_corpus
from electra_fast.info import cpu_model
from electra_fast.pretraining.build import build_model, checkpoint_activations
from electra_fast.pretraining.config import PretrainConfig
from electra_fast.pretraining.hardware import find_gpu
from electra_fast.pretraining.optimizer import build_optimizer
from electra_fast.pretraining.precision import MasterWeights
from electra_fast.pretraining.runtime import find_device
from electra_fast.pretraining.sources import resolve_init

_SECONDS = 1.0  # of forward and backward, about, each of the times
_TIMES = 3
_MOST_TOKENS = {"cpu": 2048, "cuda": 16384}  # more are no faster


def measure_here(config: PretrainConfig, work: Work) -> Speed:
    """What this machine does in the part of the run that takes most of the arithmetic, the update included.

    Forward and backward are timed on as many full-length sequences as take about a second; the update, which costs the
    same whatever the batch, is timed by itself and counted once a step of the run. Weights are fresh, and `compile` is
    not used.
    """
    config = resolve_init(config)
    device, part = find_device(config.training.device), max(work.parts, key=lambda part: part.flops)
    if device.type == "cpu":
        keep_freed_memory()
    model = build_model(config, made_up_corpus(work.vocab_size)).to(device).train()
    if config.training.activation_checkpointing:
        checkpoint_activations(model)
    masters = MasterWeights(model, getattr(torch, config.training.precision))
    optimizer = build_optimizer(masters, config.optimizer)

    def compute(sequences: int) -> Callable[[], None]:
        ids, starts = random_sequences(sequences, part.max_length, work.vocab_size, device)

        def step() -> None:
            masters.clear_gradients()
            out = model(ids, cu_seqlens=starts, max_seqlen=part.max_length, objective=part.objective)
            out.loss.backward()
            masters.take_gradients()

        return step

    def update() -> None:
        masters.norm()
        optimizer.step()
        masters.give_weights()

    for warm_up in (compute(1), compute(1), update):
        seconds = _seconds(warm_up, device)
    seconds = _seconds(compute(1), device)
    most = min(part.tokens_per_step, config.training.micro_batch_tokens or part.tokens_per_step)
    most = min(most, _MOST_TOKENS[device.type]) // part.max_length
    sequences = max(1, min(most, int(_SECONDS / seconds)))
    step = compute(sequences)
    step()
    seconds = statistics.median(_seconds(step, device) for _ in range(_TIMES))
    seconds_of_update = statistics.median(_seconds(update, device) for _ in range(_TIMES))
    tokens = sequences * part.max_length
    whole_step = seconds * part.tokens_per_step / tokens + seconds_of_update
    return _speed(device, part, f"{sequences} x {part.max_length}", part.flops_per_step / whole_step, config)


def random_sequences(
    sequences: int, length: int, vocab_size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int64 [sequences * length] of ordinary tokens, and where each sequence starts, int32 [sequences + 1]."""
    ids = torch.randint(min(5, vocab_size - 1), vocab_size, (sequences * length,), device=device)
    return ids, torch.arange(sequences + 1, dtype=torch.int32, device=device) * length


def _speed(device: torch.device, part: Part, shape: str, rate: float, config: PretrainConfig) -> Speed:
    source = f"measured here and now ({part.objective}, {shape})"
    if device.type == "cpu":
        name = f"{HERE}: {cpu_model()}, {torch.get_num_threads()} threads"
        return Speed(name, rate, None, physical_memory(), True, source, on_cpu=True)
    properties = torch.cuda.get_device_properties(device)
    gpu = find_gpu(properties.name)
    peak = None if gpu is None else gpu.peak_flops(config.training.precision)
    return Speed(f"{HERE}: {properties.name}", rate, peak, properties.total_memory, True, source, gpu=gpu)


def _seconds(action: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
