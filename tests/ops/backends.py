"""The backends that tests of operators run on, and the bound on their errors."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from electra_fast.ops import _backends

needs_cpp = pytest.mark.skipif(_backends._extension_error() is not None, reason="the C++ extension is not built")
needs_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or _backends._triton_error() is not None,
    reason="runs Triton on the CPU: needs Triton and TRITON_INTERPRET=1",
)


class Backend(NamedTuple):
    name: str
    device: str

    @property
    def interpreted(self) -> bool:
        """Takes 6 ms a program: at most 64 programs a case."""
        return self == ("triton", "cpu")


# For `@pytest.mark.parametrize("backend", BACKENDS)`; on CUDA the same tests, selected by `-m gpu`.
BACKENDS = [
    pytest.param(Backend("reference", "cpu"), id="reference"),
    pytest.param(Backend("cpp", "cpu"), id="cpp", marks=needs_cpp),
    pytest.param(Backend("triton", "cpu"), id="interpreter", marks=needs_interpreter),
    pytest.param(Backend("reference", "cuda"), id="reference-cuda", marks=pytest.mark.gpu),
    pytest.param(Backend("triton", "cuda"), id="triton-cuda", marks=pytest.mark.gpu),
]
KERNELS = BACKENDS[1:3] + BACKENDS[4:]  # all but the reference


def assert_as_accurate(
    ours: Tensor, plain: Tensor, exact: Tensor, *, atol: float | Tensor, name: str = "result"
) -> None:
    """err(ours) <= 2 * err(plain) + atol in the largest element, against float64.

    `plain` is PyTorch in the same dtype on the same inputs, `exact` the float64 result. A NaN or infinity of `ours`
    counts as right only where `exact` has the same. `atol` covers chance: one result may hit a lucky rounding. As a
    tensor it is a bound for each element.
    """
    assert ours.shape == exact.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
    assert ours.dtype == plain.dtype, f"{name}: dtype {ours.dtype}, expected {plain.dtype}"
    if exact.numel() == 0:
        return
    ours, plain, exact = (tensor.detach().double().cpu() for tensor in (ours, plain, exact))
    finite = exact.isfinite()
    assert torch.equal(
        torch.where(finite, 0, exact).nan_to_num(nan=7.0), torch.where(finite, 0, ours).nan_to_num(nan=7.0)
    ), f"{name}: infinities or NaNs in other places"
    error = torch.where(finite, ours - exact, 0).abs()
    # Where PyTorch itself overflows it bounds nothing.
    allowed = 2 * torch.where(finite & plain.isfinite(), plain - exact, 0).abs().max() + atol
    worst = (error - allowed).argmax()
    error, allowed = error.flatten()[worst].item(), allowed.expand(exact.shape).flatten()[worst].item()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def poison_new_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on uninitialised tensors come filled (NaN, a huge integer, True): what no kernel wrote will show."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make_poisoned(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            if tensor.is_floating_point():
                return tensor.fill_(math.nan)
            return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max - 5)

        return make_poisoned

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
