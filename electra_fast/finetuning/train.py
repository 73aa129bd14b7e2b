"""Fine-tuning: read, train a seed after the other, evaluate, and leave the best model and the results."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from electra_fast.data.tokenizer import load_tokenizer
from electra_fast.extras import require
from electra_fast.files import write_whole
from electra_fast.finetuning.config import FinetuneConfig, resolve, size_of
from electra_fast.finetuning.data import Splits, read_splits
from electra_fast.finetuning.heads import choose_head
from electra_fast.finetuning.inference import num_tokens, predict
from electra_fast.finetuning.model import (
    check_tokenizer,
    find_pretrained,
    load_with_head,
    read_config,
    save_finetuned,
)
from electra_fast.finetuning.output import claim_output
from electra_fast.finetuning.results import Result, best_seed, device_name, summarize, versions, write_results
from electra_fast.finetuning.search import search
from electra_fast.finetuning.task import Feature, Prediction, Task, task_path
from electra_fast.finetuning.trainer import (
    FinetuneTrainer,
    Progress,
    Scored,
    Stopping,
    make_arguments,
    predict_and_score,
)
from electra_fast.models.progress import hidden_progress_bars
from electra_fast.pretraining.runtime import deferred_signals
from electra_fast.twins import choose_device


class Interrupted(Exception):
    """A signal stopped the run after a checkpoint was saved: `--resume` goes on."""


@dataclass
class Prepared:
    """What all seeds, and all trials of a search, share."""

    task: Task
    folder: Path  # of the pretrained model
    tokenizer: PreTrainedTokenizerBase
    config: FinetuneConfig  # resolved
    sources: dict[str, str]
    size: str
    splits: Splits
    train: list[Feature]
    scored: list[Scored]
    lowered: list[str]  # what is said of lengths that the model has no positions for

    def load_model(self, seed: int) -> Any:
        """A fresh head, drawn with `seed`, on the pretrained encoder."""
        dropout = self.config.dropout
        return load_with_head(
            self.folder,
            self.task,
            seed=seed,
            from_scratch=self.config.from_scratch,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )


def finetune(
    task: Task,
    model: str,
    data: Path,
    output: Path,
    config: FinetuneConfig,
    *,
    trials: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Result:
    """Train `config.seeds` models and write into `output`: `model/` (the best), `results.json`, `results.md`,
    `predictions/`, `submission/` and, while it runs, checkpoints.

    Args:
        task: its options set; `fit` is called here.
        model: a checkpoint's folder, a run's, or a name in the Hugging Face cache.
        data: a folder with the task's files, or one file, of which a part is held out.
        trials: search for hyperparameters first, with so many trials: see `search.search_space`.
        resume: go on with the run that is in `output`: seeds that are done stay, one that was cut short goes on from
            its checkpoint, to the weights of a run that was not.
        overwrite: delete it instead.
        progress: show how far it is.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: about data, model, settings or the output folder.
        Interrupted: by ctrl-C or SIGTERM, after a checkpoint.
    """
    prepared = prepare(task, model, data, config)
    settings = run_settings(prepared, model, data, config) | {"trials": trials}
    claim_output(output, settings, resume=resume, overwrite=overwrite)
    if progress:
        print(describe(prepared), flush=True)
    if trials:
        prepared = search(prepared, output, trials, progress=progress)
        if progress:
            print(f"best of the search: {describe(prepared).splitlines()[1].partition(': ')[2]}", flush=True)
    results = []
    for seed in range(config.seed, config.seed + config.seeds):
        folder = output / "seeds" / f"seed-{seed}"
        done = _read_result(folder)
        results.append(done or _train_seed(prepared, seed, folder, progress=progress))
        _keep_the_best(output, results, prepared)
    result = _result(prepared, model, data, results)
    write_results(output, result)
    return result


def prepare(task: Task, model: str, data: Path, config: FinetuneConfig) -> Prepared:
    """Read and encode everything, so that mistakes in it show before anything is trained.

    Raises:
        ValueError: about data, model or settings.
    """
    require("accelerate", extra="finetune", purpose="Fine-tuning runs")
    choose_head(task, config.head)
    folder = find_pretrained(model)
    model_config = read_config(folder)
    encoder = getattr(model_config, "encoder", model_config)
    lowered = _limit_length(task, encoder)
    resolved, sources = resolve(config, encoder.hidden_size, task)
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer, encoder, folder)
    choose_device(config.device)
    splits = read_splits(task, data, config)
    train = task.encode(splits.train, tokenizer, training=True)
    if not train:
        raise ValueError(f"nothing of {data} is left to train on once it is encoded: raise max_length")
    scored = [
        Scored(name, examples, task.encode(examples, tokenizer, training=False))
        for name, examples in splits.scored.items()
    ]
    return Prepared(
        task, folder, tokenizer, resolved, sources, size_of(encoder.hidden_size).name, splits, train, scored, lowered
    )


def _limit_length(task: Task, config: PretrainedConfig) -> list[str]:
    """Make `max_length`, and that of what is written, at most what the model has positions for; a line for each."""
    if task.max_length < 3:
        raise ValueError(f"max_length must be 3 or more: [CLS], a token and [SEP]; got {task.max_length}")
    lowered = []
    for name in ("max_length", "max_target_length"):
        wanted, most = getattr(task, name, 0), config.max_position_embeddings
        if wanted > most:
            setattr(task, name, most)
            lowered.append(f"{name} {most} instead of {wanted}: the model has no more positions")
    return lowered


def run_settings(prepared: Prepared, model: str, data: Path, config: FinetuneConfig) -> dict[str, Any]:
    """What `settings.json` holds, and a resumed run must share."""
    task = prepared.task
    return {
        "task": task_path(type(task)),
        "model": model,
        "data": str(data),
        "options": asdict(task),
        "examples": _counts(prepared),
        "config": asdict(config),
    }


def _counts(prepared: Prepared) -> dict[str, int]:
    splits = prepared.splits
    return {
        "train": len(splits.train),
        **{name: len(rows) for name, rows in (splits.scored | splits.predicted).items()},
    }


def describe(prepared: Prepared) -> str:
    """The lines that open a run."""
    config, counts = prepared.config, _counts(prepared)
    examples = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    tokens = sum(map(num_tokens, prepared.train)) / len(prepared.train)
    length = f"max_steps {config.max_steps:,}" if config.max_steps is not None else f"epochs {config.epochs:g}"
    return "\n".join(
        (
            f"{prepared.task.name}: examples: {examples}; {tokens:.1f} tokens each in training",
            f"{prepared.folder}: {prepared.size} by the paper's sizes: learning_rate {config.learning_rate:g}, "
            f"layer_decay {config.layer_decay:g}, batch_size {config.batch_size}, {length}, seeds {config.seeds}",
            *prepared.lowered,
        )
    )


def _train_seed(prepared: Prepared, seed: int, folder: Path, *, progress: bool) -> Result:
    """Train one model, or go on with it, evaluate it, and write its folder; `result.json` last of all."""
    config, task = prepared.config, prepared.task
    checkpoints = folder / "checkpoints"
    checkpoint = _last_checkpoint(checkpoints)
    shown = Progress(f"seed {seed}", task.metric, show=progress)
    with deferred_signals() as received, closing(shown):
        trainer = FinetuneTrainer(
            task=task,
            tokenizer=prepared.tokenizer,
            scored=prepared.scored[0],
            packed=config.packed,
            model=prepared.load_model(seed),
            args=make_arguments(config, checkpoints, seed=seed),
            train_dataset=prepared.train,
            callbacks=[shown, Stopping(received)],
        )
        start = time.perf_counter()
        with hidden_progress_bars():
            trained = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        seconds = time.perf_counter() - start - trainer.evaluation_seconds
    if received and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(f"stopped by {received[0]} after step {trainer.state.global_step:,} of seed {seed}")
    metrics, predictions = _evaluate(trainer, prepared)
    _write_predictions(folder, task, predictions)
    save_finetuned(trainer.model, prepared.tokenizer, task, folder / "model")
    evaluations = [
        {"step": row["step"], "epoch": row["epoch"]} | {k[5:]: v for k, v in row.items() if k.startswith("eval_")}
        for row in trainer.state.log_history
        if f"eval_{task.metric}" in row
    ]
    result = {
        "seed": seed,
        "metrics": metrics,
        "train_loss": trained.training_loss,
        "steps": trainer.state.global_step,
        "evaluations": evaluations,
        "train_seconds": seconds,
        "evaluation_seconds": trainer.evaluation_seconds,
        "tokens": int(trainer.tokens),
        "tokens_per_second": int(trainer.tokens) / seconds,
        "resumed": checkpoint is not None,
        "device": device_name(trainer.args.device),
    }
    write_whole(folder / "result.json", json.dumps(result, indent=2) + "\n")
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def _evaluate(
    trainer: FinetuneTrainer, prepared: Prepared
) -> tuple[dict[str, dict[str, float]], dict[str, list[Prediction]]]:
    """Metrics of every split with labels, and predictions of all but the training examples."""
    metrics, predictions = {}, {}
    for scored in prepared.scored:
        if scored is trainer.scored and trainer.latest is not None and trainer.latest[0] == trainer.state.global_step:
            predictions[scored.name], metrics[scored.name] = trainer.latest[1:]  # just evaluated
        else:
            predictions[scored.name], metrics[scored.name] = predict_and_score(
                trainer.model, prepared.tokenizer, prepared.task, scored
            )
    task = prepared.task
    for split, examples in prepared.splits.predicted.items():
        features = task.encode(examples, prepared.tokenizer, training=False)
        predictions[split] = predict(trainer.model, prepared.tokenizer, task, examples, features)
    return metrics, predictions


def _write_predictions(folder: Path, task: Task, predictions: dict[str, list[Prediction]]) -> None:
    """`predictions/SPLIT.jsonl`, and `submission/` where the task's leaderboard takes a file."""
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    for split, rows in predictions.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_whole(folder / "predictions" / f"{split}.jsonl", lines)
        for name, text in task.submission(split, rows).items():
            (folder / "submission").mkdir(exist_ok=True)
            write_whole(folder / "submission" / name, text)


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest whole one; the Trainer writes a checkpoint's state last."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return path
        except (FileNotFoundError, json.JSONDecodeError):  # cut short while it was written
            shutil.rmtree(path)
    return None


