"""Longer position tables."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.models.bert.modeling_bert import BertEmbeddings
from transformers.models.electra.modeling_electra import ElectraEmbeddings

from electra_fast.models.gdes import DeltaEmbedding

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def resize_position_embeddings(model: Model, length: int, *, how: str = "interpolate") -> Model:
    """Let an ELECTRA or BERT model read sequences of up to `length` tokens, in place, and return it.

    A longer table is the old one, interpolated linearly: new position i has the embedding that the old table has, in
    between two rows, at i * (old - 1) / (length - 1). Its first and last row stay, and with them [CLS]'s. So do vision
    transformers with theirs at another resolution (Dosovitskiy et al. 2021, section 3.2), and rotary models with their
    angles (Chen et al. 2023, Position Interpolation). Or it is the old one again and again, as Longformer's (Beltagy et
    al. 2020, section 5). A shorter table is the first rows of the old one, as in transformers' DistilBERT.

    An interpolated table changes what the model says of short texts too, since neighbours are now nearer; a repeated
    one does not, but is as wrong beyond the old length as it is far from it: train either further, on texts of the new
    length. Resize before the optimizer is made and before the model is wrapped (DDP, FSDP) or
    compiled: the table is a new parameter, which an optimizer from before would not train. A tokenizer cuts texts at
    its own `model_max_length`: raise that too.

    Configs and buffers follow, so that the model can be saved, and loaded by stock transformers. Takes whatever holds
    such models (`ElectraForJointPreTraining`, PEFT); tables that are tied stay tied.

    Args:
        length: the new `max_position_embeddings`.
        how: what a longer table is: "interpolate" or "repeat".

    Raises:
        ValueError: there is no position table in the model, `length` is below 1, or `how` is neither.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1; got {length}")
    embeddings = [module for module in model.modules() if isinstance(module, (ElectraEmbeddings, BertEmbeddings))]
    if not embeddings:
        raise ValueError(f"{type(model).__name__} has no ELECTRA or BERT model of transformers in it")
    for table in {id(module.position_embeddings): module.position_embeddings for module in embeddings}.values():
        name = "delta" if isinstance(table, DeltaEmbedding) else "weight"  # a sum, interpolated, is the sum of the two
        old = getattr(table, name)
        setattr(table, name, nn.Parameter(resized_table(old, length, how), requires_grad=old.requires_grad))
        table.num_embeddings = length
    for module in embeddings:
        ids = module.position_ids
        module.position_ids = torch.arange(length, device=ids.device).unsqueeze(0)
        module.token_type_ids = torch.zeros_like(module.position_ids)
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig) and config.model_type in ("electra", "bert"):
            config.max_position_embeddings = length
    return model


def resized_table(table: Tensor, length: int, how: str) -> Tensor:
    """[old, E] -> [length, E] in the same dtype; see `resize_position_embeddings`.

    Raises:
        ValueError: `how` is neither "repeat" nor "interpolate".
    """
    if how not in ("repeat", "interpolate"):
        raise ValueError(f"how must be repeat or interpolate; got {how!r}")
    old = table.shape[0]
    if length <= old:
        return table[:length].clone()
    if how == "repeat":
        return table.repeat(-(-length // old), 1)[:length].clone()
    rows = table.float() if table.dtype in (torch.bfloat16, torch.float16) else table
    # [1, E, old] is a signal of E channels.
    return (
        F.interpolate(rows.T.unsqueeze(0), size=length, mode="linear", align_corners=True)[0].T.to(table).contiguous()
    )
