"""Prints, for each of the settings given as JSON, the bytes that two updates of such a run take at their peak.

Each in a process of its own, forked before anything is computed, so that none finds holes of another in its heap. The
step is that of pretraining/train.py; what a tiny model takes first (threads, libraries) does not count.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

import torch

from electra_fast.allocator import keep_freed_memory, return_freed_memory
from electra_fast.estimation.trial import random_sequences
from electra_fast.estimation.work import made_up_corpus
from electra_fast.pretraining.build import build_model, checkpoint_activations
from electra_fast.pretraining.config import PretrainConfig
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.optimizer import build_optimizer
from electra_fast.pretraining.precision import MasterWeights

TINY = {"model.num_hidden_layers": 1, "model.generator.num_hidden_layers": 1, "data.batch_size": 1}


def two_updates(config: PretrainConfig, vocab_size: int) -> None:
    model = build_model(config, made_up_corpus(vocab_size)).train()
    if config.training.activation_checkpointing:
        checkpoint_activations(model)
    masters = MasterWeights(model, getattr(torch, config.training.precision))
    optimizer = build_optimizer(masters, config.optimizer)
    total, length = config.data.batch_size, config.data.max_length
    at_once = (config.training.micro_batch_tokens or total * length) // length
    ids, starts = random_sequences(at_once, length, vocab_size, torch.device("cpu"))
    for _ in range(2):
        masters.clear_gradients()
        for _ in range(total // at_once):
            model(ids, cu_seqlens=starts, max_seqlen=length).loss.backward()
            masters.take_gradients()
        masters.norm()
        optimizer.step()
        masters.give_weights()


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def peak(settings: dict, vocab_size: int) -> int:
    config = read_config("small", settings)
    (return_freed_memory if config.training.activation_checkpointing else keep_freed_memory)()
    two_updates(read_config("small", settings | TINY), 100)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # peak resident set := resident set
    before = resident("VmHWM")
    two_updates(config, vocab_size)
    return resident("VmHWM") - before


def in_child(settings: dict, vocab_size: int) -> int:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, str(peak(settings, vocab_size)).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return int(told)


if __name__ == "__main__":
    print(json.dumps([in_child(*each) for each in json.loads(sys.argv[1])]))
