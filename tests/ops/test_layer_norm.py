"""layer_norm and dropout_add_layer_norm on every backend, against float64 and the oracle of the random numbers."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops
from electra_fast.ops.random import threshold
from tests.ops import numpy_oracle
from tests.ops.backends import BACKENDS, KERNELS, assert_as_accurate, needs_cpp, poison_new_tensors

TEST_ALL = os.environ.get("ELECTRA_FAST_TEST_ALL") == "1"
P = 0.1
SEED, STREAM = -1234567890123456789, 2**31 - 1  # every word of the key and the last stream
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Why each shape: one element, one column, one row, prime and odd, a row between two vectors of C++ (16 floats), several
# blocks of rows for the weight gradients (32 a block), the generator, ELECTRA-small and -base, and the widest.
SHAPES = [(1, 1), (7, 1), (1, 5), (3, 17), (5, 127), (101, 64), (70, 256), (9, 768), (2, 4093), (3, 8192)]


class Inputs:
    """Leaves that require gradients, and a random upstream gradient."""

    def __init__(
        self,
        *shape: int,
        dtype: torch.dtype = torch.float32,
        x_dtype: torch.dtype | None = None,
        device: str = "cpu",
        offset: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        width = shape[-1]
        self.x = (torch.randn(shape) * scale + offset).to(device, x_dtype or dtype).requires_grad_()
        self.residual = (torch.randn(shape) * scale + offset).to(device, dtype).requires_grad_()
        self.weight = torch.randn(width).to(device).requires_grad_()
        self.bias = torch.randn(width).to(device).requires_grad_()
        self.dy = torch.randn(shape).to(device, dtype)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, self.residual, self.weight, self.bias]


def oracle_factors(rows: np.ndarray, width: int, p: float, seed: int = SEED, stream: int = STREAM) -> Tensor:
    """What dropout multiplies by, float64 [rows, width]."""
    words = np.concatenate([numpy_oracle.philox(seed, rows, block, stream) for block in range((width + 3) // 4)])
    kept = words.T[:, :width].astype(np.int64) >= round(p * 2**32)
    return torch.from_numpy(kept * np.float64(np.float32(1 / (1 - p))))


def plain(inputs: Inputs, factors: Tensor | None, dtype: torch.dtype | None = None) -> list[Tensor]:
    """y, dx, dresidual, dweight, dbias by PyTorch's own calls, in the dtype of the residual or in float64."""
    dtype = dtype or inputs.residual.dtype
    x, residual = (t.detach().to(dtype).requires_grad_() for t in (inputs.x, inputs.residual))
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (t.detach().to(kind).requires_grad_() for t in (inputs.weight, inputs.bias))
    dropped = x if factors is None else x * factors.to(x.device, dtype).view(x.shape)
    # PyTorch on CPU takes float32 parameters for bfloat16 data, as we do; elsewhere they must agree.
    parameters = (weight.to(dtype), bias.to(dtype)) if dtype == torch.float16 or x.is_cuda else (weight, bias)
    y = F.layer_norm(dropped + residual, x.shape[-1:], *parameters, 1e-12)
    gradients = torch.autograd.grad(y, [x, residual, weight, bias], inputs.dy.to(dtype))
    return [y, *gradients]


def ours(inputs: Inputs, *, p: float = 0.0, row_ids: Tensor | None = None, seed: int | Tensor = SEED) -> list[Tensor]:
    y = ops.dropout_add_layer_norm(
        inputs.x, inputs.residual, inputs.weight, inputs.bias, p=p, seed=seed, stream=STREAM, row_ids=row_ids
    )
    return [y, *torch.autograd.grad(y, inputs.leaves, inputs.dy)]


NAMES = ("y", "dx", "dresidual", "dweight", "dbias")


