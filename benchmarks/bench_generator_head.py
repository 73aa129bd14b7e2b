"""The generator's head and sampling from logits, beside the plain chain, other fused losses and the floor.

`floor` is the head's three matrix products alone, into tensors made before.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# (masked positions, E): batches of 16 x 128 and 128 x 128 of ELECTRA-small; on a GPU ELECTRA-base's width too.
SHAPES = {"cpu": [(304, 128), (2432, 128)], "cuda": [(2458, 128), (16_384, 128), (16_384, 768)]}
# In bfloat16 the smaller batch on a CPU, where plain takes seconds; on a GPU all.
CASES = [(*shape, torch.float32) for shape in SHAPES[DEVICE]]
CASES += [(*shape, torch.bfloat16) for shape in (SHAPES[DEVICE] if DEVICE == "cuda" else SHAPES[DEVICE][:1])]
DTYPES = {"cpu": [torch.float32], "cuda": [torch.float32, torch.bfloat16]}
VOCAB_SIZE = 30522
QUICK_ROWS = 4  # for a look without measuring
WRT = [0, 1, 2]  # hidden, weight, bias


def gumbel_max(logits: Tensor) -> Tensor:
    with torch.no_grad():
        return (logits - torch.empty_like(logits).exponential_().log_()).argmax(dim=1)


def multinomial(logits: Tensor) -> Tensor:
    return torch.multinomial(torch.softmax(logits, dim=1), 1)


def ours(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, weights: Tensor, seed: Tensor) -> Tensor:
    return ops.linear_cross_entropy_sample(hidden, weight, bias, labels, weights, seed=seed).loss_sum


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, weights: Tensor, seed: Tensor) -> Tensor:
    logits = F.linear(hidden, weight, bias).float()
    gumbel_max(logits)
    return (F.cross_entropy(logits, labels, reduction="none") * weights).sum()


def torch_chunked(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, weights: Tensor, seed: Tensor
) -> Tensor:
    """PyTorch's linear cross-entropy without whole logits, in chunks of the best size.

    On CPU that is 256 rows: the default, chunks of 1 to 8 rows, takes 5 to 18 times as long. On CUDA the default was
    measured by its authors.
    """
    options = torch.nn.LinearCrossEntropyOptions(**({} if hidden.is_cuda else {"batch_chunk_size": 256}))
    loss = F.linear_cross_entropy(hidden, weight, labels, linear_bias=bias, reduction="sum", options=options)
    return sample_apart(loss, hidden, weight, bias)


def sample_apart(loss: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """None of the rivals gives logits to sample from: they are made again."""
    with torch.no_grad():
        gumbel_max(F.linear(hidden, weight, bias).float())
    return loss


def liger_head(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, weights: Tensor, seed: Tensor) -> Tensor:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    loss = LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, labels, bias, None, -100, 0.0, 0.0, "sum")
    return sample_apart(loss[0] if isinstance(loss, tuple) else loss, hidden, weight, bias)


def cut_cross_entropy_head(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, weights: Tensor, seed: Tensor
) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    loss = linear_cross_entropy(hidden, weight, labels, reduction="sum")  # it knows no bias
    return sample_apart(loss, hidden, weight, bias)


# By the module to import: the call, and the arguments it has gradients for.
OTHER_LIBRARIES = {"liger_kernel": (liger_head, [0, 1, 2]), "cut_cross_entropy": (cut_cross_entropy_head, [0, 1])}


def three_products(rows: int, width: int, dtype: torch.dtype, device: str) -> Callable[..., None]:
    """The matrix products alone, into tensors made before."""
    logits = torch.empty(rows, VOCAB_SIZE, dtype=dtype, device=device)
    d_hidden, d_weight = logits.new_empty(rows, width), logits.new_empty(VOCAB_SIZE, width)

    def products(hidden: Tensor, weight: Tensor, *_: Tensor) -> None:
        with torch.no_grad():
            torch.mm(hidden, weight.t(), out=logits)
            torch.mm(logits, weight, out=d_hidden)
            torch.mm(logits.t(), hidden, out=d_weight)

    return products


def work(rows: int, width: int, dtype: torch.dtype) -> dict[str, int]:
    """Of a call: operations of the three products; hidden states, weight and both gradients once."""
    return {
        "flops": 6 * rows * width * VOCAB_SIZE,
        "bytes_moved": 2 * (rows + VOCAB_SIZE) * width * dtype.itemsize,
    }


def maker_of_inputs(rows: int, width: int, dtype: torch.dtype, device: str) -> Callable[[], tuple[Tensor, ...]]:
    def make_inputs() -> tuple[Tensor, ...]:
        return (
            torch.randn(rows, width, device=device, dtype=dtype),
            torch.randn(VOCAB_SIZE, width, device=device, dtype=dtype) * 0.1,
            torch.zeros(VOCAB_SIZE, device=device, dtype=dtype),
            torch.randint(VOCAB_SIZE, (rows,), device=device),
            torch.ones(rows, device=device),
            torch.randint(2**60, (), device=device),
        )

    return make_inputs


@pytest.mark.parametrize(("rows", "width", "dtype"), CASES)
def test_linear_cross_entropy_sample(compare, copies, forward_backward, benchmark, device, rows, width, dtype):
    rows = rows if benchmark.enabled else QUICK_ROWS
    is_asked = device == "cpu" and dtype == torch.float32
    rivals = {"floor": three_products(rows, width, dtype, device)}
    if hasattr(F, "linear_cross_entropy"):  # from PyTorch 2.13 on
        rivals["F.linear_cross_entropy + sample"] = forward_backward(torch_chunked, WRT)
    compare(
        "linear_cross_entropy_sample",
        ours=forward_backward(ours, WRT),
        plain=forward_backward(plain, WRT),
        inputs=copies(maker_of_inputs(rows, width, dtype, device)),
        rivals=rivals,
        shape=f"[{rows}, {width}], V = {VOCAB_SIZE}",
        **work(rows, width, dtype),
        target={"plain": 3.5, "floor": 1 / 1.3} if is_asked else None,
    )


@pytest.mark.parametrize("library", OTHER_LIBRARIES)
@pytest.mark.parametrize(("rows", "width", "dtype"), CASES)
def test_beside_the_head_of(library, compare, copies, forward_backward, device, rows, width, dtype):
    if device != "cuda":
        pytest.skip(f"{library} has kernels for GPUs only")
    pytest.importorskip(library)
    call, wrt = OTHER_LIBRARIES[library]
    compare(
        f"linear_cross_entropy_sample, {library}",
        ours=forward_backward(ours, WRT),
        plain=forward_backward(plain, WRT),
        inputs=copies(maker_of_inputs(rows, width, dtype, device)),
        rivals={
            f"{library} + sample": forward_backward(call, wrt),
            "floor": three_products(rows, width, dtype, device),
        },
        **work(rows, width, dtype),
        shape=f"[{rows}, {width}], V = {VOCAB_SIZE}",
    )


@pytest.mark.parametrize("dtype", DTYPES[DEVICE], ids=str)
def test_sample_tokens(compare, copies, benchmark, device, dtype):
    rows = 2458 if benchmark.enabled else QUICK_ROWS  # 15% of 128 x 128

    def make_inputs() -> tuple[Tensor, Tensor]:
        logits = 2 * torch.randn(rows, VOCAB_SIZE, device=device)
        return logits.to(dtype), torch.randint(2**60, (), device=device)

    compare(
        "sample_tokens",
        ours=lambda logits, seed: ops.sample_tokens(logits, seed=seed),
        plain=lambda logits, seed: gumbel_max(logits.float()),
        inputs=copies(make_inputs),
        rivals={"multinomial": lambda logits, seed: multinomial(logits.float())},
        bytes_moved=rows * VOCAB_SIZE * dtype.itemsize,
        target=3.0 if device == "cpu" and dtype == torch.float32 else None,
    )
