"""The folder of a run: whose it is, and what may be done with it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from electra_fast.files import write_whole
from electra_fast.pretraining.cards import CARD_FILE, is_ours
from electra_fast.pretraining.checkpoint import CheckpointError, list_checkpoints, read_state
from electra_fast.pretraining.config import ConfigError, PretrainConfig

# What a run writes into its folder, and all that --overwrite deletes.
RUN_CONTENT = (
    "config.yaml",
    "checkpoints",
    "metrics.jsonl",
    "curves.png",
    "discriminator",
    "generator",
    "mlm",
    "electra_fast.json",
    "electra_fast.safetensors",
    "tensorboard",
    "wandb",
)
# What may differ between a run and its resumption without changing what is learned until the checkpoint.
_FREE_ON_RESUME = {
    "output",
    "data.train",  # the corpus may have moved: a checkpoint knows its content
    "data.valid",
    "training.steps",
    "training.device",
    "training.log_every",
    "training.eval_every",
    "training.eval_batches",
    "training.save_every",
    "training.keep_checkpoints",
    "training.micro_batch_tokens",  # equal but for rounding
    "training.activation_checkpointing",
    "training.compile",
    "training.cuda_graphs",
    "training.deterministic",
    "training.peak_tflops",
    "training.parallel",
    "training.timeout_seconds",
    "training.probe.train",
    "training.probe.valid",
    "training.probe.every",
    "training.probe.kind",
    "training.probe.epochs",
    "training.probe.lr",
    "training.probe.batch_size",
    "training.trackers",
}


def check_output(output: Path, config: PretrainConfig, *, resume: bool, overwrite: bool) -> bool:
    """Whether there is a run in `output` to go on with. Changes nothing.

    Raises:
        ConfigError: the folder is a file, or holds a run that is neither to be resumed nor to be overwritten, or one of
            other settings.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output {output} is a file: give a folder")
    holds = [name for name in RUN_CONTENT if os.path.lexists(output / name)]
    links = [name for name in holds if (output / name).is_symlink()]
    if links:
        raise ConfigError(
            f"{output / links[0]} is a link, and a run writes into its own folder only: give another output, which may "
            "be a link itself"
        )
    if not holds or overwrite:
        return False
    for path in (output / name for name in holds):
        if not (path.is_file() if path.suffix else path.is_dir()):
            kind = "file" if path.suffix else "folder"
            raise ConfigError(f"{path} is no {kind}, as it is in a run: remove it, or give another output")
    if not resume:
        raise ConfigError(
            f"{output} holds a run already ({holds[0]}): --resume goes on with it, --overwrite deletes it"
        )
    if "config.yaml" not in holds:
        raise ConfigError(f"{output} holds {holds[0]} but no config.yaml, so it can't be resumed: give another output")
    try:
        before = _read_settings(output / "config.yaml")
    except ConfigError as error:
        if not _is_of_checkpoint(output / "checkpoints", config):
            raise
        warnings.warn(f"{error}; going on: a checkpoint there is of the settings given", RuntimeWarning, stacklevel=2)
        return True
    _check_same_run(output / "config.yaml", before, config)
    return True


def claim_output(output: Path, config: PretrainConfig) -> None:
    """Make `output` the folder of a run of `config`."""
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "config.yaml", config.to_yaml())


def delete_run(output: Path) -> None:
    """Delete what a run wrote into `output`, and nothing else. The settings go last: without them nothing resumes."""
    if is_ours(output / CARD_FILE):
        (output / CARD_FILE).unlink()
    for path in (output / name for name in reversed(RUN_CONTENT)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _read_settings(file: Path) -> dict[str, Any]:
    """A run's settings by dotted keys. Raises ConfigError where the file is damaged."""
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{file} is damaged: it holds no settings")
    return flat_settings(settings)


def _check_same_run(file: Path, before: dict[str, Any], config: PretrainConfig) -> None:
    before, now = _without_places(before), _without_places(flat_settings(asdict(config)))
    for key in sorted({*before, *now} - _FREE_ON_RESUME):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"can't resume: {key} is {now.get(key)!r} now and was {before.get(key)!r} in {file}; give the same "
                "settings or another output, or --overwrite the run"
            )


def _without_places(settings: dict[str, Any]) -> dict[str, Any]:
    """Corpora of a mixture may have moved too: what is in them, a checkpoint knows."""
    mixture = settings.get("data.mixture")
    if not isinstance(mixture, list) or not all(isinstance(corpus, dict) for corpus in mixture):
        return settings
    return settings | {"data.mixture": [{k: v for k, v in corpus.items() if k != "path"} for corpus in mixture]}


def settings_sha256(config: PretrainConfig) -> str:
    """One name for the settings that must be the same when a run is resumed; a checkpoint holds it."""
    settings = _without_places(flat_settings(asdict(config)))
    free = _FREE_ON_RESUME | {"init.sha256"}  # found out, not given
    kept = {key: value for key, value in settings.items() if key not in free}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _is_of_checkpoint(folder: Path, config: PretrainConfig) -> bool:
    """Whether the newest checkpoint that can be read says that it is of these settings."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return read_state(path).get("settings") == settings_sha256(config)
        except CheckpointError:
            continue
    return False


def settings_of_all_ranks(config: PretrainConfig) -> dict[str, Any]:
    """The settings that must be the same on all ranks: all but places, which a machine may have of its own."""
    places = ("output", "data.train", "data.valid", "data.mixture")
    return {key: value for key, value in flat_settings(asdict(config)).items() if key not in places}


def flat_settings(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A config's settings by dotted keys."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {key: value for name, part in tree.items() for key, value in flat_settings(part, f"{prefix}{name}.").items()}
