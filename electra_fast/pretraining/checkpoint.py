"""Checkpoints: everything a run needs to go on with the same bits, written whole or not at all."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from electra_fast.arguments import shown
from electra_fast.data.checksum import file_sha256, sealed, unsealed
from electra_fast.files import flush

FORMAT_VERSION = 1
TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")
_NAME = re.compile(r"step-\d{8,10}")
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class CheckpointError(ValueError):
    """A checkpoint that can't be used; the message names the file."""


class DamagedCheckpoint(CheckpointError):
    """A file of a checkpoint is missing, or is not what was written."""


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    keep: int,
    card: str | None = None,
) -> Path:
    """Write `folder/step-XXXXXXXX` after `step` updates; of the older ones keep the newest, `keep` in all.

    It holds model.safetensors, optimizer.safetensors, state.json (`state`, which JSON can hold, and checksums), and
    with a `card`, for people, README.md.
    Written aside, flushed to the disk and renamed: a folder of that name is always whole. Checkpoints of later steps
    go too: they are what a run that fell back to an older one left behind.

    Raises:
        OSError, SafetensorError: it can't be written, e.g. for want of space; the folder is then as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for rest in folder.glob(".step-*"):  # of a save or a deletion that was cut short
        _delete(rest)
    target = folder / f"step-{step:08d}"
    aside = folder / f".{target.name}.partial"
    try:
        aside.mkdir()
        if card is not None:
            (aside / "README.md").write_text(card, encoding="utf-8")
        _write(aside, step, model, optimizer, state)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None:  # no space: say at least where
            error.filename = str(target)
        raise
    _delete(target)
    aside.rename(target)
    flush(folder)
    checkpoints = list_checkpoints(folder)
    later = checkpoints.index(target) + 1
    for path in checkpoints[: max(later - keep, 0)] + checkpoints[later:]:
        _delete(path)
    return target


def _delete(path: Path) -> None:
    """Delete a folder, under a hidden name: cut short, it must not look like a checkpoint. Of a link, the link."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith("."):
        hidden = path.with_name(f".{path.name}.deleted")
        path.rename(hidden)
        path = hidden
    shutil.rmtree(path)


