"""Hyperparameters by the Trainer's Optuna back end."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from electra_fast.extras import require
from electra_fast.files import write_whole
from electra_fast.finetuning.config import FinetuneConfig
from electra_fast.finetuning.results import table
from electra_fast.finetuning.trainer import FinetuneTrainer, NotFinite, Progress, make_arguments
from electra_fast.models.progress import hidden_progress_bars

if TYPE_CHECKING:
    import optuna

    from electra_fast.finetuning.train import Prepared

BATCH_SIZES = (16, 32, 64)
LAYER_DECAYS = (0.7, 0.8, 0.9, 1.0)
_STUDY = "finetune"
# Ours -> TrainingArguments' name.
_ARGUMENTS = {
    "learning_rate": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "layer_decay": "layer_decay",
}


def search_space(config: FinetuneConfig, sources: dict[str, str]) -> dict[str, Callable[[optuna.Trial], Any]]:
    """How a trial draws each setting that was not given.

    `learning_rate` from a third to three times the default, evenly in its logarithm; `epochs` half, once or twice the
    default; `batch_size` 16, 32 or 64; `layer_decay` 0.7, 0.8, 0.9 or 1.
    """
    rate, epochs = config.learning_rate, config.epochs
    sizes = [size for size in BATCH_SIZES if size % config.accumulation == 0]
    space = {
        "learning_rate": lambda trial: trial.suggest_float("learning_rate", rate / 3, rate * 3, log=True),
        "epochs": lambda trial: trial.suggest_categorical("epochs", [epochs / 2, epochs, epochs * 2]),
        "batch_size": lambda trial: trial.suggest_categorical("batch_size", sizes),
        "layer_decay": lambda trial: trial.suggest_categorical("layer_decay", LAYER_DECAYS),
    }
    fixed = {name for name in space if sources[name] == "given"}
    if config.max_steps is not None:
        fixed.add("epochs")
    if not sizes:
        fixed.add("batch_size")
    if len(fixed) == len(space):
        raise ValueError(f"nothing is left to search: {', '.join(space)} are all given")
    return {name: draw for name, draw in space.items() if name not in fixed}


def search(prepared: Prepared, output: Path, trials: int, *, progress: bool) -> Prepared:
    """Try `trials` settings, write `search.json` and `search.md`, and return `prepared` with the best.

    Each trial trains once, with the run's first seed, and is scored at its end. Trials that are done are kept in
    `output/search` and not done again; one whose loss is not finite counts as failed.

    Raises:
        ValueError: nothing to search, or every trial failed.
    """
    found = output / "search.json"
    if found.is_file():
        return _with_best(prepared, json.loads(found.read_text(encoding="utf-8"))["best"])
    optuna = require("optuna", extra="search", purpose="Searches")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    space = search_space(prepared.config, prepared.sources)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = output / "search"
    folder.mkdir(exist_ok=True)
    study = {
        "study_name": _STUDY,
        "storage": JournalStorage(JournalFileBackend(str(folder / "trials.log"))),
        "load_if_exists": True,
        "pruner": optuna.pruners.NopPruner(),
    }
    done = len(_tried(optuna.create_study(direction="maximize", **study)))
    # Of a search that goes on, another seed: the same one would draw the first trials again.
    study["sampler"] = optuna.samplers.TPESampler(seed=prepared.config.seed + done)
    if done < trials:
        _try(prepared, space, folder, study, trials - done, progress=progress)
    study.pop("load_if_exists")
    rows = _tried(optuna.load_study(**study))
    if not any(row["state"] == "complete" for row in rows):
        raise ValueError("no trial of the search had a finite loss: give a lower learning_rate")
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: row["score"])
    metric = f"{prepared.scored[0].name} {prepared.task.metric}"
    write_whole(output / "search.md", _to_markdown(rows, best, metric, list(space)))
    write_whole(found, json.dumps({"metric": metric, "best": best["settings"], "trials": rows}, indent=2) + "\n")
    return _with_best(prepared, best["settings"])


def _try(
    prepared: Prepared,
    space: dict[str, Callable[[optuna.Trial], Any]],
    folder: Path,
    study: dict[str, Any],
    trials: int,
    *,
    progress: bool,
) -> None:
    config = prepared.config

    def draw(trial: optuna.Trial) -> dict[str, Any]:
        values = {name: suggest(trial) for name, suggest in space.items()}
        if "batch_size" in values:
            values["batch_size"] //= config.accumulation
        return {_ARGUMENTS[name]: value for name, value in values.items()}

    arguments = make_arguments(config, folder, seed=config.seed)
    arguments.eval_strategy = arguments.save_strategy = "no"  # scored once, at the end
    shown = Progress("search", prepared.task.metric, show=progress)
    trainer = FinetuneTrainer(
        task=prepared.task,
        tokenizer=prepared.tokenizer,
        scored=prepared.scored[0],
        packed=config.packed,
        model_init=lambda: prepared.load_model(config.seed),
        args=arguments,
        train_dataset=prepared.train,
        callbacks=[shown],
    )
    with hidden_progress_bars(), closing(shown):
        try:
            trainer.hyperparameter_search(
                draw,
                compute_objective=lambda metrics: metrics[f"eval_{prepared.task.metric}"],
                n_trials=trials,
                direction="maximize",
                backend="optuna",
                catch=(NotFinite,),
                **study,
            )
        except ValueError as error:
            if "No trials are completed" not in str(error):  # which the caller tells in its own words
                raise


def _tried(study: optuna.Study) -> list[dict[str, Any]]:
    """The trials that ended, in their order."""
    return [
        {
            "trial": trial.number,
            "settings": trial.params,
            "score": trial.value,
            "state": trial.state.name.lower(),
            "seconds": trial.duration.total_seconds(),
        }
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished()
    ]


def _with_best(prepared: Prepared, best: dict[str, Any]) -> Prepared:
    sources = prepared.sources | dict.fromkeys(best, "the best of the search")
    return replace(prepared, config=replace(prepared.config, **best), sources=sources)


def _to_markdown(rows: list[dict[str, Any]], best: dict[str, Any], metric: str, names: list[str]) -> str:
    ranked = sorted(rows, key=lambda row: -1.0 if row["score"] is None else row["score"], reverse=True)
    cells = [
        [
            str(row["trial"]),
            "failed" if row["score"] is None else f"{row['score']:.2f}",
            *(f"{row['settings'].get(name, ''):.4g}" for name in names),
            f"{row['seconds']:,.1f}",
        ]
        for row in ranked
    ]
    chosen = ", ".join(f"{name} {value:.4g}" for name, value in best["settings"].items())
    head = f"# Search\n\nBest of {len(rows)}: trial {best['trial']}, {chosen}.\n\n"
    return head + table(["trial", metric, *names, "seconds"], cells) + "\n"
