"""A stock model, its fast twin, and batches for both: what `electra-fast verify` and `electra-fast bench` compare."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from electra_fast.checkpoints import find_checkpoint, find_in_cache, load_model, read_architectures
from electra_fast.data.tokenizer import load_tokenizer
from electra_fast.inspection import read_paragraphs
from electra_fast.models.heads import IGNORED_LABEL
from electra_fast.models.optimize import optimize
from electra_fast.models.swap import SWAPS

CHOICES = 2  # of a multiple-choice question
# Stock models by the names that config.json gives them.
_CLASSES = {stock.__name__: stock for stock in SWAPS if issubclass(stock, PreTrainedModel)}
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_ADVICE = "give the folder of an ELECTRA or BERT checkpoint or of a run, or a model's name in the Hugging Face cache"

Arguments = dict[str, Tensor | int]


class Batch(NamedTuple):
    """Padded sequences."""

    input_ids: Tensor  # int64 [B, S]
    attention_mask: Tensor  # int64 [B, S]


def load_stock(name: str) -> tuple[PreTrainedModel, Path]:
    """transformers' own model in float32 on the CPU, in evaluation mode, and the folder it came from.

    Args:
        name: a checkpoint's folder, a run of ours, or the name of a model that the hub's cache holds.

    Raises:
        ValueError: there is no such model, it is neither ELECTRA nor BERT, or it is damaged.
    """
    folder = None if Path(name).exists() else find_in_cache(name)
    if folder is None:
        folder = find_checkpoint(Path(name), _ADVICE)
    architectures = read_architectures(folder)
    known = [architecture for architecture in architectures if architecture in _CLASSES]
    if not known:
        found = ", ".join(architectures) or "no known model"
        raise ValueError(f"{folder} holds {found}: expected an ELECTRA or BERT model of transformers")
    return load_model(_CLASSES[known[0]], folder, dtype=torch.float32), folder


def fast_twin(stock: PreTrainedModel) -> PreTrainedModel:
    """A copy with the same weights, made fast."""
    return optimize(copy.deepcopy(stock))


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises ValueError for a name that is no device here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    expected = f"--device must be auto, cpu, cuda or another device of this PyTorch; got {name!r}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(expected) from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch's word for a build without CUDA
        raise ValueError(f"{expected}: {str(error).partition(chr(10))[0]}") from error
    return device


def draw_seed(seed: int | None) -> int:
    """`seed`, or a fresh one."""
    return random.SystemRandom().randrange(2**31) if seed is None else seed


def check_length(config: PretrainedConfig, max_length: int | None) -> int:
    """`max_length`, or the default: 128 or the size of the position table. Raises ValueError if it is too large."""
    table = config.max_position_embeddings
    if max_length is None:
        return min(128, table)
    if not 2 <= max_length <= table:
        raise ValueError(f"--max_length must be between 2 and the position table's size ({table}); got {max_length}")
    return max_length


def check_positive(**options: int | None) -> None:
    """Raises ValueError for an option below 1."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1; got {value}")


