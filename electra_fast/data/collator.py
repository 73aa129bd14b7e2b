"""Examples of a tokenized dataset -> one packed batch, by transformers' convention for input without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED_LABEL = -100
_LABEL_NAMES = ("label", "label_ids")  # of datasets; the models say "labels"
_SPANS = ("start_positions", "end_positions")


@dataclass(frozen=True)
class PackedCollator:
    """Puts examples one after another into one row [1, T]: for transformers' Trainer or a DataLoader.

    Takes examples as a tokenizer and a dataset give them: `input_ids`; `token_type_ids`; `attention_mask`, whose zeros
    are left out; `label` or `labels`; `start_positions` and `end_positions`. Numbers, lists, arrays or tensors.

    Gives int64 `input_ids`, `position_ids` (from 0 in each sequence) and `token_type_ids` [1, T]; `cu_seq_lens_q` and
    `cu_seq_lens_k`, int32 [B + 1]; `max_length_q` and `max_length_k`, ints; and labels: [B] of one number an example,
    [1, T] of one integer a token, [B, L] of lists of floats (multi-label classification). Unlike transformers'
    `DataCollatorWithFlattening` it keeps the first label of each sequence, takes one label an example, and never makes
    labels of the tokens. `ElectraForCausalLM`, whose labels are shifted, needs that collator instead.

    The options give every batch the same shapes, as CUDA graphs need and torch.compile likes. Added tokens belong to no
    sequence, and all labels of what was added are -100.

    Args:
        num_tokens: T of every batch.
        pad_to_multiple_of: T becomes a multiple of this.
        num_sequences: B of every batch; added sequences are empty, and their results mean nothing.
        max_length: `max_length_q` of every batch; None: the longest sequence.
        pad_token_id: the id of added tokens.

    Raises:
        ValueError: examples that don't fit together or into the options.
    """

    num_tokens: int | None = None
    pad_to_multiple_of: int | None = None
    num_sequences: int | None = None
    max_length: int | None = None
    pad_token_id: int = 0

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        columns = _columns(features)
        if "input_ids" not in columns:
            raise ValueError(f"examples have no input_ids, only {', '.join(columns) or 'nothing'}")
        widths = [len(ids) if ids.dim() == 1 else None for ids in columns["input_ids"]]
        if None in widths:
            raise ValueError("input_ids of an example must be one list; for multiple choice use a padding collator")
        masks = columns.pop("attention_mask", None)
        kept = [torch.ones(width, dtype=torch.bool) for width in widths]
        if masks is not None:
            kept = [_of_length("attention_mask", mask, width) != 0 for mask, width in zip(masks, widths, strict=True)]
        lengths = [int(mask.sum()) for mask in kept]
        if "position_ids" not in columns:
            columns["position_ids"] = [F.pad(mask.cumsum(0), (1, 0))[:-1] for mask in kept]
        added_tokens, added_sequences = self._added(lengths)

        batch: dict[str, Any] = {}
        for name, values in columns.items():
            if all(value.dim() == 0 for value in values):
                if name in _SPANS:
                    values = [_place(int(value), mask) for value, mask in zip(values, kept, strict=True)]
                batch[name] = _with_added_rows(name, torch.stack(values), added_sequences)
            elif name == "labels" and values[0].is_floating_point():
                batch[name] = _with_added_rows(name, torch.stack(values), added_sequences)
            else:
                flat = torch.cat([_of_length(name, v, len(mask))[mask] for v, mask in zip(values, kept, strict=True)])
                fill = {"input_ids": self.pad_token_id, "labels": IGNORED_LABEL}.get(name, 0)
                batch[name] = F.pad(flat, (0, added_tokens), value=fill).unsqueeze(0)

        bounds = torch.tensor([0, *lengths, *[0] * added_sequences]).cumsum(0).to(torch.int32)
        longest = max(lengths) if self.max_length is None else self.max_length
        return batch | {
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": longest,
            "max_length_k": longest,
        }

    def _added(self, lengths: list[int]) -> tuple[int, int]:
        """How many tokens and how many sequences the options add."""
        used, longest = sum(lengths), max(lengths)
        if self.max_length is not None and longest > self.max_length:
            raise ValueError(
                f"an example of {longest} tokens is longer than max_length={self.max_length}: cut the text"
            )
        num_tokens = used if self.num_tokens is None else self.num_tokens
        if self.pad_to_multiple_of is not None:
            num_tokens += -num_tokens % self.pad_to_multiple_of
        if num_tokens < used:
            raise ValueError(f"{len(lengths)} examples of {used} tokens don't fit into num_tokens={self.num_tokens}")
        num_sequences = len(lengths) if self.num_sequences is None else self.num_sequences
        if num_sequences < len(lengths):
            raise ValueError(f"{len(lengths)} examples are more than num_sequences={self.num_sequences}")
        return num_tokens - used, num_sequences - len(lengths)


def _columns(features: Sequence[Mapping[str, Any]]) -> dict[str, list[Tensor]]:
    """Each column's value in every example: int64, or torch's default float type."""
    if not features:
        raise ValueError("a batch needs at least one example")
    columns = {}
    for name, first in features[0].items():
        if first is None or isinstance(first, str):  # as transformers' collators do
            continue
        if any(name not in feature for feature in features):
            raise ValueError(f"some examples have {name}, others don't")
        values = [torch.as_tensor(feature[name]) for feature in features]
        dtype = torch.get_default_dtype() if any(value.is_floating_point() for value in values) else torch.int64
        columns["labels" if name in _LABEL_NAMES else name] = [value.to(dtype) for value in values]
    return columns


def _of_length(name: str, value: Tensor, width: int) -> Tensor:
    if value.shape != (width,):
        raise ValueError(f"{name} of an example has shape {tuple(value.shape)}, its input_ids ({width},)")
    return value


def _place(position: int, kept: Tensor) -> Tensor:
    """Where the token at `position` is once padding is gone; beyond the end, which is no answer, if it is gone too."""
    if position < 0:
        return torch.tensor(0)  # as the models take it
    if position < len(kept) and kept[position]:
        return kept[:position].sum()
    return torch.tensor(len(kept))


def _with_added_rows(name: str, rows: Tensor, count: int) -> Tensor:
    if count == 0:
        return rows
    if rows.is_floating_point():
        raise ValueError(
            f"num_sequences: {name} are floats, of which no value is ignored by the loss of an added sequence"
        )
    return F.pad(rows, (0, count), value=IGNORED_LABEL)
