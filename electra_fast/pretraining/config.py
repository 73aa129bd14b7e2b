"""What a pretraining run is made of: nested dataclasses, read from YAML and overridden from the command line."""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml

from electra_fast.arguments import nearest
from electra_fast.data.remote import is_url

Section = TypeVar("Section")


class ConfigError(ValueError):
    """A setting the user can mend; the message says which and how."""


MASK_UNITS = ("token", "word", "span", "entity")  # as in data/loader.py, which this module need not import
COUNT = "between 1 and 2**31 - 1"  # what tensors' sizes and int32 tables can hold


def _is_count(value: int) -> bool:
    return 1 <= value < 2**31


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _check(condition: bool, key: str, value: Any, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{key} must be {expected}; got {reprlib.repr(value)}")


def _check_path(key: str, path: str) -> None:
    """A path the system can be asked about; whether there is something is for whoever opens it."""
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    _check(possible, key, path, "a path: it holds a character that no file's name can hold")


_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def _check_sizes(section: str, sizes: TowerConfig | ModelConfig, names: Sequence[str]) -> None:
    """Sizes that are null are still to be found in the weights that `init` names."""
    for name in names:
        value = getattr(sizes, name)
        _check(value is None or _is_count(value), f"{section}.{name}", value, f"{COUNT}, or null")
    width, heads = sizes.hidden_size, sizes.num_attention_heads
    fits = width is None or heads is None or width % heads == 0
    _check(fits, f"{section}.hidden_size", width, f"a multiple of num_attention_heads ({heads})")


@dataclass
class TowerConfig:
    """The generator's size; everything not named here is shared with the discriminator's settings.

    Sizes that are null are those of the checkpoint that it starts from (`init`). Without one they are, of a
    discriminator that starts from one, a third of its heads, at most 4, as wide as its own, and its depth; else
    ELECTRA-Small's: 64, 12, 1 and 256.

    Args:
        hidden_size: width of the hidden states.
        num_hidden_layers: transformer layers.
        num_attention_heads: heads of each layer; they divide hidden_size.
        intermediate_size: width of the feed-forward network.
        embedding_size: width of its embeddings; null: the discriminator's, which it must be unless model.tie is untied.
    """

    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    embedding_size: int | None = None

    def __post_init__(self) -> None:
        _check_sizes("model.generator", self, (*_SIZES, "embedding_size"))


@dataclass
class ModelConfig:
    """The two towers. The vocabulary is the tokenizer's.

    Sizes that are null are those of the checkpoint that the run starts from (`init`), else ELECTRA-Small's.

    Args:
        embedding_size: width of the embeddings of both towers; a projection follows where it is not hidden_size. Null:
            the checkpoint's, else 128.
        hidden_size: width of the discriminator's hidden states; null: the checkpoint's, else 256.
        num_hidden_layers: the discriminator's layers; null: the checkpoint's, else 12.
        num_attention_heads: heads of each layer; they divide hidden_size. Null: the checkpoint's, else 4.
        intermediate_size: width of the discriminator's feed-forward network; null: the checkpoint's, else 1024.
        generator: the generator's size.
        max_position_embeddings: longest sequence the position table holds; null: the checkpoint's, else 512. Another
            number than the checkpoint's: see init.positions.
        type_vocab_size: token types; null: the checkpoint's, else 2.
        hidden_act: activation of the feed-forward networks, as transformers calls it; null: the checkpoint's, else
            gelu, the only one with kernels of ours.
        layer_norm_eps: added to the variance in LayerNorm; null: the checkpoint's, else 1e-12.
        hidden_dropout_prob: dropout of embeddings and layers.
        attention_probs_dropout_prob: dropout of the attention probabilities.
        initializer_range: deviation of the truncated normal that initialises matrices.
        glorot: Glorot-uniform embedding projection and RTD output layer, as in the original; false: truncated normal.
        tie: embeddings "shared" between the towers, "untied", "all" (the whole encoder), or "gdes" (the discriminator's
            follow the generator's and add a difference of their own).
    """

    embedding_size: int | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    generator: TowerConfig = field(default_factory=TowerConfig)
    max_position_embeddings: int | None = None
    type_vocab_size: int | None = None
    hidden_act: str | None = None
    layer_norm_eps: float | None = None
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    glorot: bool = True
    tie: str = "shared"

    def __post_init__(self) -> None:
        _check_sizes("model", self, ("embedding_size", *_SIZES, "max_position_embeddings", "type_vocab_size"))
        eps = self.layer_norm_eps
        _check(eps is None or _is_positive(eps), "model.layer_norm_eps", eps, "positive, or null")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            _check(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "in [0, 1)")
        _check(_is_positive(self.initializer_range), "model.initializer_range", self.initializer_range, "positive")
        _check(self.tie in ("shared", "untied", "all", "gdes"), "model.tie", self.tie, "shared, untied, all or gdes")

    def filled(self) -> ModelConfig:
        """With ELECTRA-Small's sizes, of the paper's table 6, and the original's other values where there is null."""
        generator = _filled(self.generator, _SMALL_GENERATOR)
        model = _filled(replace(self, generator=generator), _SMALL)
        return replace(model, generator=_filled(generator, {"embedding_size": model.embedding_size}))


_SMALL_GENERATOR = dict(zip(_SIZES, (64, 12, 1, 256), strict=True))
_SMALL = dict(zip(_SIZES, (256, 12, 4, 1024), strict=True)) | {
    "embedding_size": 128,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}


def _filled(section: Section, values: Mapping[str, Any]) -> Section:
    return replace(section, **{name: value for name, value in values.items() if getattr(section, name) is None})


POSITIONS = ("repeat", "interpolate", "fresh")
NEW_TOKENS = ("pieces", "mean", "random")
EMBEDDINGS = ("random", "cooccurrence")


@dataclass
class InitConfig:
    """Weights to start from. They are read once, at step 0: a resumed run goes on from its own checkpoints.

    Args:
        run: folder of a finished run, or another one with `discriminator` and `generator` in it, as `convert` writes:
            both towers, and what else the run had; null: none.
        discriminator: folder of an ELECTRA or BERT checkpoint with safetensors, or of a run, for the discriminator;
            null: it starts fresh but for the embeddings, which are the generator's.
        generator: the same for the generator.
        positions: a longer position table is the checkpoint's again and again (repeat: nothing changes for short
            texts), stretched by linear interpolation (interpolate), or goes on with fresh rows (fresh).
        new_tokens: a token that the checkpoint's vocabulary lacks starts as the mean of the pieces that its tokenizer
            cuts the token into (pieces), as the mean of all tokens (mean), or normally distributed like them (random).
        sha256: content hash that the weights must have; null: any. The run's config.yaml says which they had.
        embeddings: word embeddings of a run without a checkpoint are drawn at random (random), or start from counts of
            which tokens stand near which in the training data (cooccurrence; needs electra-fast[finetune]), which takes
            a minute for 30 million tokens and pays in runs of minutes.
    """

    run: str | None = None
    discriminator: str | None = None
    generator: str | None = None
    positions: str = "repeat"
    new_tokens: str = "pieces"
    sha256: str | None = None
    embeddings: str = "random"

    def __post_init__(self) -> None:
        for name in ("run", "discriminator", "generator"):
            _check(getattr(self, name) != "", f"init.{name}", getattr(self, name), "a folder, or null")
            _check_path(f"init.{name}", getattr(self, name) or "")
        alone = self.run is None or (self.discriminator is None and self.generator is None)
        _check(alone, "init.run", self.run, "null where init.discriminator or init.generator is given")
        _check(self.positions in POSITIONS, "init.positions", self.positions, _one_of(POSITIONS))
        _check(self.new_tokens in NEW_TOKENS, "init.new_tokens", self.new_tokens, _one_of(NEW_TOKENS))
        known = self.sha256 is None or re.fullmatch("[0-9a-f]{64}", self.sha256) is not None
        _check(known, "init.sha256", self.sha256, "64 hexadecimal digits, or null")
        _check(self.embeddings in EMBEDDINGS, "init.embeddings", self.embeddings, _one_of(EMBEDDINGS))
        fits = self.embeddings == "random" or not self.is_given
        _check(fits, "init.embeddings", self.embeddings, "random where a checkpoint has embeddings")

    @property
    def is_given(self) -> bool:
        """Whether there are weights to start from."""
        return any(path is not None for path in (self.run, self.discriminator, self.generator))


@dataclass
class ObjectiveConfig:
    """Replaced-token detection.

    Args:
        mask_prob: share of a sequence's tokens that are predicted by the generator and resampled.
        replace_prob: share of those that become [MASK] for the generator; the others keep their token.
        max_per_sequence: at most this many a sequence; null: int((mask_prob + 0.005) * data.max_length).
        temperature: divides the generator's logits when it samples.
        disallow_correct: the generator never samples the true token.
        generator_weight: of the generator's loss in the sum.
        discriminator_weight: of the discriminator's loss in the sum.
    """

    mask_prob: float = 0.15
    replace_prob: float = 0.85
    max_per_sequence: int | None = None
    temperature: float = 1.0
    disallow_correct: bool = False
    generator_weight: float = 1.0
    discriminator_weight: float = 50.0

    def __post_init__(self) -> None:
        for name in ("generator_weight", "discriminator_weight"):
            _check(0 <= getattr(self, name) < math.inf, f"objective.{name}", getattr(self, name), "0 or more")
        _check(0 < self.mask_prob < 1, "objective.mask_prob", self.mask_prob, "between 0 and 1")
        _check(0 <= self.replace_prob <= 1, "objective.replace_prob", self.replace_prob, "in [0, 1]")
        most = self.max_per_sequence
        _check(most is None or _is_count(most), "objective.max_per_sequence", most, f"{COUNT}, or null")
        _check(_is_positive(self.temperature), "objective.temperature", self.temperature, "positive")


@dataclass
class StageConfig:
    """A part of a curriculum: batches of another size for so many steps.

    Args:
        steps: of this stage; null for the last, which goes on to the end.
        max_length: tokens a sequence; null: data.max_length.
        batch_size: sequences a step; null, without batch_tokens: as in `data`.
        batch_tokens: tokens a step, instead of batch_size.
    """

    steps: int | None = None
    max_length: int | None = None
    batch_size: int | None = None
    batch_tokens: int | None = None


@dataclass
class CorpusConfig:
    """One of several corpora.

    Args:
        path: its folder.
        weight: its share in the sequences, in any scale; null, for all of them: by size and data.alpha.
    """

    path: str = ""
    weight: float | None = None


@dataclass
class DataConfig:
    """Prepared corpora (`electra-fast prepare`) and how they are cut into batches.

    Args:
        train: folder of the corpus to learn from, or its URL (s3://..., gs://...), of which a copy is cached.
        mixture: several corpora instead of `train`, each with its path and weight.
        alpha: without weights, shares in a mixture are size^alpha: 1 in proportion, 0 even; 0.3 is usual for languages.
        valid: the same of a corpus for held-out metrics, prepared with the same tokenizer; null: none.
        max_length: tokens a sequence, special tokens included.
        batch_size: sequences a step.
        batch_tokens: about so many tokens a step, instead of batch_size; null: batch_size.
        fixed_shapes: the same number of tokens in every batch, the rest being padding that belongs to no sequence.
        segments: 1, or 2 for the original's examples [CLS] A [SEP] B [SEP].
        join_documents: a sequence goes on in the next document, [SEP] between; false: it ends with its document.
        mask_units: what is masked whole: token, word, span (of words) or entity; other than token, see prepare --units.
        curriculum: stages, each with steps, max_length, and batch_size or batch_tokens; empty: one, of the above.
    """

    train: str = ""
    mixture: list[CorpusConfig] = field(default_factory=list)
    alpha: float = 1.0
    valid: str | None = None
    max_length: int = 128
    batch_size: int = 128
    batch_tokens: int | None = None
    fixed_shapes: bool = False
    segments: int = 1
    join_documents: bool = False
    mask_units: str = "token"
    curriculum: list[StageConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_path("data.train", self.train)
        _check_path("data.valid", self.valid or "")
        for number, corpus in enumerate(self.mixture):
            key = f"data.mixture[{number}]"
            _check(corpus.path != "", f"{key}.path", corpus.path, "the folder of a corpus")
            _check_path(f"{key}.path", corpus.path)
            _check(corpus.weight is None or _is_positive(corpus.weight), f"{key}.weight", corpus.weight, "positive")
        _check(not (self.train and self.mixture), "data.train", self.train, "left out where there is data.mixture")
        given = [corpus.weight for corpus in self.mixture if corpus.weight is not None]
        _check(len(given) in (0, len(self.mixture)), "data.mixture", given, "given with a weight for each, or for none")
        _check(0 <= self.alpha <= 1, "data.alpha", self.alpha, "in [0, 1]")
        _check(self.segments in (1, 2), "data.segments", self.segments, "1 or 2")
        _check(self.mask_units in MASK_UNITS, "data.mask_units", self.mask_units, "token, word, span or entity")
        self._check_size("data", self.stage(StageConfig()))
        for number, stage in enumerate(self.curriculum):
            key, last = f"data.curriculum[{number}]", number == len(self.curriculum) - 1
            if not last:
                _check(stage.steps is not None and _is_count(stage.steps), f"{key}.steps", stage.steps, COUNT)
            _check(not last or stage.steps is None, f"{key}.steps", stage.steps, "null: the last stage goes on")
            both = stage.batch_size is not None and stage.batch_tokens is not None
            _check(not both, key, stage, "given batch_size or batch_tokens, not both")
            self._check_size(key, self.stage(stage))

    def _check_size(self, key: str, stage: StageConfig) -> None:
        shortest = 3 if self.segments == 1 else 8
        allowed = f"between {shortest} and 8192"
        _check(shortest <= stage.max_length <= 8192, f"{key}.max_length", stage.max_length, allowed)
        _check(stage.batch_size >= 1, f"{key}.batch_size", stage.batch_size, "at least 1")
        _check(  # cu_seqlens is int32
            stage.batch_size * stage.max_length < 2**31,
            f"{key}.batch_size",
            stage.batch_size,
            f"less than 2**31 / max_length ({stage.max_length})",
        )
        least = 2 * stage.max_length if self.fixed_shapes else stage.max_length
        _check(
            stage.batch_tokens is None or least <= stage.batch_tokens < 2**30,
            f"{key}.batch_tokens",
            stage.batch_tokens,
            f"between {least}, {'two sequences' if self.fixed_shapes else 'a sequence'}, and 2**30, or null",
        )

    @property
    def train_corpora(self) -> list[str]:
        """The folders to learn from, one or several."""
        return [corpus.path for corpus in self.mixture] or [self.train]

    @property
    def weights(self) -> list[float] | None:
        """Of the corpora of a mixture; None where they follow from the sizes."""
        weights = [corpus.weight for corpus in self.mixture if corpus.weight is not None]
        return weights or None

    @property
    def longest(self) -> int:
        """The longest max_length of all stages."""
        return max(stage.max_length for stage in self.stages())

    def stages(self) -> list[StageConfig]:
        """The curriculum with all that is left out filled in; one stage where there is none."""
        return [self.stage(stage) for stage in self.curriculum or [StageConfig()]]

    def stage(self, stage: StageConfig) -> StageConfig:
        """A stage with what it leaves out taken from here."""
        own = stage.batch_size is not None or stage.batch_tokens is not None
        return StageConfig(
            steps=stage.steps,
            max_length=self.max_length if stage.max_length is None else stage.max_length,
            batch_size=self.batch_size if stage.batch_size is None else stage.batch_size,
            batch_tokens=stage.batch_tokens if own else self.batch_tokens,
        )


OBJECTIVES = ("joint", "generator", "discriminator", "alternate", "mlm", "electric", "adversarial")
LR_SCHEDULES = ("paper", "wsd", "cosine", "constant")
PARALLEL = ("auto", "ddp", "fsdp")
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass
class PhaseConfig:
    """A part of a run with one objective. It ends at the first of its limits that is reached.

    Args:
        objective: joint, generator, discriminator, alternate (generator and discriminator by turns), mlm, electric or
            adversarial.
        steps: most steps; null, and epochs null too: training.steps.
        epochs: most passes over the corpus.
        patience: end after so many evaluations on data.valid in a row without a lower loss; null: never.
        lr: peak learning rate; null: optimizer.lr.
        warmup_steps: steps over which the rate rises from 0; null: optimizer.warmup_steps.
        turn_steps: of alternate: steps of a tower's turn; null: an epoch.
        discriminator_from_generator: before it begins, copy the generator's encoder into the discriminator's; where
            they differ in size, with a warning, the embeddings alone.
    """

    objective: str = "joint"
    steps: int | None = None
    epochs: float | None = None
    patience: int | None = None
    lr: float | None = None
    warmup_steps: int | None = None
    turn_steps: int | None = None
    discriminator_from_generator: bool = False

    def __post_init__(self) -> None:
        _check(self.objective in OBJECTIVES, "objective", self.objective, _one_of(OBJECTIVES))
        for name in ("steps", "patience", "turn_steps"):
            value = getattr(self, name)
            _check(value is None or _is_count(value), name, value, f"{COUNT}, or null")
        for name in ("epochs", "lr"):
            value = getattr(self, name)
            _check(value is None or _is_positive(value), name, value, "positive, or null")
        warmup = self.warmup_steps
        _check(warmup is None or 0 <= warmup < 2**31, "warmup_steps", warmup, "between 0 and 2**31 - 1, or null")
        takes_turns = self.turn_steps is None or self.objective == "alternate"
        _check(takes_turns, "turn_steps", self.turn_steps, f"null where the objective is {self.objective}")


@dataclass
class OptimizerConfig:
    """Adam with decoupled weight decay, and how the learning rate goes over the steps of a phase.

    Args:
        lr: peak learning rate.
        lr_schedule: paper: lr * (1 - t / steps) * min(1, t / warmup_steps); wsd: warm-up, stable, decay; cosine: to 0
            after the warm-up; constant after the warm-up.
        warmup_steps: steps over which the rate rises from 0.
        decay_in_warmup: of paper: the linear decay runs from step 0, as in the original; false: it starts after the
            warm-up.
        decay_share: of wsd: the share of the steps, the last ones, over which the rate falls to 0, as 1 - sqrt(x).
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: of all parameters but biases and LayerNorm.
        bias_correction: Adam's; the original has none.
        clip_norm: largest norm of the gradient of both towers together.
    """

    lr: float = 5e-4
    lr_schedule: str = "paper"
    warmup_steps: int = 10_000
    decay_in_warmup: bool = True
    decay_share: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    bias_correction: bool = False
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _check(_is_positive(self.lr), "optimizer.lr", self.lr, "positive")
        _check(self.lr_schedule in LR_SCHEDULES, "optimizer.lr_schedule", self.lr_schedule, _one_of(LR_SCHEDULES))
        _check(0 <= self.decay_share <= 1, "optimizer.decay_share", self.decay_share, "in [0, 1]")
        _check(0 <= self.warmup_steps < 2**31, "optimizer.warmup_steps", self.warmup_steps, "between 0 and 2**31 - 1")
        for name in ("beta1", "beta2"):
            _check(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "in [0, 1)")
        _check(_is_positive(self.eps), "optimizer.eps", self.eps, "positive")
        _check(0 <= self.weight_decay < math.inf, "optimizer.weight_decay", self.weight_decay, "0 or more")
        _check(_is_positive(self.clip_norm), "optimizer.clip_norm", self.clip_norm, "positive")


TRACKERS = ("tensorboard", "wandb")


@dataclass
class ProbeConfig:
    """A small labelled task on which the discriminator is tried now and then during the run.

    Args:
        train: file of lines TEXT<TAB>LABEL to fit the probe on; null: no probe.
        valid: such a file to measure it on.
        every: steps between probes.
        kind: linear: logistic regression on mean hidden states; finetune: a copy of the discriminator is fine-tuned.
        epochs: of finetune.
        lr: of finetune, its peak.
        batch_size: of finetune, texts a step.
    """

    train: str | None = None
    valid: str | None = None
    every: int = 10_000
    kind: str = "linear"
    epochs: int = 2
    lr: float = 3e-4
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name in ("train", "valid"):
            _check_path(f"training.probe.{name}", getattr(self, name) or "")
        for name in ("every", "epochs", "batch_size"):
            _check(_is_count(getattr(self, name)), f"training.probe.{name}", getattr(self, name), COUNT)
        _check(self.kind in ("linear", "finetune"), "training.probe.kind", self.kind, "linear or finetune")
        _check(_is_positive(self.lr), "training.probe.lr", self.lr, "positive")
        both = (self.train is None) == (self.valid is None)
        missing = "valid" if self.valid is None else "train"
        _check(
            both, f"training.probe.{missing}", None, "a file too: the probe is fitted on train and measured on valid"
        )


@dataclass
class TrainingConfig:
    """The run.

    Args:
        steps: optimizer updates; of a schedule, those of each phase that says nothing else.
        seed: of weights, data order, masks, samples and dropout.
        device: cpu, cuda, or auto: the GPU where there is one.
        precision: float32; bfloat16; or float16 with loss scaling, for older GPUs. With 16 bits the optimizer and the
            checkpoints hold float32 weights, and LayerNorm's are float32 everywhere.
        micro_batch_tokens: most tokens at once: a batch is cut in micro-batches, whose gradients add up to the
            batch's; null: the whole batch. Of several ranks: on each.
        activation_checkpointing: compute each layer's activations again in the backward pass instead of keeping them:
            the same bits, less memory, more time.
        compile: run the model through torch.compile. Meant for GPUs.
        cuda_graphs: with compile and data.fixed_shapes: replay the step as a CUDA graph.
        deterministic: make a GPU repeat its bits, which costs speed; a CPU always does.
        peak_tflops: the device's peak in TFLOP/s, of which MFU is the share in use; null: known for common GPUs.
        log_every: steps between lines of metrics.jsonl.
        parallel: what several ranks (torchrun) do: ddp: each holds the whole model; fsdp: each holds a part of all
            weights, gradients and moments; auto: ddp.
        timeout_seconds: how long ranks wait for one another before they take one for lost: longer than rank 0 takes
            for an evaluation, a probe or a checkpoint.
        trackers: where to send the metrics too: tensorboard, wandb, or tensorboard,wandb; null: nowhere.
        eval_every: steps between evaluations on data.valid; 0: only at the end.
        eval_batches: batches of data.valid in each of them.
        save_every: steps between checkpoints; 0: only at the end and when interrupted.
        keep_checkpoints: how many of the newest to keep.
        probe: a labelled task to try the discriminator on.
    """

    steps: int = 1_000_000
    seed: int = 0
    device: str = "auto"
    precision: str = "float32"
    micro_batch_tokens: int | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    deterministic: bool = False
    peak_tflops: float | None = None
    parallel: str = "auto"
    timeout_seconds: int = 600
    log_every: int = 100
    trackers: str | None = None
    eval_every: int = 10_000
    eval_batches: int = 64
    save_every: int = 10_000
    keep_checkpoints: int = 2
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "eval_batches", "keep_checkpoints", "timeout_seconds"):
            _check(_is_count(getattr(self, name)), f"training.{name}", getattr(self, name), COUNT)
        for name in ("eval_every", "save_every"):
            _check(0 <= getattr(self, name) < 2**31, f"training.{name}", getattr(self, name), "between 0 and 2**31 - 1")
        _check(0 <= self.seed < 2**63, "training.seed", self.seed, "between 0 and 2**63 - 1")
        known = set(self.tracker_names) <= set(TRACKERS)
        _check(known, "training.trackers", self.trackers, f"{', '.join(TRACKERS)} or both with a comma, or null")
        known = re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device)
        _check(known is not None, "training.device", self.device, "auto, cpu or cuda, or one GPU as cuda:1")
        _check(self.precision in PRECISIONS, "training.precision", self.precision, _one_of(PRECISIONS))
        _check(self.parallel in PARALLEL, "training.parallel", self.parallel, _one_of(PARALLEL))
        tokens, peak = self.micro_batch_tokens, self.peak_tflops
        _check(tokens is None or _is_count(tokens), "training.micro_batch_tokens", tokens, f"{COUNT}, or null")
        _check(peak is None or _is_positive(peak), "training.peak_tflops", peak, "positive, or null")

    @property
    def tracker_names(self) -> list[str]:
        """The trackers, each once."""
        return list(dict.fromkeys(name.strip() for name in (self.trackers or "").split(",") if name.strip()))


