"""Gradient-disentangled embedding sharing: a table that follows another one without pulling at it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DELTA_EMBEDDINGS = ("word_embeddings", "position_embeddings")  # the others of a tower stay its own


class DeltaEmbedding(nn.Module):
    """`nn.Embedding` whose table is another's, without gradients to it, plus a difference: `sg(base) + delta`.

    `delta`, the only parameter, [V, E], starts at zero. The row `padding_idx` of it gets no gradient from the look-up.
    The base is no submodule: its parameters keep the one name they have where they belong, and move with that.
    Source: DeBERTaV3 (He et al. 2023), section 3.3.
    """

    # What nn.Embedding has and this has not.
    max_norm = None
    sparse = False
    scale_grad_by_freq = False

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__()
        self._base = (base,)
        self.padding_idx = base.padding_idx
        self.delta = nn.Parameter(torch.zeros_like(base.weight))

    @property
    def weight(self) -> Tensor:
        """The whole table [V, E], summed anew at each look."""
        return self._base[0].weight.detach() + self.delta

    def forward(self, input_ids: Tensor) -> Tensor:
        """[...] -> [..., E]. Only the rows looked up are summed: the sum of whole tables takes 1.6 times as long."""
        rows = F.embedding(input_ids, self._base[0].weight.detach())
        return rows + F.embedding(input_ids, self.delta, padding_idx=self.padding_idx)


def delta_names(module: nn.Module) -> list[str]:
    """Where in `module` there are such tables."""
    return [name for name, part in module.named_modules() if isinstance(part, DeltaEmbedding)]


def folded(module: nn.Module) -> dict[str, Tensor]:
    """`module.state_dict()` with a table `weight` in place of each `delta`, as nn.Embedding has it."""
    state = module.state_dict()
    for name in delta_names(module):
        del state[f"{name}.delta"]
        state[f"{name}.weight"] = module.get_submodule(name).weight.detach()
    return state
