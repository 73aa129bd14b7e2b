"""Google's checkpoints of TensorFlow 1 as folders that transformers loads, and that our pretraining goes on from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from electra_fast.conversion.files import find_tensorflow_checkpoint
from electra_fast.conversion.hparams import HParams, configured, read_hparams
from electra_fast.conversion.tensorflow_reader import read_tensorflow
from electra_fast.conversion.variables import GLOBAL_STEP, Layout, Tower, Variables, listed, read_layout
from electra_fast.data.tokenizer import load_tokenizer, save_tokenizer
from electra_fast.models import (
    ElectraConfig,
    ElectraForJointPreTraining,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraModel,
)
from electra_fast.models.progress import hidden_progress_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_CLASSES: dict[str, type[PreTrainedModel]] = {
    "discriminator": ElectraForPreTraining,
    "generator": ElectraForMaskedLM,
    "encoder": ElectraModel,
}
_ASIDE = ".partial"


@dataclass(frozen=True)
class Converted:
    """What `convert` made.

    Args:
        checkpoint: what was read.
        folders: a checkpoint of transformers each, of "discriminator", "generator" or "encoder".
        configs: of each.
        tie: how generator and discriminator share weights; None where there are not both.
        is_joint: the whole loads as `ElectraForJointPreTraining`.
        vocabulary: how many entries the tokenizer has; None where there is no tokenizer.
        lowercase: it folds case.
        step: how many steps the model was trained for; None where the checkpoint does not say.
        slots: how many variables of the optimizer were left out.
        left_out: other variables that were left out.
    """

    checkpoint: str
    folders: dict[str, Path]
    configs: dict[str, ElectraConfig]
    tie: str | None
    is_joint: bool
    vocabulary: int | None
    lowercase: bool
    step: int | None
    slots: int
    left_out: list[str]


def convert(
    checkpoint: str | Path,
    output: str | Path,
    *,
    vocab: str | Path | None = None,
    lowercase: bool | None = None,
    hparams: str = "{}",
    encoder_only: bool = False,
) -> Converted:
    """Convert a checkpoint that google-research/electra released, or that its code wrote.

    `output/discriminator` and `output/generator` become checkpoints of transformers' ElectraForPreTraining and
    ElectraForMaskedLM, with the tokenizer, and `output` what `ElectraForJointPreTraining.from_pretrained` loads. No bit
    of a weight changes; the optimizer's variables are left out. Nothing is unpickled.

    Args:
        checkpoint: a folder, or a checkpoint's name without ending (model.ckpt-1000000).
        output: a new or an empty folder.
        vocab: its vocab.txt; None: the one beside the checkpoint. Where there is none, no tokenizer is written, and no
            joint model, which must know [MASK].
        lowercase: the tokenizer folds case and strips accents; None: as the hparams say, else True.
        hparams: what Google's programs were given as --hparams: JSON, or the name of a file that holds it.
        encoder_only: write `output/encoder`, the discriminator's encoder as an ElectraModel, and nothing else: for
            fine-tuned checkpoints, whose heads transformers has in another form.

    Raises:
        ValueError: TensorFlow is not installed; there is no such checkpoint, it is damaged, or of another kind; it
            lacks variables or holds unknown ones, which are listed; hparams or vocabulary are of another model;
            `output` holds something.
    """
    read_hparams(hparams)  # a mistake in them is told at once, before TensorFlow is loaded
    _check_new(Path(output))
    prefix = find_tensorflow_checkpoint(Path(checkpoint))
    beside = prefix.with_name("vocab.txt")
    return convert_variables(
        read_tensorflow(prefix),
        output,
        checkpoint=str(prefix),
        vocab=beside if vocab is None and beside.is_file() else vocab,
        lowercase=lowercase,
        hparams=hparams,
        encoder_only=encoder_only,
    )


def convert_variables(
    variables: Variables,
    output: str | Path,
    *,
    checkpoint: str = "the checkpoint",
    vocab: str | Path | None = None,
    lowercase: bool | None = None,
    hparams: str = "{}",
    encoder_only: bool = False,
) -> Converted:
    """`convert` of variables that any reader may have read; needs no TensorFlow.

    Args:
        variables: by Google's names: NumPy arrays, or what has `shape` and `dtype` and becomes one by `np.asarray`.
        checkpoint: its name in messages.
        vocab: None: there is none.
    """
    output, settings = Path(output), read_hparams(hparams)
    _check_new(output)
    layout = read_layout(variables, checkpoint, encoder_only=encoder_only)
    arguments = configured(layout, settings, checkpoint)
    lowercase = settings.lowercase is not False if lowercase is None else lowercase
    tokenizer = None
    if vocab is not None:
        tokenizer = _load_tokenizer(Path(vocab), lowercase, arguments)
    configs = {kind: ElectraConfig(**given) for kind, given in arguments.items()}
    _check_arrays(variables, checkpoint, layout, configs)
    weights = {kind: _weights(kind, tower, variables) for kind, tower in layout.towers.items()}
    step = int(np.asarray(variables[GLOBAL_STEP])) if GLOBAL_STEP in variables else None
    is_pair = weights.keys() == {"discriminator", "generator"}

    output.mkdir(parents=True, exist_ok=True)
    aside = output / _ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    try:
        if is_pair and tokenizer is not None:
            _joint(configs, weights, layout.tie, tokenizer, settings).save_pretrained(aside)
        else:
            with hidden_progress_bars():
                for kind, state in weights.items():
                    _loaded(_CLASSES[kind](configs[kind]), state).save_pretrained(aside / kind)
        for kind in weights if tokenizer is not None else ():
            save_tokenizer(tokenizer, aside / kind)
        for part in sorted(aside.iterdir(), key=Path.is_file):  # the file that makes it a joint model comes last
            part.replace(output / part.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Converted(
        checkpoint=checkpoint,
        folders={kind: output / kind for kind in weights},
        configs=configs,
        tie=layout.tie if is_pair else None,
        is_joint=is_pair and tokenizer is not None,
        vocabulary=None if tokenizer is None else len(tokenizer),
        lowercase=lowercase,
        step=step,
        slots=len(layout.slots),
        left_out=layout.left_out,
    )


def render(converted: Converted) -> None:
    """Print what was made of what, and what was left out."""
    for kind, folder in converted.folders.items():
        config = converted.configs[kind]
        heads = f"{config.num_attention_heads} x {config.hidden_size // config.num_attention_heads}"
        print(
            f"{folder}: {config.num_hidden_layers} layers, hidden size {config.hidden_size} (heads: {heads}), "
            f"embedding size {config.embedding_size}, {config.vocab_size:,} tokens"
        )
    steps = "" if converted.step is None else f" after {converted.step:,} steps"
    tied = {"shared": "embeddings shared", "untied": "nothing shared", "all": "one encoder for both"}
    print(f"From {converted.checkpoint}{steps}" + (f"; {tied[converted.tie]}" if converted.tie else ""))
    if converted.slots:
        print(f"Left out: {converted.slots:,} variables of the optimizer, whose moments begin at zero again")
    if converted.left_out:
        print(f"Left out: {listed(converted.left_out)}")
    if converted.vocabulary is None:
        print("No vocab.txt: no tokenizer was written, and without [MASK] no joint model; --vocab gives one")
    else:
        print(f"Tokenizer: {converted.vocabulary:,} entries, {'lowercase' if converted.lowercase else 'cased'}")


def _check_new(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: give a new folder")
    if output.is_dir() and any(path.name != _ASIDE for path in output.iterdir()):
        raise ValueError(f"{output} holds something already: give a new folder")


def _load_tokenizer(vocab: Path, lowercase: bool, arguments: Mapping[str, dict[str, Any]]) -> PreTrainedTokenizerFast:
    """The tokenizer of `vocab`; the configs' `arguments` get its padding id."""
    length = min(given["max_position_embeddings"] for given in arguments.values())
    tokenizer = load_tokenizer(vocab, lowercase=lowercase, max_length=length)
    for kind, given in arguments.items():
        if len(tokenizer) > given["vocab_size"]:
            raise ValueError(
                f"{vocab} has {len(tokenizer):,} entries, but the {kind} knows {given['vocab_size']:,} tokens: it is "
                "of another model"
            )
        given["pad_token_id"] = tokenizer.pad_token_id
    return tokenizer