def check(
    results: list[Tensor], expected: list[Tensor], exact: list[Tensor], inputs: Inputs, factors: Tensor | None = None
) -> None:
    """Within twice PyTorch's error, and where that is lucky within four roundings.

    LayerNorm multiplies the rounding of its row, an eps of the largest term, by rstd, and its gradient by rstd again:
    rows of random numbers may be nearly constant. In a sum over rows roundings add as a random walk does.
    """
    width = inputs.x.shape[-1]
    x, residual, dy = (t.detach().double().cpu().view(-1, width) for t in (inputs.x, inputs.residual, inputs.dy))
    x = x if factors is None else x * factors
    rstd = ((x + residual).var(1, correction=0, keepdim=True) + 1e-12).rsqrt()
    rstd = rstd if width > 1 else torch.zeros_like(rstd)  # a single column is constant: exact
    weight = inputs.weight.detach().double().cpu()
    x_hat = 1 + rstd * (x.abs() + residual.abs()).amax(1, keepdim=True)
    gradient = x_hat * rstd * (dy * weight).abs().amax(1, keepdim=True)
    kept = gradient if factors is None else gradient * factors
    sums = (4 * (units * dy).square().sum(0).sqrt() for units in (x_hat, torch.ones_like(x_hat)))
    in_float32 = (x_hat * weight.abs(), kept, gradient, *sums)
    for name, result, plain_result, exact_result, units in zip(
        NAMES, results, expected, exact, in_float32, strict=True
    ):
        truth = exact_result.detach().cpu()
        atol = torch.finfo(torch.float32).eps * 4 * units.expand(dy.shape if truth.dim() > 1 else (width,))
        atol = atol.view(truth.shape) + torch.finfo(result.dtype).eps * truth.abs()
        atol = atol.nan_to_num(nan=0.0, posinf=0.0) + 1e-30  # where the truth is finite, so are the units
        # A gradient has its leaf's dtype, which may differ from the one PyTorch computed in.
        assert_as_accurate(result, plain_result.to(result.dtype), exact_result, atol=atol, name=name)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, P])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(backend, shape, p, dtype, rng_seed, monkeypatch):
    if backend == ("cpp", "cpu") and dtype == torch.float16:
        pytest.skip("float16 on CPU runs on the reference")
    if backend.interpreted and dtype != torch.float32 and p == 0.0 and not TEST_ALL:
        pytest.skip("16 bits with dropout alone, for the interpreter's sake; both under ELECTRA_FAST_TEST_ALL=1")
    if backend.interpreted and shape[1] > 4000 and dtype != torch.float32 and not TEST_ALL:
        pytest.skip("takes seconds in the interpreter: set ELECTRA_FAST_TEST_ALL=1")
    inputs = Inputs(*shape, dtype=dtype, device=backend.device)
    factors = oracle_factors(np.arange(shape[0]), shape[1], p) if p else None
    expected, exact = plain(inputs, factors), plain(inputs, factors, torch.float64)
    if shape[1] == 1:
        # The variance is exactly 0 and rstd 1e6, which multiplies what rounding leaves: y is exact, gradients are 0.
        exact[1:4] = [torch.zeros_like(t) for t in exact[1:4]]
    poison_new_tensors(monkeypatch)
    with ops.use_backend(backend.name):
        check(ours(inputs, p=p), expected, exact, inputs, factors)


