"""Checks of arguments, whose errors say what is wrong and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor


def check_tensor(
    operator: str, argument: str, tensor: Tensor, dim: int, dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    if tensor.dtype not in dtypes:
        raise TypeError(f"{operator}: {argument} must be {' or '.join(map(str, dtypes))}, not {tensor.dtype}")
    if tensor.dim() != dim:
        raise ValueError(f"{operator}: {argument} must have {dim} dimension(s); got shape {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{operator}: {argument} lies on {tensor.device}, the other tensors on {device}")
