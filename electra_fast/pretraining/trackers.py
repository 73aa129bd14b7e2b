"""Sends a run's metrics to TensorBoard and Weights & Biases, by accelerate's trackers."""

from __future__ import annotations

import os
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from electra_fast.files import write_whole
from electra_fast.pretraining.config import ConfigError, PretrainConfig

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker


def open_trackers(config: PretrainConfig, output: Path, resume_step: int | None) -> list[GeneralTracker]:
    """The trackers of a run, started; `MetricsLog` feeds and ends them.

    TensorBoard's files lie in `output/tensorboard`; a run that goes on hides the points after the step it goes on from.
    Weights & Biases gets the same run again, whose points stay: those that are trained once more are the same. Its
    project is $WANDB_PROJECT, else "electra-fast"; it takes its other settings from its environment variables too.

    Args:
        config: the run, which the trackers show; `training.trackers` names them.
        output: its folder.
        resume_step: the step the run goes on from; None for a run that starts.

    Raises:
        ConfigError: a tracker is not installed, or can't start.
    """
    names = config.training.tracker_names
    missing = [name for name in (*names, *(["accelerate"] if names else [])) if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"training.trackers: {missing[0]} is not installed: pip install 'electra-fast[trackers]', or leave it out"
        )
    start = {"tensorboard": _tensorboard, "wandb": _wandb}
    return [start[name](config, output, resume_step) for name in names]


def _tensorboard(config: PretrainConfig, output: Path, resume_step: int | None) -> GeneralTracker:
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker

    PartialState()  # accelerate's logger asks for it
    purge = None if resume_step is None else resume_step + 1
    tracker = TensorBoardTracker("tensorboard", output, purge_step=purge)
    tracker.start()
    if resume_step is None:
        tracker.writer.add_text("config", f"```yaml\n{config.to_yaml()}```")
    return tracker


def _wandb(config: PretrainConfig, output: Path, resume_step: int | None) -> GeneralTracker:
    import wandb
    import yaml
    from accelerate import PartialState
    from accelerate.tracking import WandBTracker

    PartialState()
    name = output / "wandb" / "run_id"
    if resume_step is None or not name.is_file():
        name.parent.mkdir(parents=True, exist_ok=True)
        write_whole(name, secrets.token_hex(4))
    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", "electra-fast"),
        id=name.read_text(encoding="utf-8"),
        name=output.resolve().name,
        dir=str(output),
        resume="allow",
        config=yaml.safe_load(config.to_yaml()),
    )
    try:
        tracker.start()
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"training.trackers: wandb can't start: {reason}; log in with `wandb login`, or set WANDB_MODE=offline"
        ) from error
    return tracker