@pytest.mark.parametrize("shape", [(5, 127), (70, 256)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_norm_alone(backend, shape, rng_seed, monkeypatch):
    inputs = Inputs(*shape, device=backend.device)
    inputs.residual.data.zero_()
    expected, exact = plain(inputs, None), plain(inputs, None, torch.float64)
    poison_new_tensors(monkeypatch)
    with ops.use_backend(backend.name):
        y = ops.layer_norm(inputs.x, inputs.weight, inputs.bias)
    leaves = [inputs.x, inputs.weight, inputs.bias]
    results = [y, *torch.autograd.grad(y, leaves, inputs.dy)]
    results.insert(2, results[1])  # without a residual of its own
    check(results, expected, exact, inputs)


@pytest.mark.parametrize(
    ("x_dtype", "dtype"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=["low", "high"]
)
@pytest.mark.parametrize("p", [0.0, P])
@pytest.mark.parametrize("backend", BACKENDS)
def test_x_of_another_dtype(backend, p, x_dtype, dtype, rng_seed, monkeypatch):
    inputs = Inputs(37, 128, dtype=dtype, x_dtype=x_dtype, device=backend.device)
    factors = oracle_factors(np.arange(37), 128, p) if p else None
    expected, exact = plain(inputs, factors), plain(inputs, factors, torch.float64)
    poison_new_tensors(monkeypatch)
    with ops.use_backend(backend.name):
        results = ours(inputs, p=p)
    assert [t.dtype for t in results] == [dtype, x_dtype, dtype, torch.float32, torch.float32]
    check(results, expected, exact, inputs, factors)


@pytest.mark.parametrize(
    ("x_dtype", "dtype"),
    [
        (torch.float32, torch.float16),
        (torch.float16, torch.float32),
        (torch.float64, torch.bfloat16),
        (torch.bfloat16, torch.float64),
    ],
)
def test_mixes_that_no_kernel_takes_are_computed_wide(x_dtype, dtype, rng_seed):
    inputs = Inputs(6, 20, dtype=dtype, x_dtype=x_dtype)
    expected, exact = plain(inputs, None), plain(inputs, None, torch.float64)
    results = ours(inputs)
    assert [t.dtype for t in results] == [dtype, x_dtype, dtype, torch.float32, torch.float32]
    check(results, expected, exact, inputs)


@pytest.mark.parametrize(
    ("offset", "scale"),
    [(1e3, 1.0), (-1e6, 10.0), (0.0, 1e15), (0.0, 1e-15), (0.0, 1e-30)],
    ids=["mean 1e3", "mean -1e6", "huge", "tiny", "below eps"],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_far_from_one(backend, offset, scale, rng_seed):
    inputs = Inputs(33, 96, device=backend.device, offset=offset, scale=scale)
    expected, exact = plain(inputs, None), plain(inputs, None, torch.float64)
    with ops.use_backend(backend.name):
        results = ours(inputs)
    check(results, expected, exact, inputs)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e3, 123456.789, 3e-7])
@pytest.mark.parametrize("width", [1, 3, 64, 250])
@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_rows_give_the_bias(backend, width, value, rng_seed):
    """eps is 1e-12: whatever rounding leaves of the variance would be multiplied by a million."""
    inputs = Inputs(4, width, device=backend.device)
    inputs.x.data.fill_(value)
    inputs.residual.data.zero_()
    with ops.use_backend(backend.name):
        y = ours(inputs)[0]
    assert torch.equal(y, inputs.bias.expand_as(y))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_or_infinity_stays_in_its_row(backend, rng_seed):
    inputs = Inputs(6, 40, device=backend.device)
    inputs.x.data[1, 7] = float("nan")
    inputs.x.data[4, 39] = float("inf")
    expected, exact = plain(inputs, None), plain(inputs, None, torch.float64)
    with ops.use_backend(backend.name):
        results = ours(inputs)
    check(results[:3] + expected[3:], expected, exact[:3] + [t.double() for t in expected[3:]], inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_dimensions_and_strides(backend, rng_seed):
    inputs = Inputs(4, 3, 24, device=backend.device)
    with ops.use_backend(backend.name):
        results = ours(inputs, p=P)
        flat = Inputs(12, 24, device=backend.device)
        for name in ("x", "residual", "weight", "bias", "dy"):
            tensor = getattr(inputs, name)
            setattr(flat, name, tensor.detach().reshape(getattr(flat, name).shape).requires_grad_())
        for result, flat_result in zip(results, ours(flat, p=P), strict=True):
            assert torch.equal(result, flat_result.view_as(result))
        # Every second row and column of something larger, a transposed residual, an expanded upstream gradient.
        wide = torch.randn(8, 48, device=backend.device)
        strided = Inputs(4, 24, device=backend.device)
        strided.x = wide[::2, ::2].requires_grad_()
        strided.residual = torch.randn(24, 4, device=backend.device).T.requires_grad_()
        strided.dy = torch.randn(4, 1, device=backend.device).expand(4, 24)
        whole = Inputs(4, 24, device=backend.device)
        for name in ("x", "residual", "weight", "bias", "dy"):
            setattr(whole, name, getattr(strided, name).detach().clone(memory_format=torch.contiguous_format))
            getattr(whole, name).requires_grad_()
        for result, expected in zip(ours(strided, p=P), ours(whole, p=P), strict=True):
            assert torch.equal(result, expected)


@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16)])
@pytest.mark.parametrize("p", [0.0, P])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend, p, shape, monkeypatch):
    inputs = Inputs(*shape, device=backend.device)
    poison_new_tensors(monkeypatch)
    with ops.use_backend(backend.name):
        y, dx, dresidual, dweight, dbias = ours(inputs, p=p)
        assert ops.layer_norm(inputs.x, inputs.weight, inputs.bias).shape == shape
    assert y.shape == dx.shape == dresidual.shape == shape
    assert torch.equal(dweight, torch.zeros_like(dweight))
    assert torch.equal(dbias, torch.zeros_like(dbias))


