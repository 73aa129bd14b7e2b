"""varlen_attention beside SDPA: on full sequences, padded and packed being the same, and on ragged ones."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops
from electra_fast.attention import attention

# (sequences, tokens a sequence, heads) with heads of 64 dimensions: ELECTRA-small, its generator, ELECTRA-base.
SHAPES = {
    "cpu": [(16, 128, 4), (16, 128, 1), (4, 512, 12)],
    "cuda": [(128, 128, 4), (128, 128, 12), (64, 512, 12)],
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}[DEVICE]
# Beside DTYPE on the first shape only: what a dtype gains differs little from shape to shape.
MORE_DTYPES = {"cpu": [torch.bfloat16], "cuda": []}[DEVICE]
CASES = [(*shape, DTYPE) for shape in SHAPES[DEVICE]] + [(*SHAPES[DEVICE][0], dtype) for dtype in MORE_DTYPES]
HEAD_DIM = 64


def operations(lengths: list[int], heads: int, backward: bool) -> int:
    """Of the two products of a forward pass and the four of a backward one."""
    return (6 if backward else 2) * 2 * heads * HEAD_DIM * sum(length**2 for length in lengths)


def bytes_moved(num_tokens: int, heads: int, dtype: torch.dtype, backward: bool) -> int:
    """Forward: q, k, v in, the result out. Backward: q, k, v, the result and its gradient in, three gradients out."""
    return (12 if backward else 4) * num_tokens * heads * HEAD_DIM * dtype.itemsize


def make_views(num_tokens: int, heads: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Thirds of a fused projection, as the models pass them."""
    return torch.randn(num_tokens, 3, heads, HEAD_DIM, device=DEVICE, dtype=dtype).unbind(1)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize(("sequences", "length", "heads", "dtype"), CASES)
def test_full_sequences(compare, copies, forward_backward, sequences, length, heads, dtype, p, backward):
    num_tokens = sequences * length
    cu_seqlens = torch.arange(0, num_tokens + 1, length, dtype=torch.int32, device=DEVICE)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.varlen_attention(q, k, v, cu_seqlens, length, p=p, seed=1)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        padded = (x.view(sequences, length, heads, HEAD_DIM).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(*padded, dropout_p=p)
        return out.transpose(1, 2).reshape(num_tokens, heads, HEAD_DIM)

    wrap = partial(forward_backward, wrt=(0, 1, 2)) if backward else lambda call: call
    compare(
        f"varlen_attention, dropout {p}",
        ours=wrap(ours),
        plain=wrap(plain),
        inputs=copies(partial(make_views, num_tokens, heads, dtype)),
        shape=f"{sequences} x {length}, {heads} heads of {HEAD_DIM}",
        flops=operations([length] * sequences, heads, backward),
        bytes_moved=bytes_moved(num_tokens, heads, dtype, backward),
    )


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_ragged_sequences(compare, copies, forward_backward, p, backward):
    # Sentences: 5 to 60 tokens, 25 on average, as those of SST-2.
    lengths = (5 + torch.empty(32).exponential_(1 / 20).clamp(max=55)).long()
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(DEVICE, torch.int32)
    num_tokens, longest, heads = int(lengths.sum()), int(lengths.max()), 4

    def run(q: Tensor, k: Tensor, v: Tensor, backend: str | None) -> Tensor:
        return attention(q, k, v, cu_seqlens, longest, p=p, seed=1, backend=backend)

    wrap = partial(forward_backward, wrt=(0, 1, 2)) if backward else lambda call: call
    compare(
        f"varlen_attention, ragged, dropout {p}",
        ours=wrap(partial(run, backend=None)),
        plain=wrap(partial(run, backend="sdpa")),
        inputs=copies(partial(make_views, num_tokens, heads, DTYPE)),
        shape=f"32 sentences, {num_tokens} tokens, {heads} heads of {HEAD_DIM}",
        flops=operations(lengths.tolist(), heads, backward),
        bytes_moved=bytes_moved(num_tokens, heads, DTYPE, backward),
    )
