"""Datasets of the Hugging Face library `datasets`: a folder of `save_to_disk`, or a name, `hf://NAME[/config][:split]`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from electra_fast.data.readers.base import Progress
from electra_fast.data.readers.parquet import check_column, texts
from electra_fast.extras import require

PREFIX = "hf://"
ROWS = 256
_FILE = re.compile(r"hf://(datasets|buckets)/[^/]+/[^/]+/.")  # fsspec's names of single files


def is_dataset_name(path: object) -> bool:
    """Whether it is the `hf://` name of a dataset, not of a file in one (`hf://datasets/OWNER/NAME/FILE`)."""
    return isinstance(path, str) and path.startswith(PREFIX) and _FILE.match(path) is None


def is_dataset_folder(path: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote the folder."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


class HuggingFaceDataset:
    """A document a row, in the string column `text_field`. Rows that are null or blank are left out.

    A name is loaded from the library's cache, or downloaded into it; NAME may also be a folder of data files that
    begins with "." or "/". Without a split "train" is read, or the only one there is. The rows are memory-mapped.
    """

    def __init__(self, path: Path | str, text_field: str) -> None:
        datasets = require("datasets", extra="datasets", purpose="Hugging Face datasets")
        self.name = str(path)
        loaded = _load_name(datasets, self.name) if self.name.startswith(PREFIX) else _load_folder(datasets, self.name)
        check_column(loaded.data.schema, text_field, self.name)
        self._column = loaded.select_columns(text_field).with_format("arrow")
        self.size = self._column.data.nbytes

    def documents(self, progress: Progress) -> Iterator[str]:
        rows, row, told = len(self._column), 0, 0
        for batch in self._column.iter(ROWS):
            yield from texts(batch.column(0), self.name, row)
            row += len(batch)
            read = self.size * row // rows
            progress(read - told)
            told = read


def _load_folder(datasets: Any, name: str) -> Any:
    folder = Path(name)
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if is_dataset_folder(path))
        raise ValueError(f"{folder} holds the splits {', '.join(splits)}: name one, e.g. {folder / splits[0]}")
    try:
        return datasets.load_from_disk(name)
    except Exception as error:  # of a damaged file, datasets and pyarrow raise whatever comes
        raise ValueError(
            f"{folder} can't be loaded, a file of it is missing or damaged: {_first_line(error)}"
        ) from error


def parse_name(name: str) -> tuple[list[tuple[str, str | None]], str | None]:
    """The readings (name, config) of an `hf://` name, the likeliest first, and its split.

    "hf://a/b" is the dataset b of a or, with datasets of older days, the config b of a.

    Raises ValueError for a name of other than one to three parts.
    """
    place, _, split = name.removeprefix(PREFIX).partition(":")
    if place.startswith((".", "/")):
        return [(place, None)], split or None
    parts = place.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise ValueError(
            f"{name}: expected hf://NAME, hf://OWNER/NAME or hf://OWNER/NAME/CONFIG, and :SPLIT if need be"
        )
    readings: list[tuple[str, str | None]] = [("/".join(parts[:2]), "/".join(parts[2:]) or None)]
    if len(parts) == 2:
        readings.append((parts[0], parts[1]))
    return readings, split or None


def _load_name(datasets: Any, name: str) -> Any:
    readings, split = parse_name(name)
    reasons = []
    for path, config in readings:
        try:
            return _choose_split(datasets.load_dataset(path, config, split=split), name)
        except _SplitMissing as error:
            raise ValueError(str(error)) from error
        except Exception as error:  # its own, the hub's, the network's and pyarrow's
            reasons.append(_first_line(error))
            if isinstance(error, ConnectionError) and not datasets.config.HF_HUB_OFFLINE:
                break  # the other reading would wait for the network as long again
    raise ValueError(
        f"{name} can't be loaded: {reasons[0]} If it was not downloaded here before, this needs the network; "
        "else check its name, its config and its split"
    )


class _SplitMissing(Exception):
    pass


def _choose_split(loaded: Any, name: str) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    if "train" not in loaded and len(loaded) != 1:
        raise _SplitMissing(f"{name} holds the splits {', '.join(loaded)}: name one, e.g. {name}:{next(iter(loaded))}")
    return loaded.get("train") or next(iter(loaded.values()))


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
    return text + "."
