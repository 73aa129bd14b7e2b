"""rtd_bce: loss, gradient and metrics beside the plain PyTorch calls for the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops

# Tokens: a batch of ELECTRA-small; and 268 MB of float32 logits.
SHAPES = {"cpu": [16_384], "cuda": [16_384, 2**26]}
DTYPES = {"cpu": [torch.float32, torch.bfloat16], "cuda": [torch.float32, torch.bfloat16, torch.float16]}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def plain_rtd(logits: Tensor, is_replaced: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """The loss on the tokens that count, and the same metrics, vectorised as a user would write them."""
    logits, is_replaced = logits[mask].float(), is_replaced[mask]
    loss_sum = F.binary_cross_entropy_with_logits(logits, is_replaced.float(), reduction="sum")
    with torch.no_grad():
        predicted = logits > 0
        bins = (torch.floor(logits * 32) + 512).clamp(0, 1023).long() + is_replaced * 1024
        return (
            loss_sum,
            mask.sum(),
            (predicted & is_replaced).sum(),
            (predicted & ~is_replaced).sum(),
            (~predicted & ~is_replaced).sum(),
            (~predicted & is_replaced).sum(),
            torch.bincount(bins, minlength=2048).view(2, 1024),
        )


@pytest.mark.parametrize("dtype", DTYPES[DEVICE], ids=str)
@pytest.mark.parametrize("num_tokens", SHAPES[DEVICE])
def test_rtd_bce(compare, copies, forward_backward, device, num_tokens, dtype):
    def make_inputs() -> tuple[Tensor, Tensor, Tensor]:
        logits = 2 * torch.randn(num_tokens, device=device, dtype=dtype)
        return logits, torch.rand(num_tokens, device=device) < 0.1, torch.rand(num_tokens, device=device) < 0.9

    compare(
        "rtd_bce",
        ours=forward_backward(ops.rtd_bce, [0]),
        plain=forward_backward(plain_rtd, [0]),
        inputs=copies(make_inputs),
        # Forward: logits and two flags in, gradient out. Backward: gradient in and out.
        bytes_moved=num_tokens * (4 * dtype.itemsize + 2),
        target=3.0 if device == "cpu" and dtype == torch.float32 else None,
    )
