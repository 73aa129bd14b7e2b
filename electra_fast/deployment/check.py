"""Is an exported model what the model is? Both on the same inputs, of many lengths and batch sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from electra_fast.deployment.padding import Feature, num_tokens, pad
from electra_fast.deployment.runtime import Deployed
from electra_fast.inspection import read_paragraphs
from electra_fast.twins import CHOICES, is_multiple_choice

ALLOWED = 1e-4  # in float32, times the largest output where that is above 1
TEXTS = 200
_BATCH_SIZES = (1, 2, 3, 8, 16)
_LONGEST_DRAWN = 128


@dataclass(frozen=True)
class Check:
    """What the comparison found.

    Attributes:
        source: where the inputs come from.
        sequences: how many.
        shortest, longest: in tokens.
        largest_difference: of an output at a token that is no padding.
        largest_output: of the model's, in absolute value.
        relative_difference: root mean square of the differences over the standard deviation of the model's outputs.
    """

    source: str
    sequences: int
    shortest: int
    longest: int
    largest_difference: float
    largest_output: float
    relative_difference: float

    @property
    def allowed(self) -> float:
        """In float32."""
        return ALLOWED * max(1.0, self.largest_output)


def random_features(model: PreTrainedModel, longest: int, seed: int, count: int = 32) -> list[Feature]:
    """Random tokens in sequences of 1 to 128 tokens, and one of `longest`."""
    g = np.random.default_rng(seed)
    lengths = [longest, *g.integers(1, min(_LONGEST_DRAWN, longest) + 1, size=count - 1).tolist()]
    kinds = max(1, model.config.type_vocab_size)

    def draw(length: int) -> Feature:
        ids, types = g.integers(0, model.config.vocab_size, length), g.integers(0, kinds, length)
        return {"input_ids": ids.tolist(), "token_type_ids": types.tolist()}

    if not is_multiple_choice(model):
        return [draw(length) for length in lengths]
    questions = ([draw(length) for _ in range(CHOICES)] for length in lengths)
    return [{name: [choice[name] for choice in choices] for name in choices[0]} for choices in questions]


def text_features(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path, longest: int, count: int = TEXTS
) -> list[Feature]:
    """At most `count` lines of a UTF-8 file, spread evenly over it; of a multiple choice, each line with the next.

    Raises:
        ValueError: the file holds no text.
    """
    lines = read_paragraphs(file)
    lines = lines[:: -(-len(lines) // count)]
    encoded = tokenizer(lines, truncation=True, max_length=longest, return_attention_mask=False)
    features = [{name: encoded[name][index] for name in encoded} for index in range(len(lines))]
    if not is_multiple_choice(model):
        return features
    pairs = zip(features, features[1:] + features[:1], strict=True)
    return [{name: [choice[name] for choice in pair] for name in pair[0]} for pair in pairs]


def compare(model: PreTrainedModel, deployed: Deployed, features: Sequence[Feature], source: str) -> Check:
    """Run both on `features` in batches of 1 to 16."""
    differences, outputs = [], []
    for batch in _batches(features):
        inputs = pad(batch, deployed.manifest.pad_token_id)
        expected, found = _reference(model, inputs), deployed(**inputs)
        for port in deployed.manifest.outputs:
            is_token = _is_token(port.shape, inputs["attention_mask"])
            want = expected[port.name][is_token].astype(np.float64)
            differences.append((found[port.name][is_token] - want).ravel())
            outputs.append(want.ravel())
    difference, output = np.concatenate(differences), np.concatenate(outputs)
    largest_output = float(np.abs(output).max())
    lengths = [num_tokens(feature) for feature in features]
    return Check(
        source,
        len(features),
        min(lengths),
        max(lengths),
        float(np.abs(difference).max()),
        largest_output,
        float(np.sqrt(np.square(difference).mean())) / (float(output.std()) or largest_output or 1.0),
    )


def raise_if_wrong(check: Check, *, exact: bool) -> None:
    """Raises ValueError where the two differ by more than rounding; where not `exact`, where they have nothing in
    common."""
    # Written so that NaN fails.
    if exact and not check.largest_difference <= check.allowed:
        raise ValueError(
            f"the exported model is not the model: on {check.source} an output differs by "
            f"{check.largest_difference:.2g}, allowed {check.allowed:.2g}; nothing was written. Please report it, with "
            "the model's config.json and the versions that `electra-fast info` shows"
        )
    if not exact and not check.relative_difference < 1:
        raise ValueError(
            f"8 bits are too few for this model: on {check.source} its outputs differ by "
            f"{check.relative_difference:.0%} of their own spread; nothing was written. Export it with --format onnx, "
            "or try --weight_bits 7"
        )


def _batches(features: Sequence[Feature]) -> Iterator[Sequence[Feature]]:
    start = 0
    for size in cycle(_BATCH_SIZES):
        if start >= len(features):
            return
        yield features[start : start + size]
        start += size


def _reference(model: PreTrainedModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        outputs: Any = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items() if torch.is_tensor(value)}


def _is_token(shape: tuple[int | str, ...], mask: np.ndarray) -> Any:
    """What selects the real tokens of an output; all of it where it has no axis of tokens."""
    return mask == 1 if "length" in shape else ...
