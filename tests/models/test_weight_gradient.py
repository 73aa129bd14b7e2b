"""The gradient of a linear layer's weight, by our own product, against float64."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from electra_fast.models import weight_gradient as module
from electra_fast.models.weight_gradient import weight_gradient
from electra_fast.ops import _backends

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("electra_fast._C") is None, reason="the C++ extension is not built here"
)


def by_kernel(dy: Tensor, x: Tensor, total: Tensor | None = None, threads: int = 1) -> Tensor:
    """The kernel itself, also where `weight_gradient` would leave it to BLAS."""
    dweight = torch.full((dy.shape[1], x.shape[1]), float("nan")) if total is None else total
    _backends.extension().weight_gradient(
        dy.data_ptr(),
        x.data_ptr(),
        dy.stride(0),
        x.stride(0),
        dy.shape[0],
        *dweight.shape,
        total is not None,
        dweight.data_ptr(),
        threads,
    )
    return dweight


def rows(tokens: int, width: int, spare: int) -> Tensor:
    """Standard normal [tokens, width] in wider rows, whose rest is NaN."""
    whole = torch.full((tokens, width + spare), float("nan"))
    whole[:, :width] = torch.randn(tokens, width)
    return whole[:, :width]


def assert_close(ours: Tensor, dy: Tensor, x: Tensor, total: Tensor | None = None) -> None:
    exact = dy.double().T @ x.double() + (0 if total is None else total.double())
    # Each of T roundings is of a partial sum, at most the sum of absolute products; half of 2^-23 each.
    bound = (dy.double().abs().T @ x.double().abs() + exact.abs()) * (dy.shape[0] + 2) * 2**-24
    assert ((ours.double() - exact).abs() <= bound).all()  # false for NaN


@pytest.mark.parametrize("tokens", [0, 1, 127, 128, 129, 333])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 64), (256, 64), (64, 256), (48, 192), (272, 128)])
def test_against_float64(tokens, outputs, inputs):
    dy, x = rows(tokens, outputs, 3), rows(tokens, inputs, 5)
    assert_close(by_kernel(dy, x), dy, x)
    before = torch.randn(outputs, inputs)
    assert_close(by_kernel(dy, x, before.clone()), dy, x, before)


@pytest.mark.parametrize(("outputs", "inputs"), [(80, 64), (64, 192), (16, 64)])
def test_the_same_bits_on_any_number_of_threads(outputs, inputs):
    dy, x = rows(300, outputs, 0), rows(300, inputs, 0)
    alone = by_kernel(dy, x)
    for threads in (2, 3, 7):
        assert torch.equal(by_kernel(dy, x, threads=threads), alone), threads


def test_a_gradient_that_is_not_finite_stays_where_it_is():
    dy, x = torch.randn(200, 64), torch.randn(200, 64)
    dy[150, 7] = float("inf")
    dweight = by_kernel(dy, x)
    assert not dweight[7].isfinite().any()
    assert_close(torch.cat([dweight[:7], dweight[8:]]), torch.cat([dy[:, :7], dy[:, 8:]], 1), x)


@pytest.mark.parametrize(("outputs", "inputs"), [(256, 256), (1024, 256), (250, 256), (256, 200), (2048, 256)])
@pytest.mark.parametrize("accumulates", [False, True])
def test_whoever_multiplies(outputs, inputs, accumulates):
    """Shapes of the kernel, and shapes that it leaves to BLAS."""
    dy, x = torch.randn(150, outputs), torch.randn(150, inputs)
    total = torch.randn(outputs, inputs) if accumulates else None
    ours = weight_gradient(dy, x, None if total is None else total.clone())
    assert_close(ours, dy, x, total)


def test_the_kernel_takes_what_it_is_faster_at(monkeypatch):
    monkeypatch.setattr(_backends.extension(), "has_wide_registers", lambda: True)
    module._is_for_ours.cache_clear()
    ours = module._is_for_ours
    assert all(ours(*case) for case in [(256, 256, 2), (1024, 256, 16), (64, 64, 1)])
    assert not ours(768, 768, 2)  # larger than was measured to gain
    assert not any(ours(*case) for case in [(1024, 256, 17), (64, 64, 2)])  # too little for each thread
    assert not any(ours(*case) for case in [(250, 256, 1), (256, 96, 1)])
    monkeypatch.setattr(_backends.extension(), "has_wide_registers", lambda: False)
    module._is_for_ours.cache_clear()
    assert not ours(256, 256, 2)
    monkeypatch.undo()
    module._is_for_ours.cache_clear()
