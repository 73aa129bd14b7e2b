"""bias_gelu after its linear layer, beside `F.gelu(F.linear(x, w, b))`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops

# (tokens, in, out): a batch of ELECTRA-small; and 268 MB of float32 activations.
SHAPES = {"cpu": [(2048, 256, 1024)], "cuda": [(16_384, 256, 1024), (65_536, 256, 1024)]}
DTYPES = {"cpu": [torch.float32, torch.bfloat16], "cuda": [torch.float32, torch.bfloat16, torch.float16]}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ops.bias_gelu(F.linear(x, weight), bias)


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(F.linear(x, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES[DEVICE], ids=str)
@pytest.mark.parametrize(("tokens", "width_in", "width_out"), SHAPES[DEVICE])
def test_linear_bias_gelu(compare, copies, forward_backward, device, tokens, width_in, width_out, dtype):
    def make_inputs() -> tuple[Tensor, Tensor, Tensor]:
        x, bias = torch.randn(tokens, width_in, device=device), torch.randn(width_out, device=device)
        weight = torch.randn(width_out, width_in, device=device) / width_in**0.5
        return x.to(dtype), weight.to(dtype), bias.to(dtype)

    compare(
        "linear + bias_gelu",
        ours=forward_backward(ours, (0, 1, 2)),
        plain=forward_backward(plain, (0, 1, 2)),
        inputs=copies(make_inputs),
        shape=f"[{tokens}, {width_in} -> {width_out}]",
        flops=6 * tokens * width_in * width_out,
        # Forward: x, weight, y. Backward: the same and dy in, dx and the weight's gradient out.
        bytes_moved=(3 * tokens * (width_in + width_out) + 3 * width_in * width_out) * dtype.itemsize,
        target=1.1 if device == "cpu" and dtype == torch.float32 else None,
    )


@pytest.mark.parametrize("dtype", DTYPES[DEVICE], ids=str)
@pytest.mark.parametrize(("tokens", "width"), [(tokens, width) for tokens, _, width in SHAPES[DEVICE]])
def test_bias_gelu(compare, copies, forward_backward, device, tokens, width, dtype):
    def make_inputs() -> tuple[Tensor, Tensor]:
        return torch.randn(tokens, width, device=device).to(dtype), torch.randn(width, device=device).to(dtype)

    compare(
        "bias_gelu",
        ours=forward_backward(ops.bias_gelu, (0, 1)),
        plain=forward_backward(lambda x, bias: F.gelu(x + bias), (0, 1)),
        inputs=copies(make_inputs),
        bytes_moved=5 * tokens * width * dtype.itemsize,  # forward: x in, y out; backward: dy and x in, dx out
        flops=12 * tokens * width,  # forward: add, scale, erf, add, two products; backward: erf, exp and four more
    )