def _write(aside: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    named = dict(model.named_parameters())
    save_file({name: p.detach().contiguous() for name, p in named.items()}, aside / "model.safetensors")
    save_file(_optimizer_tensors(named, optimizer), aside / "optimizer.safetensors")
    checksums = {name: file_sha256(aside / name) for name in TENSOR_FILES}
    state = {"format_version": FORMAT_VERSION, "step": step, "checksums": checksums, **state}
    (aside / "state.json").write_text(json.dumps(sealed(state), indent=2) + "\n", encoding="utf-8")
    for path in aside.iterdir():
        flush(path)
    flush(aside)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def load_newest(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    check: Callable[[Path, dict[str, Any]], object] = lambda path, state: None,
) -> tuple[Path, dict[str, Any]] | None:
    """Load the newest checkpoint of `folder` that is whole; warn of each damaged one that is passed over.

    Args:
        folder, model, optimizer: where from and what into.
        check: is given each checkpoint's path and state before its weights are read; raises for one of another run.

    Returns:
        Its path and state; None where there is no checkpoint at all.

    Raises:
        CheckpointError: all are damaged, or the newest whole one is of a newer format or of another model.
    """
    checkpoints = list_checkpoints(folder)
    for path in reversed(checkpoints):
        try:
            check(path, read_state(path))
            return path, load_checkpoint(path, model, optimizer)
        except DamagedCheckpoint as error:
            warnings.warn(f"{error}; trying the checkpoint before it", RuntimeWarning, stacklevel=2)
    if checkpoints:
        raise CheckpointError(f"no checkpoint in {folder} is whole: start anew with --overwrite, or another output")
    return None


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put the weights and moments of a checkpoint into `model` and `optimizer` in place; return its state.

    Raises:
        DamagedCheckpoint: a file is missing or damaged.
        CheckpointError: it is of a newer format, or of another model.
    """
    state = read_state(path)
    named = dict(model.named_parameters())
    model_tensors = {name: p.data for name, p in named.items()}
    targets = dict(zip(TENSOR_FILES, (model_tensors, _optimizer_tensors(named, optimizer)), strict=True))
    _load_tensors(path, state, targets)
    return state


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """As `load_checkpoint`, of the weights alone."""
    state = read_state(path)
    _load_tensors(path, state, {TENSOR_FILES[0]: {name: p.data for name, p in model.named_parameters()}})
    return state


def _load_tensors(path: Path, state: dict[str, Any], targets: dict[str, dict[str, Tensor]]) -> None:
    """Fill the tensors of each file in place, once all files are known to be whole and to fit."""
    loaded = {}
    for file, tensors in targets.items():
        _check_is_file(path / file)
        if file_sha256(path / file) != state["checksums"].get(file):
            raise DamagedCheckpoint(f"{path / file} is damaged: its sha256 is not the one in state.json")
        try:
            loaded[file] = load_file(path / file)
        except SafetensorError as error:
            raise DamagedCheckpoint(f"{path / file} can't be read: {_reason(error)}") from error
        found, expected = _kinds(loaded[file]), _kinds(tensors)
        if found != expected:
            name = next(name for name in {**found, **expected} if found.get(name) != expected.get(name))
            there, here = found.get(name, "missing"), expected.get(name, "missing")
            name = name if name in expected else shown(name)
            raise CheckpointError(f"{path / file} is of another model: {name} is {there} there and {here} here")
    with torch.no_grad():
        for file, tensors in targets.items():
            for name, tensor in tensors.items():
                tensor.copy_(loaded[file][name])


def read_state(path: Path) -> dict[str, Any]:
    """The state.json of a checkpoint.

    Raises:
        DamagedCheckpoint: it is missing or damaged.
        CheckpointError: it is of a newer format.
    """
    file = path / "state.json"
    _check_is_file(file)
    try:
        state = unsealed(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{file} is damaged: {_reason(error)}") from error
    version = state.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version}; this electra-fast reads up to {FORMAT_VERSION}: upgrade it"
        )
    if version != FORMAT_VERSION or state.get("step") != _step_of(path):
        raise DamagedCheckpoint(f"{file} is damaged: it is not of {path.name}")
    if not isinstance(state.get("checksums"), dict):
        raise DamagedCheckpoint(f"{file} is damaged: it holds no checksums")
    return state


def check_state(path: Path, state: dict[str, Any], **kinds: type | tuple[type, ...]) -> None:
    """Raises DamagedCheckpoint unless the state of checkpoint `path` has each key, and a value of its type; numbers are
    finite, whole ones at least 0."""
    for key, kind in kinds.items():
        value = state.get(key)
        fits = isinstance(value, kind) and not isinstance(value, bool) and (key in state)
        if fits and isinstance(value, (int, float)):
            fits = abs(value) < math.inf and (value >= 0 or isinstance(value, float))
        if not fits:
            raise DamagedCheckpoint(f"{path / 'state.json'} is damaged: {key} is {shown(value)}")


def _check_is_file(path: Path) -> None:
    """A link may lead to another run, or out of this one, and a pipe nowhere."""
    if path.parent.is_symlink() or path.is_symlink():
        raise DamagedCheckpoint(
            f"{path} can't be used: it is, or lies in, a link, and a checkpoint holds its own files"
        )
    if not path.is_file():
        raise DamagedCheckpoint(f"{path} is {'no file' if path.exists() else 'missing'}")


def _kinds(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {name: f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for name, t in tensors.items()}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def checkpoint_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All that a checkpoint puts in place, in one order."""
    named = dict(model.named_parameters())
    return [*(p.data for p in named.values()), *_optimizer_tensors(named, optimizer).values()]


def _optimizer_tensors(named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {f"{name}.{moment}": optimizer.state[p][moment] for name, p in named.items() for moment in _MOMENTS}
