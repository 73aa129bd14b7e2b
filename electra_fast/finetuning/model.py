"""From a checkpoint to a model with the head of a task, and back to a folder that `load_finetuned` opens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from electra_fast.checkpoints import find_checkpoint, find_in_cache, load_model
from electra_fast.data.tokenizer import load_tokenizer
from electra_fast.finetuning.heads import HEADS
from electra_fast.finetuning.task import TASK_FILE, Task, load_task
from electra_fast.models import patch_transformers
from electra_fast.models.progress import hidden_progress_bars, no_loading_report

_ADVICE = "give the folder of a checkpoint or of a run, or a model's name in the Hugging Face cache"


class FineTuned(NamedTuple):
    """What a fine-tuned model's folder holds."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task


def find_pretrained(name: str) -> Path:
    """The folder of a checkpoint, of a run's discriminator or fine-tuned model, or of a model in the hub's cache.

    Raises:
        ValueError: there is none.
    """
    folder = None if Path(name).exists() else find_in_cache(name)
    return find_checkpoint(_of_run(Path(name)), _ADVICE) if folder is None else folder


def _of_run(folder: Path) -> Path:
    """The model of a fine-tuning run; what is none stays as it is."""
    return folder / "model" if (folder / "model" / TASK_FILE).is_file() else folder


def load_with_head(
    folder: Path, task: Task, *, seed: int, from_scratch: bool = False, **config: Any
) -> PreTrainedModel:
    """A fast model in training mode, float32, with pretrained encoder and a fresh head for `task`, drawn with `seed`.

    Args:
        folder: as `find_pretrained` gives it. The weights of a head that fits are taken too.
        from_scratch: random weights in the encoder also, for comparison.
        config: changes of the model's config, e.g. `hidden_dropout_prob`.

    Raises:
        ValueError: the encoder's weights are not all there, or damaged.
    """
    kind = HEADS[task.head]
    if kind.load is not None:
        return kind.load(folder, task, seed=seed, from_scratch=from_scratch, **config)
    settings = read_config(folder, **config)
    settings.problem_type = None  # of a task that the model was fine-tuned for before
    if task.labels is not None:
        settings.num_labels = len(task.labels)
        settings.id2label = dict(enumerate(task.labels))
        settings.label2id = {label: index for index, label in enumerate(task.labels)}
    elif task.head.partition("/")[0] == "sequence":
        settings.num_labels = 1  # regression
    elif task.head == "span":
        settings.num_labels = 2  # start and end, whatever the checkpoint was fine-tuned for before
    torch.manual_seed(seed)
    with patch_transformers(), hidden_progress_bars(), no_loading_report():
        cls = kind.model_class()
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
            _check_kind(cls, settings, folder)
        if from_scratch:
            build = cls._from_config if hasattr(cls, "_from_config") else cls.from_config
            return build(settings, dtype=torch.float32).train()
        try:
            model, report = cls.from_pretrained(
                folder,
                config=settings,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # a head with other labels is drawn anew
            )
        except (OSError, RuntimeError) as error:
            raise ValueError(f"can't read the model in {folder}: {error}") from error
    prefix = f"{model.base_model_prefix}."
    absent = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if lacks := sorted(key for key in absent if key.startswith(prefix)):
        raise ValueError(f"the model in {folder} lacks {lacks[0]}: it is damaged or of another kind")
    return model.train()


def _check_kind(cls: type[PreTrainedModel], config: PretrainedConfig, folder: Path) -> None:
    if not isinstance(config, cls.config_class):
        raise ValueError(
            f"the model in {folder} is of type {config.model_type}, and the original's head is for "
            f"{cls.config_class.model_type}: leave --head transformers"
        )


def read_config(folder: Path, **changes: Any) -> PretrainedConfig:
    """The config of a checkpoint, with changes. Raises ValueError where it is damaged."""
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, **changes)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise ValueError(f"can't read {folder / 'config.json'}: {error}") from error


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, folder: Path) -> None:
    """Raises ValueError for a tokenizer with more entries than the model."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} entries and the model {config.vocab_size}: "
            "put the tokenizer there that the model was trained with"
        )


def save_finetuned(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, folder: Path) -> None:
    """Write weights, config, tokenizer and `task.json`; stock transformers loads the folder too."""
    with hidden_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    task.save(folder)


def load_finetuned(folder: Path) -> FineTuned:
    """A model that was fine-tuned here, fast and in evaluation mode, with its tokenizer and task.

    Args:
        folder: a model's, or that of a fine-tuning run, which holds `model/`.

    Raises:
        ValueError: it holds none, or a damaged one.
    """
    folder = _of_run(folder)
    task = load_task(folder)
    kind = HEADS[task.head]
    with patch_transformers():
        model = kind.reopen(folder) if kind.reopen else load_model(kind.model_class(), folder, dtype=torch.float32)
    return FineTuned(model, load_tokenizer(folder), task)


def label_names(labels: Sequence[str]) -> str:
    """Labels as a message lists them."""
    return ", ".join(labels) if len(labels) <= 12 else f"{', '.join(labels[:12])}, ... ({len(labels)})"