def _read_result(folder: Path) -> Result | None:
    file = folder / "result.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged: {error}; --overwrite the run") from error


def _keep_the_best(output: Path, results: Sequence[Result], prepared: Prepared) -> None:
    """Make the best seed's model and predictions those of the run, and delete the models of the others."""
    best = best_seed(results, prepared.splits.compared, prepared.task.metric)["seed"]
    for result in results:
        folder = output / "seeds" / f"seed-{result['seed']}"
        if result["seed"] != best:
            shutil.rmtree(folder / "model", ignore_errors=True)
            continue
        for name in ("predictions", "submission"):
            if (folder / name).is_dir():
                shutil.copytree(folder / name, output / name, dirs_exist_ok=True)
        if (folder / "model").is_dir():  # else it is there already
            shutil.rmtree(output / "model", ignore_errors=True)
            (folder / "model").rename(output / "model")


def _result(prepared: Prepared, model: str, data: Path, seeds: list[Result]) -> Result:
    task, compared = prepared.task, prepared.splits.compared
    return {
        "task": task_path(type(task)),
        "metric": task.metric,
        "compared": compared,
        "model": model,
        "data": str(data),
        "size": prepared.size,
        "examples": _counts(prepared),
        "summary": summarize(seeds),
        "best_seed": best_seed(seeds, compared, task.metric)["seed"],
        "seeds": seeds,
        "settings": asdict(prepared.config),
        "sources": prepared.sources,
        "task_options": asdict(task),
        "versions": versions(),
        "device": seeds[-1]["device"],
    }
