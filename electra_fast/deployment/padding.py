"""Features, lists of ints as a tokenizer gives them, as the padded arrays that exported graphs take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Feature = dict[
    str, Any
]  # "input_ids" and, if not all 0, "token_type_ids": lists [n], of a multiple choice [choices][n]


def pad(features: Sequence[Feature], pad_token_id: int) -> dict[str, np.ndarray]:
    """`input_ids`, `attention_mask` and `token_type_ids`, int64 [B, S] or [B, choices, S], padded on the right."""
    rows = [_rows(feature["input_ids"]) for feature in features]
    shape = (len(rows), len(rows[0]), max(num_tokens(feature) for feature in features))
    padded = {
        "input_ids": np.full(shape, pad_token_id, np.int64),
        "attention_mask": np.zeros(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
    }
    for index, (feature, choices) in enumerate(zip(features, rows, strict=True)):
        types = _rows(feature["token_type_ids"]) if "token_type_ids" in feature else [[0] * len(ids) for ids in choices]
        for choice, (ids, of_type) in enumerate(zip(choices, types, strict=True)):
            padded["input_ids"][index, choice, : len(ids)] = ids
            padded["attention_mask"][index, choice, : len(ids)] = 1
            padded["token_type_ids"][index, choice, : len(ids)] = of_type
    if _is_choices(features[0]):
        return padded
    return {name: value[:, 0] for name, value in padded.items()}


def num_tokens(feature: Feature) -> int:
    """Of a feature; of the longest of its choices."""
    return max(map(len, _rows(feature["input_ids"])))


def _is_choices(feature: Feature) -> bool:
    return isinstance(feature["input_ids"][0], (list, tuple))


def _rows(ids: Sequence[Any]) -> Sequence[Sequence[int]]:
    return ids if isinstance(ids[0], (list, tuple)) else [ids]
