"""`electra-fast export`: models out of a run's checkpoint, at any step of the run."""

from __future__ import annotations

import shutil
from pathlib import Path

from electra_fast.data.corpus import Corpus, content_hash
from electra_fast.data.tokenizer import save_tokenizer
from electra_fast.files import flush
from electra_fast.pretraining.build import build_model
from electra_fast.pretraining.cards import Facts, last_evaluation, write_cards
from electra_fast.pretraining.checkpoint import list_checkpoints, load_weights, read_state
from electra_fast.pretraining.config import ConfigError
from electra_fast.pretraining.config_file import read_config


def export_checkpoint(run: str | Path, output: str | Path, *, step: int | None = None) -> int:
    """Write the models of a checkpoint as `pretrain` does at the end of a run, with tokenizer and model cards.

    Args:
        run: a run's folder, finished or not. Its corpus, which has the tokenizer, must be where its config.yaml says.
        output: a new folder. It gets `generator/`, `discriminator/` and what the joint model needs beside them.
        step: of the checkpoint; None: the newest.

    Returns:
        The step.

    Raises:
        ConfigError: there is no such run or checkpoint, or `output` is there already. ValueError: a damaged one, or a
            corpus that is not the run's.
    """
    run, output = Path(run), Path(output)
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} is no run: it holds no config.yaml; `electra-fast pretrain` makes a run")
    if output.exists() or output.is_symlink():
        raise ConfigError(f"{output} exists: choose a new folder")
    checkpoint = _find(run / "checkpoints", step)
    config = read_config(run / "config.yaml")
    corpora = [Corpus.open(path) for path in config.data.train_corpora]
    if content_hash(corpora) != read_state(checkpoint).get("corpus"):
        raise ConfigError(f"{', '.join(config.data.train_corpora)}: not what {checkpoint} was trained on")
    model = build_model(config, corpora[0].meta)
    state = load_weights(checkpoint, model)
    evaluation = last_evaluation(run / "metrics.jsonl", state["step"])

    aside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # of a call that was cut short
    try:
        aside.mkdir(parents=True)
        for folder in model.save_pretrained(aside):
            save_tokenizer(corpora[0].load_tokenizer(), folder)
        write_cards(aside, Facts(config, model, [corpus.meta for corpus in corpora], state["step"], evaluation))
        aside.rename(output)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    flush(output.parent)
    return state["step"]


def _find(folder: Path, step: int | None) -> Path:
    checkpoints = {int(path.name.removeprefix("step-")): path for path in list_checkpoints(folder)}
    if not checkpoints:
        raise ConfigError(f"{folder} holds no checkpoint: training.save_every says how often a run writes one")
    if step is None:
        step = max(checkpoints)
    if step not in checkpoints:
        raise ConfigError(f"{folder} holds no checkpoint of step {step}: it has {', '.join(map(str, checkpoints))}")
    return checkpoints[step]
