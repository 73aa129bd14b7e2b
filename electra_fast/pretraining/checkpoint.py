"""Checkpoints: everything a run needs to go on with the same bits, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FORMAT_VERSION = 1
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class CheckpointError(ValueError):
    """A checkpoint that can't be read; the message names the file."""


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], *, keep: int
) -> Path:
    """Write `folder/step-XXXXXXXX` after `step` updates and remove all but the newest `keep`.

    It holds model.safetensors, optimizer.safetensors and state.json (`state`, which JSON can hold). Written aside,
    flushed to the disk and renamed: a folder of that name is always whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    aside = folder / f".{target.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    named = dict(model.named_parameters())
    save_file({name: p.detach().contiguous() for name, p in named.items()}, aside / "model.safetensors")
    save_file(_optimizer_tensors(named, optimizer), aside / "optimizer.safetensors")
    state = {"format_version": FORMAT_VERSION, "step": step, **state}
    (aside / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    for path in aside.iterdir():
        _flush(path)
    _flush(aside)
    if target.exists():
        shutil.rmtree(target)
    aside.rename(target)
    _flush(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put the weights and moments of a checkpoint into `model` and `optimizer` in place; return its state.

    Raises:
        CheckpointError: a file is missing, damaged, of a newer format, or of another model.
    """
    state = read_state(path)
    named = dict(model.named_parameters())
    targets = {"model.safetensors": {name: p.data for name, p in named.items()}}
    targets["optimizer.safetensors"] = _optimizer_tensors(named, optimizer)
    loaded = {}
    for file, tensors in targets.items():
        try:
            loaded[file] = load_file(path / file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"can't read {path / file}: {error}") from error
        shapes = {name: tuple(t.shape) for name, t in loaded[file].items()}
        expected = {name: tuple(t.shape) for name, t in tensors.items()}
        if shapes != expected:
            name = next(name for name in {**shapes, **expected} if shapes.get(name) != expected.get(name))
            raise CheckpointError(
                f"{path / file} is of another model: {name} is {shapes.get(name)} there and {expected.get(name)} here"
            )
    with torch.no_grad():
        for file, tensors in targets.items():
            for name, tensor in tensors.items():
                tensor.copy_(loaded[file][name])
    return state


def read_state(path: Path) -> dict[str, Any]:
    """The state.json of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged or of a newer format.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        version = state["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"can't read {path / 'state.json'}: {error}") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version}; this electra-fast reads up to {FORMAT_VERSION}: upgrade it"
        )
    return state


def _optimizer_tensors(named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {f"{name}.{moment}": optimizer.state[p][moment] for name, p in named.items() for moment in _MOMENTS}


def _flush(path: Path) -> None:
    """fsync a file or folder; folders can't be opened on Windows, where rename needs no such help."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
