"""How the original initialises ELECTRA, which is not how transformers does."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from electra_fast.models.joint import ElectraForJointPreTraining

# google-research/electra gives these layers no initialiser, so TensorFlow's default applies to them: Glorot uniform.
GLOROT_LAYERS = ("embeddings_project", "dense_prediction")


@torch.no_grad()
def initialize_weights(model: nn.Module, *, std: float = 0.02, glorot: bool = True) -> None:
    """Initialise every layer of an ELECTRA model in place, from torch's default generator.

    Matrices: normal of deviation `std` before it is cut at two deviations; biases 0; LayerNorm 1 and 0; the row of the
    padding token 0, as in transformers. With `glorot`, the layers in `GLOROT_LAYERS` are Glorot uniform.
    Source: google-research/electra, model/modeling.py (`create_initializer`) and run_pretraining.py.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if glorot and name.rsplit(".", 1)[-1] in GLOROT_LAYERS:
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
    # Last, since a tied output projection is a Linear that would fill the row again.
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()


_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def discriminator_sources(model: ElectraForJointPreTraining) -> dict[str, str | None]:
    """How the discriminator's encoder starts from the generator's: where each of its parameters has its values from.

    Names are those of `model.named_parameters()`; None stands for zeros, of the differences of tie="gdes". Parameters
    that the towers share are left out. Where the towers differ in size these are the embeddings alone, with a warning.
    Source: ELECTRA paper, section 3.2, two-stage training.

    Raises:
        ValueError: not even the embeddings are of one size.
    """
    named = dict(model.named_parameters())
    ours, theirs = model.generator.config, model.discriminator.config
    prefix = "discriminator.electra."
    if any(getattr(ours, name) != getattr(theirs, name) for name in _SIZES):
        prefix += "embeddings."
        warnings.warn(
            "the discriminator starts from the generator's embeddings alone: its layers are of another size or number",
            RuntimeWarning,
            stacklevel=3,
        )
    sources: dict[str, str | None] = {}
    for target, parameter in named.items():
        source = target.replace("discriminator.", "generator.", 1)
        if not target.startswith(prefix):
            continue
        if target.endswith(".delta"):
            sources[target] = None
        elif source in named:
            if parameter.shape != named[source].shape:
                raise ValueError(
                    f"the discriminator can't start from the generator: {source} is {tuple(named[source].shape)}, "
                    f"{target} {tuple(parameter.shape)}. Give both one embedding_size and max_position_embeddings"
                )
            sources[target] = source
    return sources


@torch.no_grad()
def initialize_discriminator(model: ElectraForJointPreTraining) -> dict[str, str | None]:
    """Let the discriminator's encoder start from the generator's, in place; see `discriminator_sources`, its result.

    An optimizer's moments stay as they are.
    """
    named = dict(model.named_parameters())
    sources = discriminator_sources(model)
    for target, source in sources.items():
        named[target].copy_(torch.zeros(()) if source is None else named[source])
    return sources
