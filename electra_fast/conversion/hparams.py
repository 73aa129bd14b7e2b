"""Google's hparams: what a checkpoint's shapes don't tell.

Source: google-research/electra, configure_pretraining.py and util/training_utils.py. That code writes no file of them;
they are the text that its users gave as `--hparams`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from electra_fast.conversion.variables import Layout

# By Google's names: ours in `ElectraForJointPreTraining`, and the type.
_OBJECTIVE = {
    "mask_prob": ("mask_prob", float),
    "gen_weight": ("generator_weight", float),
    "disc_weight": ("discriminator_weight", float),
    "temperature": ("temperature", float),
    "disallow_correct": ("disallow_correct", bool),
}
# The generator's own are derived from the discriminator's, all but these.
_SHARED = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")


@dataclass(frozen=True)
class HParams:
    """Those of the hparams that a checkpoint needs.

    Args:
        model: `model_hparam_overrides`, arguments of Google's `BertConfig`, whose names are transformers'.
        objective: arguments of `ElectraForJointPreTraining`.
        lowercase: `do_lower_case`; None where it is not said.
    """

    model: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    lowercase: bool | None = None


def read_hparams(given: str) -> HParams:
    """Read what Google's programs take as `--hparams`: a JSON dictionary, or the name of a file that holds one.

    Training settings are passed over: a recipe has its own.

    Raises:
        ValueError: it is no JSON dictionary, or a value has another type than in Google's code.
    """
    name = "--hparams"
    text = given
    if not given.lstrip().startswith("{"):
        name = f"--hparams {given}"
        if not Path(given).is_file():
            raise ValueError(f"{name}: expected a JSON dictionary, or a file that holds one")
        text = Path(given).read_text(encoding="utf-8", errors="replace")
    try:
        hparams = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is no JSON: {error}") from error
    if not isinstance(hparams, dict):
        raise ValueError(f"{name} must be a JSON dictionary; got {text.strip()[:80]}")
    model = hparams.get("model_hparam_overrides", {})
    if not isinstance(model, dict):
        raise ValueError(f"{name}: model_hparam_overrides must be a dictionary; got {str(model)[:80]}")
    # Google's code has these at the top, though they are the model's.
    model = {key: hparams[key] for key in ("vocab_size", "embedding_size") if key in hparams} | model
    objective = {
        ours: _typed(name, theirs, hparams[theirs], kind)
        for theirs, (ours, kind) in _OBJECTIVE.items()
        if theirs in hparams
    }
    lowercase = _typed(name, "do_lower_case", hparams["do_lower_case"], bool) if "do_lower_case" in hparams else None
    return HParams(model, objective, lowercase)


def _typed(name: str, key: str, value: Any, kind: type) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (isinstance(value, bool) if kind is bool else is_number):
        raise ValueError(f"{name}: {key} must be {'true or false' if kind is bool else 'a number'}; got {value!r}")
    return kind(value)


def configured(layout: Layout, hparams: HParams, checkpoint: str) -> dict[str, dict[str, Any]]:
    """The arguments of each tower's `ElectraConfig`: sizes by the shapes, the rest by the hparams.

    Raises:
        ValueError: the hparams are of another model, or name something unknown or impossible.
    """
    configs: dict[str, dict[str, Any]] = {}
    for kind, tower in layout.towers.items():
        # A generator of its own has as many heads as 64 goes into its hidden size, whatever the discriminator has.
        derived = kind == "generator" and layout.tie != "all"
        configs[kind] = _with(tower.config, hparams.model, _SHARED if derived else None, checkpoint)
        hidden, heads = configs[kind]["hidden_size"], configs[kind]["num_attention_heads"]
        if heads < 1 or hidden % heads:
            raise ValueError(
                f"{checkpoint}: the {kind}'s hidden size {hidden} is no multiple of {heads} heads; how many there are "
                """is in no shape: --hparams '{"model_hparam_overrides": {"num_attention_heads": N}}'"""
            )
    return configs


def _with(
    sizes: Mapping[str, int], overrides: Mapping[str, Any], names: tuple[str, ...] | None, checkpoint: str
) -> dict[str, Any]:
    """`sizes` with those `overrides` that `names` has; None: with all of them, which must fit the sizes."""
    config = dict(sizes)
    for key, value in overrides.items():
        if key == "hidden_act":
            if value != "gelu":
                raise ValueError(f"--hparams: hidden_act {value!r} is not supported: transformers' heads have gelu")
        elif key not in (*sizes, *_SHARED):
            raise ValueError(f"--hparams: model_hparam_overrides has {key!r}, which is nothing of Google's BertConfig")
        elif key in _SHARED or key == "num_attention_heads":
            kind = float if key in _SHARED else int
            if isinstance(value, bool) or not isinstance(value, (int, kind)):
                raise ValueError(f"--hparams: {key} must be a number; got {value!r}")
            if names is None or key in names:
                config[key] = value
        elif names is None and value is not None and value != sizes[key]:
            raise ValueError(f"--hparams: {key} is {value!r}, but {checkpoint} has {sizes[key]}: of another model?")
    return config
