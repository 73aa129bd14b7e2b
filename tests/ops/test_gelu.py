"""bias_gelu on every backend, against float64."""

from __future__ import annotations

import math
import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops
from tests.ops.backends import BACKENDS, KERNELS, assert_as_accurate, needs_cpp, poison_new_tensors

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ALL = os.environ.get("ELECTRA_FAST_TEST_ALL") == "1"

# Why each shape: no row; no column; one element; one row; one column; primes; around the kernels' tile of 512 columns
# and block of 64 rows; ELECTRA-small's; three dimensions; the widest.
SHAPES = [(0, 5), (3, 0), (1, 1), (1, 1000), (130, 1), (13, 37), (63, 513), (129, 1024), (2, 3, 7), (5, 8192)]


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def takes(backend, dtype: torch.dtype) -> bool:
    return not (backend.name == "cpp" and dtype == torch.float16)


def gradients_of(call, x: Tensor, bias: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, bias = x.detach().requires_grad_(), bias.detach().requires_grad_()
    y = call(x, bias)
    return y.detach(), *torch.autograd.grad(y, (x, bias), dy.to(y.dtype))


def assert_accurate(backend, x: Tensor, bias: Tensor, dy: Tensor) -> None:
    exact = gradients_of(lambda x, bias: F.gelu(x + bias), x.double(), bias.double(), dy.double())
    plain = gradients_of(lambda x, bias: F.gelu(x + bias), x, bias, dy)
    with ops.use_backend(backend.name):
        ours = gradients_of(ops.bias_gelu, x, bias, dy)
    # Where the plain one is lucky: an eps of each result, and what float32 leaves of the erf (test_tails) and of
    # x + bias, of which the result in the tail is a small part. Of a sum over rows the sum of both.
    eps, rounding = torch.finfo(x.dtype).eps, 5e-7
    least = eps * torch.finfo(x.dtype).smallest_normal
    y, dx, dbias = (each.abs() for each in exact)
    of_dx = rounding * dy.double().abs()
    of_rows = (of_dx + torch.finfo(torch.float32).eps * dx).flatten(0, -2).sum(0)
    atols = eps * y + rounding * (x.double() + bias.double()).abs(), eps * dx + of_dx, eps * dbias + of_rows
    for name, got, plainly, exactly, atol in zip(("y", "dx", "dbias"), ours, plain, exact, atols, strict=True):
        assert_as_accurate(got, plainly, exactly, atol=atol.cpu() + least, name=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_result_and_gradients(backend, shape, dtype, rng_seed, monkeypatch):
    if not takes(backend, dtype):
        pytest.skip("float16 on a CPU is the reference's")
    if backend.interpreted and dtype != torch.float32 and math.prod(shape) > 10_000 and not ALL:
        pytest.skip("many programs; runs under ELECTRA_FAST_TEST_ALL=1")
    x, dy = (torch.randn(shape, device=backend.device).to(dtype) for _ in range(2))
    bias = torch.randn(shape[-1], device=backend.device).to(dtype)
    poison_new_tensors(monkeypatch)
    assert_accurate(backend, 2 * x, bias, dy)


@pytest.mark.parametrize("backend", [*BACKENDS[:2], *BACKENDS[3:]])
def test_more_than_65535_rows(backend, rng_seed):
    x, dy = torch.randn(70_001, 9, device=backend.device), torch.randn(70_001, 9, device=backend.device)
    assert_accurate(backend, x, torch.randn(9, device=backend.device), dy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tails(backend):
    u = torch.cat([torch.linspace(-15, 15, 6001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 100.0, -100.0, 1e30])])
    u = u.to(backend.device).requires_grad_()
    zero = torch.zeros(u.shape[0], device=backend.device)
    with ops.use_backend(backend.name):
        y = ops.bias_gelu(u[None], zero)[0]
    (du,) = torch.autograd.grad(y.sum(), u)
    exact_u = u.detach().double().requires_grad_()
    exact = exact_u * 0.5 * torch.erfc(-exact_u / math.sqrt(2.0))  # F.gelu's 1 + erf has lost the tail
    (exact_du,) = torch.autograd.grad(exact.sum(), exact_u)
    assert torch.equal(y[-1], u[-1])
    # Of each value above 0. Below it the erf of PyTorch and Triton leaves u eps / 2 of 1 + erf(u); C++ has the tail's
    # digits, but for u^2 rounded in the exponent.
    x = u.detach().double()
    below = exact.abs() * (1e-6 + 6e-8 * x**2) + 1e-37 if backend.name == "cpp" else 4e-7 * x.abs()
    assert ((y - exact).abs() <= torch.where(x < 0, below, 4e-7 * exact.abs())).all()
    assert ((du - exact_du).abs() <= 4e-7).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_number_stays_where_it_is(backend):
    x = torch.tensor([[math.nan, 1.0, math.nan, -1.0]], device=backend.device)
    with ops.use_backend(backend.name):
        y = ops.bias_gelu(x, torch.zeros(4, device=backend.device))
    assert y[0, ::2].isnan().all()
    torch.testing.assert_close(y[0, 1::2], F.gelu(x[0, 1::2]))


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_bits(dtype, rng_seed):
    x, dy, bias = torch.randn(1000, 300).to(dtype), torch.randn(1000, 300).to(dtype), torch.randn(300)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        with ops.use_backend("cpp"):
            results.append(gradients_of(ops.bias_gelu, x, bias, dy))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_input_and_upstream(backend, rng_seed):
    x, dy = torch.randn(6, 38, device=backend.device).t()[::2], torch.randn(6, 19, device=backend.device).t()
    bias = torch.randn(12, device=backend.device)[::2]
    with ops.use_backend(backend.name):
        got = gradients_of(ops.bias_gelu, x, bias, dy)
        expected = gradients_of(ops.bias_gelu, x.contiguous(), bias.contiguous(), dy.contiguous())
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_result_used_twice(backend, rng_seed):
    x, bias = torch.randn(5, 9, device=backend.device, requires_grad=True), torch.randn(9, device=backend.device)
    with ops.use_backend(backend.name):
        y = ops.bias_gelu(x, bias)
        (once,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
        (thrice,) = torch.autograd.grad((2 * y + y).sum(), x)
    torch.testing.assert_close(thrice, 3 * once, rtol=1e-6, atol=1e-7)


def test_gradcheck_of_the_reference(rng_seed):
    x, bias = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    with ops.use_backend("reference"):
        assert torch.autograd.gradcheck(ops.bias_gelu, (x, bias.requires_grad_()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_follows_the_input_and_takes_a_float32_bias(backend, rng_seed):
    x = torch.randn(7, 33, device=backend.device).bfloat16()
    bias = torch.randn(33, device=backend.device, requires_grad=True)
    with ops.use_backend(backend.name), torch.autocast(backend.device, torch.bfloat16):
        y = ops.bias_gelu(x, bias)
    assert y.dtype == torch.bfloat16
    assert torch.autograd.grad(y.sum(), bias)[0].dtype == torch.float32
    torch.testing.assert_close(y, F.gelu(x.float() + bias).bfloat16(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_gives_the_same_bits_for_any_token_count(backend, compiler, rng_seed):
    if compiler == "inductor" and backend.name != "reference":
        pytest.skip("the operator is opaque to the compiler: one backend under inductor is enough")
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, bias: ops.bias_gelu(x, bias), fullgraph=True, dynamic=True, backend=compiler)
    bias = torch.randn(40, device=backend.device)
    with ops.use_backend(backend.name), torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (3, 5, 70):
            x, dy = (torch.randn(rows, 40, device=backend.device) for _ in range(2))
            for got, expected in zip(
                gradients_of(compiled, x, bias, dy), gradients_of(ops.bias_gelu, x, bias, dy), strict=True
            ):
                assert torch.equal(got, expected)


@pytest.mark.parametrize("backend", KERNELS[:1] + BACKENDS[:1])
def test_opcheck(backend, rng_seed):
    x, bias = torch.randn(4, 9, requires_grad=True), torch.randn(9, requires_grad=True)
    with ops.use_backend(backend.name):
        torch.library.opcheck(torch.ops.electra_fast.bias_gelu.default, (x, bias))
        torch.library.opcheck(
            torch.ops.electra_fast.bias_gelu_backward.default, (x.detach(), x.detach(), bias.detach())
        )


def test_bad_input_is_named():
    x, bias = torch.zeros(3, 4), torch.zeros(4)
    with pytest.raises(TypeError, match="x must be"):
        ops.bias_gelu(x.long(), bias)
    with pytest.raises(ValueError, match="x must have"):
        ops.bias_gelu(torch.zeros(()), bias)
    with pytest.raises(TypeError, match="bias must be"):
        ops.bias_gelu(x, bias.half())
    with pytest.raises(ValueError, match="bias has 3 entries, x has 4"):
        ops.bias_gelu(x, bias[:3])
    with pytest.raises(ValueError, match="bias lies on meta"):
        ops.bias_gelu(x, bias.to("meta"))
