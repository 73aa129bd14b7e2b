"""What the tests of the generator's head share: inputs, PyTorch's own chain, and the comparison with float64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops
from tests.ops.backends import Backend, assert_as_accurate


def make_inputs(rows: int, vocab_size: int, width: int, dtype=torch.float32, device="cpu") -> dict[str, Tensor]:
    return {
        "hidden": torch.randn(rows, width).to(device, dtype),
        "weight": (torch.randn(vocab_size, width) / math.sqrt(width) * 2).to(device, dtype),
        "bias": torch.randn(vocab_size).to(device, dtype),
        "labels": torch.randint(vocab_size, (rows,)).to(device),
        "weights": ((torch.rand(rows) < 0.8) * torch.rand(rows)).to(device),
    }


def leaves_of(x: dict[str, Tensor]) -> list[Tensor]:
    return [x[name].requires_grad_() for name in ("hidden", "weight", "bias")]


def plain(x: dict[str, Tensor], d_loss: float, d_nll: Tensor | None) -> list[Tensor]:
    """loss, nll and gradients by PyTorch's own functions, logits in the dtype of the inputs, as models have them."""
    x = {name: tensor.detach().clone() for name, tensor in x.items()}
    leaves = leaves_of(x)
    logits = F.linear(*leaves)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nll = F.cross_entropy(logits, x["labels"], reduction="none")
    loss = (x["weights"] * torch.where(x["weights"] > 0, nll, 0)).sum()
    target = loss * d_loss if d_nll is None else loss * d_loss + (nll * d_nll).sum()
    return [loss, nll, *torch.autograd.grad(target, leaves)]


def ours(x: dict[str, Tensor], d_loss: float, d_nll: Tensor | None, **options) -> list[Tensor]:
    leaves = leaves_of(x)
    out = ops.linear_cross_entropy_sample(**x, seed=1, **options)
    target = out.loss_sum * d_loss if d_nll is None else out.loss_sum * d_loss + (out.nll * d_nll).sum()
    return [out.loss_sum, out.nll, *torch.autograd.grad(target, leaves)]


def check_against_float64(
    backend: Backend, x: dict[str, Tensor], d_loss: float, d_nll: Tensor | None, *, exact_rows: int = 0
) -> None:
    """Loss, nll and gradients; the logits of the first `exact_rows` rows are such that no order of sums rounds them."""
    wide = {k: t.double() if t.is_floating_point() else t for k, t in x.items()}
    exact = plain(wide, d_loss, d_nll)
    same_dtype = plain(x, d_loss, d_nll)
    with ops.use_backend(backend.name):
        got = ours(x, d_loss, d_nll)
    # Where PyTorch's happened to be lucky: a logit's rounding, an eps of what it adds up, is the error of its nll and a
    # relative one of its probability. Over rows roundings add as a random walk does.
    hidden, weight, bias = (wide[name].detach().abs() for name in ("hidden", "weight", "bias"))
    logits = torch.finfo(torch.float32).eps * (hidden @ weight.T + bias.where(bias.isfinite(), 0)).amax(1)  # [rows]
    logits[:exact_rows] = 0
    used = d_loss * wide["weights"] + (0 if d_nll is None else d_nll)
    walk = (logits * used).norm()
    of_logits = {
        "loss": (logits * wide["weights"]).norm(),
        "nll": logits,
        "d_hidden": (logits * used.abs())[:, None] * weight.max(),
        "d_weight": walk * (hidden.max() if len(hidden) else 0),
        "d_bias": walk,
    }
    for (name, atol), a, b, c in zip(of_logits.items(), got, same_dtype, exact, strict=True):
        scale = c.abs().nan_to_num(posinf=0.0).max().item() if c.numel() else 0.0
        assert_as_accurate(a, b, c, atol=2 * torch.finfo(a.dtype).eps * scale + 1e-6 + atol.cpu(), name=name)


def too_slow(backend: Backend, rows: int, vocab_size: int, width: int) -> bool:
    return backend.interpreted and (rows > 500 or rows * vocab_size * width > 10**6)