@pytest.mark.parametrize("backend", [KERNELS[0], KERNELS[2]])
def test_more_rows_than_a_grid_axis_holds(backend, rng_seed, monkeypatch):
    inputs = Inputs(70_001, 8, device=backend.device)
    factors = oracle_factors(np.arange(70_001), 8, P)
    expected, exact = plain(inputs, factors), plain(inputs, factors, torch.float64)
    poison_new_tensors(monkeypatch)
    with ops.use_backend(backend.name):
        check(ours(inputs, p=P), expected, exact, inputs, factors)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradcheck_of_the_reference(p, rng_seed):
    x, residual = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(7, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def call(x, residual, weight, bias):
        return ops.dropout_add_layer_norm(x, residual, weight, bias, p=p, seed=SEED)

    with ops.use_backend("reference"):
        assert torch.autograd.gradcheck(call, (x, residual, weight, bias))
        assert torch.autograd.gradcheck(lambda x, w, b: ops.layer_norm(x, w, b), (x, weight, bias))


@pytest.mark.parametrize("p", [0.0, P])
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_gradients_asked_for(backend, p, rng_seed, monkeypatch):
    inputs = Inputs(35, 24, device=backend.device)
    poison_new_tensors(monkeypatch)
    with ops.use_backend(backend.name):
        everything = ours(inputs, p=p)[1:]
        for asked in ([0], [1], [2], [3], [0, 3], [1, 2]):
            leaves = [leaf.detach().requires_grad_(i in asked) for i, leaf in enumerate(inputs.leaves)]
            y = ops.dropout_add_layer_norm(*leaves, p=p, seed=SEED, stream=STREAM)
            gradients = torch.autograd.grad(y, [leaves[i] for i in asked], inputs.dy)
            for i, gradient in zip(asked, gradients, strict=True):
                assert torch.equal(gradient, everything[i]), (asked, i)


@pytest.mark.parametrize("backend", BACKENDS)
def test_double_use_of_a_result_and_accumulation(backend, rng_seed):
    """x as its own residual, the result used twice, and two backward passes into .grad."""
    inputs = Inputs(9, 16, device=backend.device)
    with ops.use_backend(backend.name):
        for _ in range(2):
            y = ops.dropout_add_layer_norm(inputs.x, inputs.x, inputs.weight, inputs.bias)
            (y * inputs.dy + y.square() / 2).sum().backward()
    x, weight, bias = (t.detach().double().requires_grad_() for t in (inputs.x, inputs.weight, inputs.bias))
    y = F.layer_norm(2 * x, (16,), weight, bias, 1e-12)
    (y * inputs.dy + y.square() / 2).sum().backward()
    for name in ("x", "weight", "bias"):
        exact = 2 * {"x": x, "weight": weight, "bias": bias}[name].grad
        torch.testing.assert_close(getattr(inputs, name).grad.double(), exact, rtol=1e-4, atol=1e-5)


# --- dropout ----------------------------------------------------------------------------------------------------------


def gradients_beside_dropout(
    backend_name: str, rows: Tensor, width: int, p: float, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """Those of x and of the residual; the first is the second times the mask, made again by the backward."""
    x, residual = torch.ones(len(rows), width, requires_grad=True), torch.randn(len(rows), width, requires_grad=True)
    with ops.use_backend(backend_name):
        y = ops.dropout_add_layer_norm(
            x, residual, torch.ones(width), torch.zeros(width), p=p, seed=seed, stream=STREAM, row_ids=rows
        )
    return torch.autograd.grad(y, (x, residual), torch.randn(len(rows), width))


@pytest.mark.parametrize("p", [2**-32, 0.1, 0.5, 0.9, 1 - 2**-40], ids=str)
@pytest.mark.parametrize("width", [3, 30, 64, 65, 129, 300])  # parts of a Philox call, of a vector, of a tile of 64
@pytest.mark.parametrize("backend", BACKENDS[:3])
def test_the_mask_is_the_oracles(backend, width, p, rng_seed):
    generator = np.random.default_rng(rng_seed)
    rows = generator.integers(-(2**63), 2**63, 12, dtype=np.int64)
    rows[:3] = 0, -1, 2**32
    seed = int(generator.integers(-(2**63), 2**63))
    dx, dresidual = gradients_beside_dropout(backend.name, torch.from_numpy(rows), width, p, torch.tensor(seed))
    assert threshold(p) > 0
    # The product, since a gradient that is kept may be 0 too: 1 in 10^7 is.
    assert torch.equal(dx, dresidual * oracle_factors(rows, width, p, seed).float())
    assert dresidual.any(1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_has_the_same_bits_in_any_batch(backend, rng_seed):
    """Cut, permuted and on its own: row ids name the rows, and no sum depends on where a row lies."""
    inputs = Inputs(45, 37, device=backend.device)
    row_ids = torch.randint(2**62, (45,), device=backend.device)
    order = torch.randperm(45, device=backend.device)[:20]
    with ops.use_backend(backend.name):
        whole = ours(inputs, p=P, row_ids=row_ids)[:3]
        for name in ("x", "residual", "dy"):
            setattr(inputs, name, getattr(inputs, name).detach()[order].requires_grad_())
        part = ours(inputs, p=P, row_ids=row_ids[order])[:3]
    for name, result, expected in zip(NAMES, part, whole, strict=False):
        assert torch.equal(result, expected[order]), name


@needs_cpp
@pytest.mark.parametrize("p", [0.0, P])
def test_bits_do_not_depend_on_threads(p, rng_seed):
    inputs = Inputs(4500, 96)  # over 128 blocks of rows, and work enough for many threads
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            with ops.use_backend("cpp"):
                results.append(ours(inputs, p=p))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@needs_cpp
def test_two_python_threads_at_once(rng_seed):
    inputs = Inputs(600, 64)
    expected, got = ours(inputs, p=P), {}

    def run(i: int) -> None:
        for _ in range(5):
            got[i] = ours(inputs, p=P)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for results in got.values() for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS[:3])
def test_seeds(backend):
    inputs = Inputs(8, 32)
    with ops.use_backend(backend.name):
        torch.manual_seed(7)
        first = ours(inputs, p=P, seed=None)
        second = ours(inputs, p=P, seed=None)
        torch.manual_seed(7)
        again = ours(inputs, p=P, seed=None)
        state = torch.random.get_rng_state()
        ours(inputs, p=0.0, seed=None)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], second[0])
    assert torch.equal(state, torch.random.get_rng_state())  # without dropout nothing is drawn


