"""The examples of a run: what to train on, what to score, what only to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from electra_fast.finetuning.config import FinetuneConfig
from electra_fast.finetuning.task import Example, Task, is_labelled


@dataclass(frozen=True)
class Splits:
    """Examples by split, in the files' order.

    Attributes:
        train: to learn from.
        scored: with labels; models are compared by the first.
        predicted: without labels, or whose labels do not count.
    """

    train: list[Example]
    scored: dict[str, list[Example]]
    predicted: dict[str, list[Example]]

    @property
    def compared(self) -> str:
        """The split by which epochs, seeds and trials are compared."""
        return next(iter(self.scored))


def read_splits(task: Task, path: Path, config: FinetuneConfig) -> Splits:
    """The data of a folder or of one file, after `task.fit` has seen the training examples.

    Without a dev file a part of the training examples is held out.

    Raises:
        ValueError: about the file and row that is wrong; no training data; fewer examples than asked for.
    """
    files = {"train": path} if path.is_file() else task.files(path)
    if "train" not in files:
        raise ValueError(f"{path} holds no training data of {task.name}, only {', '.join(files)}")
    train = task.read(files["train"], "train")
    task.fit(train)
    others = {split: task.read(file, split) for split, file in files.items() if split != "train"}
    scored = {split: examples for split, examples in others.items() if is_labelled(split)}
    order = np.random.Generator(np.random.PCG64(config.split_seed)).permutation(len(train))
    if not scored:
        held_out = config.dev_examples or round(config.dev_fraction * len(train))
        if not 0 < held_out < len(train):
            raise ValueError(
                f"can't hold out {held_out:,} of the {len(train):,} examples in {files['train']}: give other "
                "dev_examples or dev_fraction, or a file of dev examples"
            )
        scored = {"dev": _chosen(train, order[:held_out])}
        order = order[held_out:]
    elif config.dev_examples is not None:
        raise ValueError(f"dev_examples holds out training examples, but {path} has a file of dev examples: drop one")
    wanted = config.train_examples or len(order)
    if wanted > len(order):
        raise ValueError(f"train_examples is {wanted:,}, and there are {len(order):,} in {files['train']}")
    predicted = {split: examples for split, examples in others.items() if split not in scored}
    return Splits(_chosen(train, order[:wanted]), scored, predicted)


def _chosen(examples: Sequence[Example], indices: np.ndarray) -> list[Example]:
    return [examples[index] for index in np.sort(indices)]
