"""How the original initialises ELECTRA, which is not how transformers does."""

from __future__ import annotations

import torch
from torch import nn

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