# --- autocast, the compiler -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_computes_in_float32(backend, rng_seed):
    inputs = Inputs(6, 32, dtype=torch.bfloat16, device=backend.device)
    wide = Inputs(6, 32, x_dtype=torch.bfloat16, device=backend.device)
    wide.x, wide.weight, wide.bias = inputs.x, inputs.weight, inputs.bias
    wide.residual = inputs.residual.detach().float().requires_grad_()
    wide.dy = inputs.dy = torch.randn(6, 32, device=backend.device)
    with ops.use_backend(backend.name):
        with torch.autocast(backend.device, torch.bfloat16):
            results = ours(inputs, p=P)
            alone = ops.layer_norm(inputs.x, inputs.weight.bfloat16(), inputs.bias)
        expected = ours(wide, p=P)
    assert results[0].dtype == alone.dtype == torch.float32
    assert [t.dtype for t in results[1:]] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for name, result, expect in zip(NAMES, results, expected, strict=True):
        assert torch.equal(result, expect.to(result.dtype)), name


@pytest.mark.parametrize("p", [0.0, P])
@pytest.mark.parametrize("backend", KERNELS[:2])
def test_compiled_has_the_same_bits(backend, p, rng_seed):
    """One graph, forward and backward, for any number of tokens."""
    torch._dynamo.reset()

    def call(x, residual, weight, bias, seed, row_ids):
        y = ops.dropout_add_layer_norm(x, residual, weight, bias, p=p, seed=seed, stream=STREAM, row_ids=row_ids)
        return ops.layer_norm(y * 2, weight, bias)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
    with ops.use_backend(backend.name):
        for num_rows in (5, 12):
            inputs = Inputs(num_rows, 40)
            extra = (torch.tensor(SEED), torch.arange(num_rows))
            eager, traced = call(*inputs.leaves, *extra), compiled(*inputs.leaves, *extra)
            assert torch.equal(eager, traced)
            for a, b in zip(
                torch.autograd.grad(eager, inputs.leaves, inputs.dy),
                torch.autograd.grad(traced, inputs.leaves, inputs.dy),
                strict=True,
            ):
                assert torch.equal(a, b)


