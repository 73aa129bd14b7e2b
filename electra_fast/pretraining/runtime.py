"""What a run asks of the process around it: a device, its corpora, signals put off, a GPU that repeats its bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from electra_fast.data.loader import open_loader
from electra_fast.pretraining.config import ConfigError, PretrainConfig
from electra_fast.pretraining.evaluation import EVALUATION_SEED, Loader


def find_device(name: str) -> torch.device:
    """The device that `training.device` names. Raises ConfigError where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"training.device is {name}, but this PyTorch sees no CUDA GPU: use cpu or auto")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"training.device is {name}, but there are {torch.cuda.device_count()} GPUs: cuda:0 is the first"
        )
    return device


def open_data(config: PretrainConfig, *, verify: bool = True) -> tuple[Loader, Loader | None]:
    """The batches to learn from, and those to measure on; `verify` compares the corpora's checksums.

    Raises:
        ConfigError: no corpus is named, or one is of another tokenizer. ValueError: a damaged one.
    """
    data = config.data
    if not all(data.train_corpora):
        raise ConfigError(
            "data.train is not set: give the folder that `electra-fast prepare` wrote (--data.train FOLDER)"
        )
    train = open_loader(data, config.training.seed, verify=verify)
    if data.valid is None:
        return train, None
    valid = open_loader(data, EVALUATION_SEED, held_out=True, verify=verify)
    ours, theirs = train.corpora[0], valid.corpora[0]
    if theirs.meta.tokenizer_sha256 != ours.meta.tokenizer_sha256:
        raise ConfigError(
            f"{data.valid} was prepared with another tokenizer than {ours.folder}: prepare it again with "
            f"--tokenizer {ours.tokenizer_folder}"
        )
    return train, valid


@contextmanager
def deferred_signals(*, until_error_is_told: bool = False) -> Iterator[list[str]]:
    """Within the block ctrl-C and SIGTERM are noted in the list instead of raised; a second ctrl-C stops at once.

    `until_error_is_told`: after an error in the block too. When torchrun loses a rank it sends SIGTERM to the others,
    who must live to say what happened.
    """
    received: list[str] = []

    def note(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, where no handler can be set: signals go to whoever runs us
        yield received
        return
    restores = True
    try:
        yield received
    except Exception:
        restores = not until_error_is_told
        raise
    finally:
        for number, handler in before.items() if restores else ():
            signal.signal(number, handler)


@contextmanager
def repeatable(device: torch.device, enabled: bool) -> Iterator[None]:
    """Within the block a GPU gives the same bits each time, where `enabled`. A CPU does so anyway."""
    if not enabled or device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.utils.deterministic.fill_uninitialized_memory = False  # our kernels write every element of their results
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.deterministic = before[1]
        torch.utils.deterministic.fill_uninitialized_memory = fills
