"""embedding_layer_norm beside three lookups, their sum, LayerNorm and dropout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops

VOCABULARY, POSITIONS, TYPES, MASK = 30522, 512, 2, 103
P, EPS = 0.1, 1e-12
# (tokens, width). CPU: a batch of ELECTRA-small. CUDA: the same in microseconds, for small and base, and results of
# 256 MB in float32 for the bandwidth.
SHAPES = {"cpu": [(2048, 128)], "cuda": [(16384, 128), (16384, 768), (524288, 128), (98304, 768)]}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TABLES = (3, 4, 5, 6, 7)  # positions of the arguments that gradients are taken of


def plain(
    ids: Tensor,
    types: Tensor,
    positions: Tensor,
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor,
) -> Tensor:
    rows = F.embedding(ids, word, padding_idx=0) + F.embedding(types, token_type) + F.embedding(positions, position)
    return F.dropout(F.layer_norm(rows, weight.shape, weight, bias, EPS), P, training=True)


def ours(*arguments: Tensor) -> Tensor:
    *tensors, seed = arguments
    return ops.embedding_layer_norm(*tensors, p=P, eps=EPS, seed=seed, padding_idx=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "width"), SHAPES[DEVICE])
def test_embedding_layer_norm(compare, copies, forward_backward, device, tokens, width, dtype):
    def make_inputs() -> tuple[Tensor, ...]:
        ids = torch.randint(VOCABULARY, (tokens,), device=device)
        ids[torch.rand(tokens, device=device) < 0.13] = MASK
        types = torch.randint(TYPES, (tokens,), device=device)
        positions = torch.arange(tokens, device=device) % 128
        tables = [torch.randn(rows, width, device=device, dtype=dtype) for rows in (VOCABULARY, TYPES, POSITIONS)]
        parameters = [torch.randn(width, device=device, dtype=dtype) for _ in range(2)]
        return ids, types, positions, *tables, *parameters, torch.randint(2**60, (), device=device)

    element = torch.finfo(dtype).bits // 8
    compare(
        "embedding_layer_norm",
        ours=forward_backward(ours, TABLES),
        plain=forward_backward(plain, TABLES),
        inputs=copies(make_inputs),
        # Word rows read twice, result, upstream gradient; the whole gradient of the word table.
        bytes_moved=(4 * tokens + VOCABULARY) * width * element,
        flops=24 * tokens * width,  # three rows added, LayerNorm and its backward pass, three gradients added
        shape=f"{tokens} tokens, E = {width}, V = {VOCABULARY}",
        dtype=str(dtype).removeprefix("torch."),
        target=3.0 if device == "cpu" and dtype == torch.float32 else None,
    )