@needs_cpp
def test_inductor(rng_seed):
    torch._dynamo.reset()
    inputs = Inputs(16, 64)

    def call(x, residual, weight, bias):
        return ops.dropout_add_layer_norm(x.relu(), residual, weight, bias, p=P, seed=5).tanh()

    compiled = torch.compile(call, fullgraph=True)
    results = [torch.autograd.grad(f(*inputs.leaves), inputs.leaves, inputs.dy) for f in (call, compiled)]
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)  # inductor's tanh is another one


@pytest.mark.parametrize("p", [0.0, P])
def test_opcheck(p, rng_seed):
    inputs = Inputs(5, 12)
    seed, row_ids = (torch.tensor(SEED), torch.arange(5)) if p else (None, None)
    torch.library.opcheck(
        torch.ops.electra_fast.dropout_add_layer_norm.default, (*inputs.leaves, seed, row_ids, p, 1e-12, 3)
    )
    stats = torch.rand(2, 5)
    x, residual, weight, _ = (t.detach() for t in inputs.leaves)
    torch.library.opcheck(
        torch.ops.electra_fast.dropout_add_layer_norm_backward.default,
        (inputs.dy, x, residual, weight, stats, seed, row_ids, p, 3, True, p > 0, True),
    )


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_name_the_argument():
    x, weight, bias = torch.randn(4, 8), torch.ones(8), torch.zeros(8)
    call = ops.dropout_add_layer_norm
    cases = [
        (ValueError, r"residual has shape \(4, 7\), x \(4, 8\)", lambda: call(x, x[:, :7], weight, bias)),
        (ValueError, r"weight has shape \(7,\), the rows of x \(8,\)", lambda: call(x, x, weight[:7], bias)),
        (ValueError, r"bias has shape \(9,\), the rows of x \(8,\)", lambda: ops.layer_norm(x, weight, torch.zeros(9))),
        (ValueError, r"p must lie in \[0, 1\); got 1.0", lambda: call(x, x, weight, bias, p=1.0)),
        (ValueError, r"p must lie in \[0, 1\); got nan", lambda: call(x, x, weight, bias, p=float("nan"))),
        (ValueError, "stream must be", lambda: call(x, x, weight, bias, p=0.1, stream=-1)),
        (TypeError, "x must be torch.float32 or .* not torch.int64", lambda: ops.layer_norm(x.long(), weight, bias)),
        (TypeError, "residual must be .* not torch.int64", lambda: call(x, x.long(), weight, bias)),
        (TypeError, "weight must be floating point, not torch.int64", lambda: call(x, x, weight.long(), bias)),
        (TypeError, "row_ids must be torch.int64", lambda: call(x, x, weight, bias, row_ids=torch.zeros(4))),
        (
            ValueError,
            r"row_ids has shape \(3,\), the rows of x \(4,\)",
            lambda: call(x, x, weight, bias, row_ids=torch.arange(3)),
        ),
        (TypeError, "seed must be an int", lambda: call(x, x, weight, bias, p=0.1, seed="7")),
        (ValueError, r"H in 1..8192; got \(2, 8193\)", lambda: ops.layer_norm(torch.randn(2, 8193), weight, bias)),
        (ValueError, r"H in 1..8192; got \(2, 0\)", lambda: ops.layer_norm(torch.randn(2, 0), weight, bias)),
        (ValueError, r"got \(\)", lambda: ops.layer_norm(torch.tensor(1.0), weight, bias)),
        (ValueError, "weight lies on meta, x on cpu", lambda: ops.layer_norm(x, weight.to("meta"), bias)),
        (ValueError, "residual lies on meta, x on cpu", lambda: call(x, x.to("meta"), weight, bias)),
    ]
    for error, message, run in cases:
        with pytest.raises(error, match=message):
            run()


def test_float16_on_cpu_has_no_kernel():
    inputs = Inputs(4, 8, dtype=torch.float16)
    if os.environ.get("ELECTRA_FAST_BACKEND") is None:
        assert ours(inputs)[0].dtype == torch.float16
    with ops.use_backend("cpp"), pytest.raises((TypeError, RuntimeError), match="cpp backend"):
        ours(inputs)
