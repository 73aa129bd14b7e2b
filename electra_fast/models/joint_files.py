"""The joint model in a folder: checkpoints of transformers, and beside them what those can't hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from electra_fast.models.electra import ElectraForMaskedLM, ElectraForPreTraining
from electra_fast.models.gdes import delta_names, folded
from electra_fast.models.masked_lm import masked_lm
from electra_fast.models.progress import hidden_progress_bars

if TYPE_CHECKING:
    from electra_fast.models.joint import ElectraForJointPreTraining

FORMAT_VERSION = 2  # 1 had no `objectives` and no file of other weights; it is read too
OPTIONS_FILE = "electra_fast.json"
OTHER_WEIGHTS_FILE = "electra_fast.safetensors"
OPTIONS = (
    "mask_token_id",
    "never_mask_ids",
    "mask_prob",
    "replace_prob",
    "max_per_sequence",
    "temperature",
    "disallow_correct",
    "generator_weight",
    "discriminator_weight",
    "tie",
    "objectives",
)


def save_joint(model: ElectraForJointPreTraining, folder: Path) -> list[Path]:
    """See `ElectraForJointPreTraining.save_pretrained`."""
    discriminator = folded(model.discriminator)
    folders = [folder / "generator", folder / "discriminator"]
    with hidden_progress_bars():
        model.generator.save_pretrained(folders[0])
        model.discriminator.save_pretrained(folders[1], state_dict=dict(discriminator))  # it empties what it is given
        if model.mlm_head is not None:
            folders.append(folder / "mlm")
            masked_lm(model.discriminator.config, discriminator, model.mlm_head).save_pretrained(folders[2])
    others = {name: parameter.detach().contiguous() for name, parameter in _other_parameters(model).items()}
    if others:
        save_file(others, folder / OTHER_WEIGHTS_FILE)
    else:
        (folder / OTHER_WEIGHTS_FILE).unlink(missing_ok=True)
    options = {"format_version": FORMAT_VERSION, **{name: getattr(model, name) for name in OPTIONS}}
    (folder / OPTIONS_FILE).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    return folders


def read_options(folder: Path) -> dict[str, Any]:
    """The keyword arguments of a saved model.

    Raises:
        FileNotFoundError: it is missing. ValueError: it was written by a newer format.
    """
    options = json.loads((folder / OPTIONS_FILE).read_text(encoding="utf-8"))
    version = options.pop("format_version")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format version {version}; this electra-fast reads up to {FORMAT_VERSION}: upgrade it"
        )
    return options


def load_joint(cls: type[ElectraForJointPreTraining], folder: Path) -> ElectraForJointPreTraining:
    """See `ElectraForJointPreTraining.from_pretrained`."""
    options = read_options(folder)
    with hidden_progress_bars():
        generator = ElectraForMaskedLM.from_pretrained(folder / "generator")
        discriminator = ElectraForPreTraining.from_pretrained(folder / "discriminator")
    model = cls(generator.config, discriminator.config, **options)
    model.generator.load_state_dict(generator.state_dict())
    weights = discriminator.state_dict()
    parameters = _other_parameters(model)
    if parameters:
        others = load_file(folder / OTHER_WEIGHTS_FILE)
        if others.keys() != parameters.keys():
            name = min(others.keys() ^ parameters.keys())
            where = "is" if name in others else "is not"
            raise ValueError(f"{folder / OTHER_WEIGHTS_FILE} is of another model: {name} {where} in it")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(others[name])
        for name in delta_names(model.discriminator):  # saved as a sum, it comes back as its parts
            del weights[f"{name}.weight"]
            weights[f"{name}.delta"] = others[f"discriminator.{name}.delta"]
    model.discriminator.load_state_dict(weights)
    return model


def _other_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What neither checkpoint of the two towers holds as it is, by its name in the joint model."""
    towers = ("generator.", "discriminator.")
    named = model.named_parameters()
    return {name: p for name, p in named if name.endswith(".delta") or not name.startswith(towers)}
