"""layer_norm and dropout_add_layer_norm beside PyTorch's calls, forward and backward; Liger's where it runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-12
# ELECTRA-small's generator, -small and -base. On CUDA 16,384 tokens take microseconds; 256 MB and more show bandwidth.
SHAPES = {
    "cpu": [(2048, 64), (2048, 256), (4096, 768)],
    "cuda": [(16384, 64), (16384, 256), (16384, 768), (524288, 256), (174763, 768)],
}
DTYPES = {"cpu": [torch.float32, torch.bfloat16], "cuda": [torch.float32, torch.bfloat16, torch.float16]}
# An element: forward adds, subtracts the mean, squares, adds, scales, and multiplies and adds the parameters; backward
# has two sums over the row and two over the column, with their products, and the gradient itself. Dropout and residual
# add two, without the random numbers.
OPERATIONS = 18
# On a CPU bfloat16 on one shape only: what it gains differs little from shape to shape.
CASES = [
    (shape, dtype)
    for dtype in DTYPES[DEVICE]
    for shape in SHAPES[DEVICE]
    if DEVICE == "cuda" or dtype == torch.float32 or shape == (2048, 256)
]
# What is asked for on two CPU cores in float32: (operator, shape) -> times PyTorch's speed.
TARGETS = {
    ("layer_norm", (2048, 64)): 1.0,
    ("layer_norm", (2048, 256)): 1.2,
    ("layer_norm", (4096, 768)): 1.2,
    ("p=0", (2048, 256)): 1.5,
    ("p=0", (4096, 768)): 1.5,
    ("p=0.1", (2048, 256)): 10.0,
    ("p=0.1", (4096, 768)): 6.0,
}


def target(operator: str, shape: tuple[int, int], dtype: torch.dtype) -> float | None:
    return TARGETS.get((operator, shape)) if DEVICE == "cpu" and dtype == torch.float32 else None


def plain_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # PyTorch on CUDA wants parameters in the dtype of the data.
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), EPS)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_layer_norm(compare, copies, forward_backward, liger, device, shape, dtype):
    def make_inputs() -> tuple[Tensor, ...]:
        x = torch.randn(shape, device=device, dtype=dtype)
        return x, torch.ones(shape[1], device=device), torch.zeros(shape[1], device=device)

    def liger_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return liger.LigerLayerNormFunction.apply(x, weight.to(x.dtype), bias.to(x.dtype), EPS)

    calls = {"ours": ops.layer_norm, "plain": plain_layer_norm} | ({"liger": liger_layer_norm} if liger else {})
    timed = {name: forward_backward(call, (0, 1, 2)) for name, call in calls.items()}
    compare(
        "layer_norm",
        ours=timed.pop("ours"),
        plain=timed.pop("plain"),
        rivals=timed,
        inputs=copies(make_inputs),
        bytes_moved=5 * shape[0] * shape[1] * dtype.itemsize,  # x, y; dy, x, dx
        flops=OPERATIONS * shape[0] * shape[1],
        target=target("layer_norm", shape, dtype),
    )


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_dropout_add_layer_norm(compare, copies, forward_backward, device, shape, dtype, p):
    def make_inputs() -> tuple[Tensor, ...]:
        x, residual = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
        weight, bias = torch.ones(shape[1], device=device), torch.zeros(shape[1], device=device)
        return x, residual, weight, bias, torch.randint(2**60, (), device=device)

    def ours(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, seed: Tensor) -> Tensor:
        return ops.dropout_add_layer_norm(x, residual, weight, bias, p=p, seed=seed)

    def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, seed: Tensor) -> Tensor:
        return plain_layer_norm(F.dropout(x, p) + residual, weight, bias)

    gradients = 2 if p else 1  # without dropout both have one
    compare(
        f"dropout_add_layer_norm p={p:g}",
        ours=forward_backward(ours, (0, 1, 2, 3)),
        plain=forward_backward(plain, (0, 1, 2, 3)),
        inputs=copies(make_inputs),
        bytes_moved=(6 + gradients) * shape[0] * shape[1] * dtype.itemsize,  # x, residual, y; dy, x, residual
        flops=(OPERATIONS + 2) * shape[0] * shape[1],
        target=target(f"p={p:g}", shape, dtype),
    )


@pytest.mark.parametrize("operator", ["layer_norm", "p=0.1"])
def test_overhead(compare, copies, device, operator):
    """One row: what a call costs beside the work, forward with gradients on; the microseconds over plain count."""

    def make_inputs() -> tuple[Tensor, ...]:
        x, residual, weight, bias = (torch.randn(size, device=device) for size in ((1, 64), (1, 64), 64, 64))
        return *(t.requires_grad_() for t in (x, residual, weight, bias)), torch.randint(2**60, (), device=device)

    def ours(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, seed: Tensor) -> Tensor:
        if operator == "layer_norm":
            return ops.layer_norm(x, weight, bias)
        return ops.dropout_add_layer_norm(x, residual, weight, bias, p=0.1, seed=seed)

    def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, seed: Tensor) -> Tensor:
        return plain_layer_norm(x if operator == "layer_norm" else F.dropout(x, 0.1) + residual, weight, bias)

    inputs = copies(make_inputs, num_bytes=2**26)  # two will do: nothing large moves
    compare(f"overhead of {operator}", ours=ours, plain=plain, inputs=inputs)
