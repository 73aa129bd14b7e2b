"""What a run computes: its parameters, and the floating point operations of each of its parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from electra_fast.data.corpus import CorpusMeta
from electra_fast.models import ElectraForJointPreTraining
from electra_fast.pretraining.build import build_model
from electra_fast.pretraining.config import ConfigError, PretrainConfig
from electra_fast.pretraining.phases import Phase, resolve_phases
from electra_fast.pretraining.sources import resolve_init
from electra_fast.pretraining.throughput import flops_of_sequences

BERT_VOCABULARY = 30522  # entries of bert-base-uncased, which the paper uses


@dataclass(frozen=True)
class Part:
    """Steps of a run that cost the same, each of full-length sequences.

    Attributes:
        objective: what is trained.
        max_length: tokens a sequence.
        tokens_per_step: of all GPUs together.
        steps: how many.
        flops_per_token: matrix products only, forward and twice that backward, as MFU counts them.
    """

    objective: str
    max_length: int
    tokens_per_step: int
    steps: int
    flops_per_token: float

    @property
    def flops_per_step(self) -> float:
        return self.flops_per_token * self.tokens_per_step

    @property
    def tokens(self) -> int:
        return self.tokens_per_step * self.steps

    @property
    def flops(self) -> float:
        return self.flops_per_step * self.steps


@dataclass(frozen=True)
class Work:
    """A run: its model, without weights, its parts in order, and their sums.

    `parameters` counts each once, `generator` and `discriminator` all of a tower, also what it shares.
    """

    model: ElectraForJointPreTraining
    vocab_size: int
    parameters: int
    generator: int
    discriminator: int
    parts: tuple[Part, ...]

    @property
    def steps(self) -> int:
        return sum(part.steps for part in self.parts)

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    @property
    def flops(self) -> float:
        return sum(part.flops for part in self.parts)


def work_of(config: PretrainConfig, *, vocab_size: int = BERT_VOCABULARY, steps_per_epoch: float | None = None) -> Work:
    """The work of a run that stops nowhere early and whose sequences are all of full length.

    Args:
        config: the run; of weights that it starts from only the sizes are read.
        vocab_size: entries of the vocabulary.
        steps_per_epoch: of a pass over the corpus, where phases or turns are counted in passes.

    Raises:
        ConfigError: the schedule counts passes over a corpus that is not known; sizes that can't be.
    """
    if steps_per_epoch is None:
        _check_no_epochs(config)
    config = resolve_init(config)
    model = meta_model(config, vocab_size)
    parts: list[Part] = []
    for objective, stage, steps in _runs(config, steps_per_epoch):
        length, tokens = config.data.stages()[stage].max_length, tokens_per_step(config, stage)
        flops = flops_of_sequences(model, [length], objective) / length
        part = Part(objective, length, tokens, steps, flops)
        if steps:
            parts.append(part)
    counts = [sum(p.numel() for p in each.parameters()) for each in (model, model.generator, model.discriminator)]
    return Work(model, vocab_size, *counts, tuple(parts))


def meta_model(config: PretrainConfig, vocab_size: int) -> ElectraForJointPreTraining:
    """The joint model of a run without memory for its weights."""
    if vocab_size < 5:
        raise ConfigError(f"vocab_size must be at least 5, for the special tokens; got {vocab_size}")
    with torch.device("meta"):
        return build_model(config, made_up_corpus(vocab_size))


def made_up_corpus(vocab_size: int) -> CorpusMeta:
    """What a model must know of a corpus where there is none: vocabulary and special tokens."""
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 4}
    counts = {"documents": 0, "tokens": 0, "text_bytes": 0, "duplicate_documents": None, "duplicate_tokens": None}
    return CorpusMeta(
        tokenizer_sha256="", vocab_size=vocab_size, dtype="uint16", shards=(), offsets_sha256="", **special, **counts
    )


def tokens_per_step(config: PretrainConfig, stage: int) -> int:
    """Tokens a step of a stage of the curriculum, of full-length sequences."""
    size = config.data.stages()[stage]
    return size.batch_tokens or size.batch_size * size.max_length


def _check_no_epochs(config: PretrainConfig) -> None:
    for index, phase in enumerate(config.phases):
        if phase.epochs is not None:
            key = f"schedule[{index}].epochs"
        elif phase.objective == "alternate" and phase.turn_steps is None:
            key = f"schedule[{index}].turn_steps (null: an epoch)"
        else:
            continue
        raise ConfigError(f"{key} counts passes over a corpus: give it with --data.train, or give steps instead")


def _runs(config: PretrainConfig, steps_per_epoch: float | None) -> Iterator[tuple[str, int, int]]:
    """Objective, stage of the curriculum, and steps of each part of the run."""
    start = 0
    for phase in resolve_phases(config, steps_per_epoch or math.inf):
        for stage, first, last in _stages_within(config, start, start + phase.steps):
            yield from _by_objective(phase, stage, first - start, last - start)
        start += phase.steps


def _stages_within(config: PretrainConfig, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Stages of the curriculum that lie in steps [start, end) of the run, each with its first step and its end."""
    begins = 0
    for number, stage in enumerate(config.data.stages()):
        ends = math.inf if stage.steps is None else begins + stage.steps
        first, last = max(start, begins), min(end, ends)
        if first < last:
            yield number, int(first), int(last)
        begins = ends


def _by_objective(phase: Phase, stage: int, first: int, last: int) -> Iterator[tuple[str, int, int]]:
    if phase.objective != "alternate":
        yield phase.objective, stage, last - first
        return
    of_generator = _generator_steps(phase.turn_steps, last) - _generator_steps(phase.turn_steps, first)
    yield "generator", stage, of_generator
    yield "discriminator", stage, last - first - of_generator


def _generator_steps(turn: float, steps: int) -> int:
    """How many of the first `steps` of a phase of turns are the generator's, whose turn is first."""
    pairs, rest = divmod(steps, 2 * turn)
    return round(pairs * turn + min(rest, turn))
