"""Finds and loads transformers' checkpoints: folders, runs of ours, and names in the Hugging Face cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_checkpoint(folder: Path, advice: str) -> Path:
    """The folder with config.json: `folder` itself or, if it is a run, its discriminator's. `advice` ends the message.

    Raises:
        ValueError: there is none.
    """
    for candidate in (folder / "discriminator", folder):
        if (candidate / "config.json").is_file():
            return candidate
    if (folder / "checkpoints").is_dir():
        raise ValueError(
            f"the run in {folder} is not finished, so it holds no discriminator: go on with --resume, or write the "
            "models of its newest checkpoint with `electra-fast export`"
        )
    there = "holds no config.json" if folder.is_dir() else "is no folder"
    raise ValueError(f"model {folder} {there}: {advice}")


def find_in_cache(name: str) -> Path | None:
    """The folder of a hub's model that was downloaded before; None where there is none, or `name` can't be one."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def read_architectures(folder: Path) -> list[str]:
    """The classes that config.json names.

    Raises:
        ValueError: it is damaged.
    """
    file = folder / "config.json"
    try:
        return list(map(str, json.loads(file.read_text(encoding="utf-8")).get("architectures") or []))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def load_model(cls: type[PreTrainedModel], folder: Path, **options: Any) -> PreTrainedModel:
    """`cls.from_pretrained(folder)` in evaluation mode, without a bar; `options` are passed on.

    Raises:
        ValueError: the weights are damaged, or some are missing.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    from electra_fast.models.progress import hidden_progress_bars

    try:
        with hidden_progress_bars():
            model, report = cls.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    # RuntimeError: transformers' word for weights of other shapes. UnpicklingError: a pytorch_model.bin, which PyTorch
    # reads with `weights_only`, holds more than tensors.
    except (SafetensorError, RuntimeError, UnpicklingError) as error:
        raise ValueError(f"can't read the model in {folder}: {error}") from error
    if report["missing_keys"]:
        raise ValueError(f"the model in {folder} lacks {min(report['missing_keys'])}: it is damaged or of another kind")
    return model.eval()