@dataclass
class PretrainConfig:
    """A pretraining run.

    Args:
        model: the two towers.
        init: weights of another model to start from.
        objective: replaced-token detection.
        data: corpora and batches.
        optimizer: optimizer and learning-rate schedule.
        training: steps, seed, device, precision, how often to log, evaluate and save.
        schedule: phases, one after another; none: one joint phase of training.steps.
        output: folder of the run: checkpoints, metrics, and at the end `discriminator` and `generator`.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    schedule: list[PhaseConfig] = field(default_factory=list)
    output: str = "runs/pretrain"

    def __post_init__(self) -> None:
        _check(self.output != "", "output", self.output, "the folder of the run")
        _check_path("output", self.output)
        here = "a folder on this machine: a run writes where it can flush and rename; copy what you want elsewhere"
        _check(not is_url(self.output), "output", self.output, here)
        if not self.init.is_given:
            self.model = self.model.filled()
        table = self.model.max_position_embeddings
        fits = table is None or self.data.longest <= table
        _check(fits, "data.max_length", self.data.longest, f"at most model.max_position_embeddings ({table})")
        tokens = self.training.micro_batch_tokens
        _check(
            tokens is None or tokens >= self.data.longest,
            "training.micro_batch_tokens",
            tokens,
            f"at least data.max_length ({self.data.longest}): a sequence is not cut",
        )
        graphs = self.training.cuda_graphs
        allowed = not graphs or (self.training.compile and self.data.fixed_shapes and tokens is None)
        _check(
            allowed,
            "training.cuda_graphs",
            graphs,
            "false, or come with training.compile and data.fixed_shapes, and without training.micro_batch_tokens",
        )
        _check(
            not (graphs and self.training.parallel == "fsdp"),
            "training.cuda_graphs",
            graphs,
            "false with training.parallel fsdp, which gathers weights layer by layer",
        )
        for index, phase in enumerate(self.schedule):
            self._check_phase(f"schedule[{index}]", phase)

    def _check_phase(self, key: str, phase: PhaseConfig) -> None:
        untied = phase.objective != "alternate" or self.model.tie == "untied"
        _check(
            untied,
            f"{key}.objective",
            phase.objective,
            "another, or model.tie untied: taking turns, a tower must not change the other's embeddings",
        )
        if phase.objective in ("electric", "adversarial"):
            for name, needed in (("temperature", 1.0), ("disallow_correct", False)):
                value = getattr(self.objective, name)
                because = f"{json.dumps(needed)} for {phase.objective}, which needs the probability of each sample"
                _check(value == needed, f"objective.{name}", value, because)
        if phase.patience is not None:
            measured = self.data.valid is not None and self.training.eval_every > 0
            _check(measured, f"{key}.patience", phase.patience, "null without data.valid and training.eval_every")
            can_fall = phase.objective != "adversarial"
            _check(can_fall, f"{key}.patience", phase.patience, "null: what one tower gains the other loses")

    @property
    def phases(self) -> list[PhaseConfig]:
        """The schedule, or what it stands for where it is empty."""
        return self.schedule or [PhaseConfig()]

    @property
    def objectives(self) -> set[str]:
        """What the model is trained for; who takes turns is generator and discriminator."""
        objectives = {phase.objective for phase in self.phases}
        turns = {"generator", "discriminator"} if "alternate" in objectives else set()
        return objectives - {"alternate"} | turns

    @property
    def max_per_sequence(self) -> int:
        """Most masked tokens in one sequence."""
        if self.objective.max_per_sequence is not None:
            return self.objective.max_per_sequence
        return max(1, int((self.objective.mask_prob + 0.005) * self.data.longest))

    def to_yaml(self) -> str:
        return yaml.safe_dump(asdict(self), sort_keys=False)


def recipe_names() -> list[str]:
    """The recipes that come with the package, e.g. "small"."""
    return sorted(
        path.name.removesuffix(".yaml")
        for path in files("electra_fast.recipes").iterdir()
        if path.name.endswith(".yaml")
    )


def recipe_path(name: str) -> Path:
    """The YAML file of a recipe: the path `name` itself where there is such a file, else the package's recipe `name`.

    Raises:
        ConfigError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = Path(str(files("electra_fast.recipes") / f"{name}.yaml"))
    if "/" not in name and shipped.is_file():
        return shipped
    near = nearest(name, recipe_names())
    raise ConfigError(
        f"no config file {name!r}, and no recipe of that name{near}; recipes: {', '.join(recipe_names())}"
    )
