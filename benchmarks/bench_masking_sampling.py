"""Masking: our kernel beside the reference, which is plain PyTorch, vectorised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from electra_fast import ops

# (sequences, tokens a sequence): a batch of ELECTRA-small, and one of ELECTRA-large.
SHAPES = {"cpu": [(128, 128), (256, 512)], "cuda": [(128, 128), (256, 512)]}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_reference(call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with ops.use_backend("reference"):
            return call(*arguments)

    return run


@pytest.mark.parametrize(("sequences", "length"), SHAPES[DEVICE])
def test_mask_tokens(compare, copies, device, sequences, length):
    num_tokens = sequences * length
    num_masked = round(num_tokens * 0.15)
    cu_seqlens = torch.arange(0, num_tokens + 1, length, dtype=torch.int32, device=device)

    def make_inputs() -> tuple[torch.Tensor, ...]:
        ids, seed = torch.randint(5, 30522, (num_tokens,), device=device), torch.randint(2**60, (), device=device)
        return ids, cu_seqlens, seed

    def mask(ids: torch.Tensor, cu_seqlens: torch.Tensor, seed: torch.Tensor) -> ops.MaskedTokens:
        return ops.mask_tokens(
            ids, cu_seqlens, mask_token_id=103, never_mask_ids=(101, 102, 103), num_masked=num_masked, seed=seed
        )

    compare(
        "mask_tokens",
        ours=mask,
        plain=on_reference(mask),
        inputs=copies(make_inputs),
        bytes_moved=16 * num_tokens + 20 * num_masked,
        shape=f"{sequences} x {length}",
        target=5.0 if device == "cpu" else None,
    )