def random_batch(
    config: PretrainedConfig, lengths: Sequence[int], generator: torch.Generator, *, left: bool = False
) -> Batch:
    """Random tokens, a sequence for each length, padded on the right or left."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    mask = mask.flip(1) if left else mask
    ids = torch.randint(0, config.vocab_size, mask.shape, generator=generator)
    return Batch(torch.where(mask == 1, ids, config.pad_token_id or 0), mask)


def read_batches(
    data: str, folder: Path, config: PretrainedConfig, *, batch_size: int, max_length: int, most: int
) -> list[Batch]:
    """The lines of a text file in their order, `batch_size` a batch, padded on the right; longer lines are cut.

    At most `most` batches, spread evenly over the file.

    Args:
        folder: that of the model, which holds the tokenizer.

    Raises:
        ValueError: the file holds no text, or there is no tokenizer that fits the model.
    """
    lines = read_paragraphs(data)
    if not has_tokenizer(folder):
        raise ValueError(
            f"{folder} holds no tokenizer ({' or '.join(_TOKENIZER_FILES)}): put it there, or leave out --data"
        )
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} entries and the model {config.vocab_size}: "
            "put the tokenizer there that the model was trained with"
        )
    starts = range(0, len(lines), batch_size)
    batches = []
    for start in starts[:: -(-len(starts) // most)]:
        encoded = tokenizer(
            lines[start : start + batch_size],
            truncation=True,
            max_length=max_length,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        batches.append(Batch(encoded["input_ids"], encoded["attention_mask"]))
    return batches


def has_tokenizer(folder: Path) -> bool:
    """Whether there is one to load; transformers would make an empty one."""
    return any((folder / file).is_file() for file in _TOKENIZER_FILES)


def inputs_of(model: PreTrainedModel, batch: Batch, *, with_mask: bool = True) -> Arguments:
    """The arguments of `model` for a batch; for multiple choice each sequence stands beside another, [B, 2, S]."""
    inputs = batch._asdict()
    if not with_mask:
        del inputs["attention_mask"]
    if is_multiple_choice(model):
        inputs = {name: torch.stack([value, *_others(value)], dim=1) for name, value in inputs.items()}
    return inputs


def _others(value: Tensor) -> list[Tensor]:
    return [value.roll(shift, 0) for shift in range(1, CHOICES)]


def labels_of(model: PreTrainedModel, batch: Batch, generator: torch.Generator) -> Arguments:
    """Random labels, as the head of `model` takes them; none for a model without a head."""
    ids, mask = batch
    rows, config = ids.shape[0], model.config

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    head = head_of(model)
    is_token = mask == 1
    is_masked = is_token & (torch.rand(ids.shape, generator=generator) < 0.15)
    is_masked[:, 0] |= is_token[:, 0]  # a mean over nothing is NaN
    masked = torch.where(is_masked, ids, IGNORED_LABEL)
    if head == "Model":
        return {}
    if head == "ForPreTraining" and config.model_type == "electra":
        return {"labels": integers(2, *ids.shape)}
    if head == "ForPreTraining":
        return {"labels": masked, "next_sentence_label": integers(2, rows)}
    if head == "ForMaskedLM":
        return {"labels": masked}
    if head == "ForTokenClassification":
        return {"labels": torch.where(is_token, integers(config.num_labels, *ids.shape), IGNORED_LABEL)}
    if head == "ForQuestionAnswering":
        first, length = is_token.int().argmax(dim=1), is_token.sum(dim=1)
        spans = (torch.rand(2, rows, generator=generator) * length).long() + first
        return {"start_positions": spans.amin(dim=0), "end_positions": spans.amax(dim=0)}
    if head == "ForMultipleChoice":
        return {"labels": integers(CHOICES, rows)}
    if head == "ForNextSentencePrediction":
        return {"labels": integers(2, rows)}
    if head == "ForSequenceClassification":
        if config.num_labels == 1 or config.problem_type == "regression":
            shape = (rows,) if config.num_labels == 1 else (rows, config.num_labels)
            return {"labels": torch.randn(shape, generator=generator)}
        if config.problem_type == "multi_label_classification":
            return {"labels": integers(2, rows, config.num_labels).float()}
        return {"labels": integers(config.num_labels, rows)}
    return {"labels": torch.where(is_token, ids, IGNORED_LABEL)}  # language models


def head_of(model: PreTrainedModel) -> str:
    """E.g. "ForMaskedLM"; "Model" for a bare encoder."""
    return type(model).__name__.removeprefix("Electra").removeprefix("Bert")


def is_multiple_choice(model: PreTrainedModel) -> bool:
    return head_of(model) == "ForMultipleChoice"


def packed(batch: Batch, labels: Arguments) -> tuple[Arguments, Arguments]:
    """A batch and its labels without the padding, as a padding-free collator of transformers lays them out."""
    is_token = batch.attention_mask == 1
    lengths = is_token.sum(dim=1)
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    inputs = {"input_ids": batch.input_ids[is_token].unsqueeze(0), "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    inputs |= {"max_length_q": longest, "max_length_k": longest}
    shape = is_token.shape
    return inputs, {
        name: value[is_token].unsqueeze(0) if value.shape == shape else value for name, value in labels.items()
    }


def describe(model: PreTrainedModel) -> str:
    """Class and size in words."""
    return f"{type(model).__name__} of {sum(map(Tensor.numel, model.parameters())):,} parameters"


def versions() -> str:
    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def on_device_of(model: PreTrainedModel, arguments: Arguments) -> Arguments:
    """The arguments where `model` is; floats in its dtype."""

    def move(value: Tensor | int) -> Tensor | int:
        if isinstance(value, int):
            return value
        return value.to(model.device, model.dtype if value.is_floating_point() else None)

    return {name: move(value) for name, value in arguments.items()}
