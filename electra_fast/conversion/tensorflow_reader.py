"""A checkpoint of TensorFlow as a mapping from names to arrays, each read when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from electra_fast.extras import require


@dataclass(frozen=True)
class StoredArray:
    """A variable in a checkpoint's files; `np.asarray` reads it."""

    reader: Any
    prefix: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        try:
            return np.asarray(self.reader.get_tensor(self.name), dtype=dtype)
        except Exception as error:  # of a damaged file TensorFlow raises whatever comes, IndexError too
            raise _damaged(self.prefix, error) from error


def read_tensorflow(prefix: Path) -> Mapping[str, StoredArray]:
    """The variables of the checkpoint whose files begin with `prefix`.

    Raises:
        ValueError: TensorFlow is not installed, or the checkpoint is damaged, which may show first when an array is
            asked for.
    """
    # Read when it is imported: else it tells on standard error what the CPU can do, which no reading needs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    tensorflow = require("tensorflow", extra="tensorflow", purpose="Checkpoints of TensorFlow")
    try:
        reader = tensorflow.train.load_checkpoint(str(prefix))
        dtypes = reader.get_variable_to_dtype_map()
        shapes = reader.get_variable_to_shape_map()
    except Exception as error:  # as above
        raise _damaged(prefix, error) from error
    return {
        name: StoredArray(reader, prefix, name, tuple(shape), np.dtype(dtypes[name].as_numpy_dtype))
        for name, shape in shapes.items()
    }


def _damaged(prefix: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(f"{prefix} can't be read, a file of it is missing or damaged: {reason}")