def _check_arrays(variables: Variables, checkpoint: str, layout: Layout, configs: Mapping[str, ElectraConfig]) -> None:
    """Raises ValueError, listing them, for variables whose shape or type does not fit the sizes."""
    wrong = set()
    for kind, tower in layout.towers.items():
        with torch.device("meta"):
            wanted = _CLASSES[kind](configs[kind]).state_dict()
        for name, source in tower.sources.items():
            variable, shape = variables[source.variable], tuple(wanted[_name(kind, name)].shape)
            shape = shape[::-1] if source.transposed else shape
            if tuple(variable.shape) != shape or variable.dtype != np.float32:
                wrong.add(f"{source.variable} is {variable.dtype} {list(variable.shape)}, not float32 {list(shape)}")
    if wrong:
        raise ValueError(f"{checkpoint} does not fit together: {listed(sorted(wrong))}")


def _name(kind: str, name: str) -> str:
    return name.removeprefix("electra.") if kind == "encoder" else name


def _weights(kind: str, tower: Tower, variables: Variables) -> dict[str, Tensor]:
    """A state dict of the tower's class."""
    weights = {_name(kind, name): torch.from_numpy(tower.weight(name, variables)) for name in tower.sources}
    if kind == "generator":  # tied, so no variable of its own
        weights["generator_lm_head.weight"] = weights["electra.embeddings.word_embeddings.weight"]
    return weights


def _loaded(model: PreTrainedModel, weights: dict[str, Tensor]) -> PreTrainedModel:
    model.load_state_dict(weights)
    return model


def _joint(
    configs: Mapping[str, ElectraConfig],
    weights: Mapping[str, dict[str, Tensor]],
    tie: str,
    tokenizer: PreTrainedTokenizerFast,
    settings: HParams,
) -> ElectraForJointPreTraining:
    special = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id)
    model = ElectraForJointPreTraining(
        configs["generator"],
        configs["discriminator"],
        mask_token_id=tokenizer.mask_token_id,
        never_mask_ids=special,
        tie=tie,
        **settings.objective,
    )
    _loaded(model.generator, weights["generator"])
    _loaded(model.discriminator, weights["discriminator"])
    return model
