"""rtd_bce on every backend: against float64, exact counts and a brute-force AUC."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops
from electra_fast.ops.rtd_bce import auc
from tests.ops.backends import BACKENDS, KERNELS, assert_as_accurate, needs_cpp, poison_new_tensors

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ALL = os.environ.get("ELECTRA_FAST_TEST_ALL") == "1"

# Why each shape: none; one; odd; around the C++ kernel's block of 1,024 and Triton's of 2,048; prime; rows of a padded
# batch; more than 65,535 rows, several blocks for each of several threads.
SHAPES = [(0,), (1,), (3, 0), (1023,), (2048,), (2049,), (977,), (5, 37), (70_001, 1), (100_003,)]


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def takes(backend, dtype: torch.dtype) -> bool:
    return not (backend.name == "cpp" and dtype == torch.float16)


def random_inputs(shape, dtype=torch.float32, device="cpu", spread: float = 4.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, is_replaced, mask; with logits on the edges of bins, and such as no finite logit may show."""
    logits = spread * torch.randn(shape)
    on_edge = torch.rand(shape) < 0.2
    logits = torch.where(on_edge, torch.round(logits * 32) / 32, logits)
    return tuple(t.to(device) for t in (logits.to(dtype), torch.rand(shape) < 0.15, torch.rand(shape) < 0.9))


def plain_loss(logits: Tensor, replaced: Tensor, mask: Tensor) -> Tensor:
    """PyTorch's own, on the tokens that count."""
    return F.binary_cross_entropy_with_logits(logits[mask], replaced[mask].to(logits.dtype), reduction="sum")


def counts_in_numpy(logits: Tensor, replaced: Tensor, mask: Tensor) -> tuple[list[int], np.ndarray]:
    x, y, m = logits.detach().double().cpu().numpy(), replaced.cpu().numpy(), mask.cpu().numpy()
    counts = [m, m & (x > 0) & y, m & (x > 0) & ~y, m & ~(x > 0) & ~y, m & ~(x > 0) & y]
    bins = np.clip(np.floor(32 * np.clip(np.nan_to_num(x), -99, 99)) + 512, 0, 1023).astype(int)
    histogram = np.stack([np.bincount(bins[chosen], minlength=1024) for chosen in (m & ~y, m & y)])
    return [int(count.sum()) for count in counts], histogram


def assert_counts(out: ops.RTDLoss, expected: tuple[list[int], np.ndarray]) -> None:
    for tensor in out[1:6]:
        assert tensor.dtype == torch.int64
        assert tensor.shape == ()
    assert [int(count) for count in out[1:6]] == expected[0]
    assert out.score_histogram.dtype == torch.int64
    assert np.array_equal(out.score_histogram.cpu().numpy(), expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_gradient_and_counts(backend, shape, dtype, rng_seed, monkeypatch):
    if not takes(backend, dtype):
        pytest.skip("float16 on a CPU is the reference's")
    if backend.interpreted and dtype != torch.float32 and math.prod(shape) > 10_000 and not ALL:
        pytest.skip("many programs; runs under ELECTRA_FAST_TEST_ALL=1")
    logits, replaced, mask = random_inputs(shape, dtype, backend.device)
    upstream = torch.randn((), device=backend.device)

    plain_input, exact_input = logits.clone().requires_grad_(), logits.double().requires_grad_()
    plain, exact = (plain_loss(x, replaced, mask) for x in (plain_input.float(), exact_input))
    (plain_gradient,) = torch.autograd.grad(plain * upstream, plain_input)
    (exact_gradient,) = torch.autograd.grad(exact * upstream.double(), exact_input)

    poison_new_tensors(monkeypatch)
    logits.requires_grad_()
    with ops.use_backend(backend.name):
        out = ops.rtd_bce(logits, replaced, mask)
        (gradient,) = torch.autograd.grad(out.loss_sum * upstream, logits)
        without = ops.rtd_bce(logits.detach(), replaced, mask)
    # Four eps of float32 where the plain sum is lucky, since sums in blocks are off by one now and then; e^-|x| is off
    # by |x| 2^-24 of its value, 2.2e-8 at most.
    assert_as_accurate(out.loss_sum, plain, exact, atol=4.8e-7 * exact.item() + 3e-8, name="loss_sum")
    # Ours rounds twice in the logits' dtype, before and after the factor, by half an eps of at most `upstream`.
    atol = torch.finfo(dtype).eps * upstream.abs().item()
    assert_as_accurate(gradient, plain_gradient, exact_gradient, atol=atol, name="gradient")
    assert_counts(out, counts_in_numpy(logits, replaced, mask))
    assert torch.equal(without.loss_sum, out.loss_sum)
    assert not without.loss_sum.requires_grad
    assert torch.equal(without.score_histogram, out.score_histogram)


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_losses_and_small_gradients_keep_their_digits(backend):
    # A sure token's loss and gradient are near e^-|x|: relative accuracy, where 1 - sigmoid(x) would have lost it.
    logits = torch.arange(-80.0, 81.0, 1.0, device=backend.device).requires_grad_()
    one = torch.ones(1, dtype=torch.bool, device=backend.device)
    with ops.use_backend(backend.name):
        for replaced in (False, True):
            for i in range(0, 161, 8):
                x = logits[i : i + 1]
                out = ops.rtd_bce(x, one & replaced, one)
                (gradient,) = torch.autograd.grad(out.loss_sum, logits)
                wrong = -x.item() if replaced else x.item()
                assert out.loss_sum.item() == pytest.approx(np.logaddexp(0, wrong), rel=1e-6)
                expected = math.exp(-np.logaddexp(0, -wrong)) * (-1 if replaced else 1)
                # exp's argument is rounded to 2^-24 of up to 80.
                assert gradient[i].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bins_are_exact_at_their_edges_and_for_what_is_no_number(backend, dtype):
    if not takes(backend, dtype):
        pytest.skip("float16 on a CPU is the reference's")
    info = torch.finfo(dtype)
    edges = torch.arange(-520, 521).to(dtype) / 32
    above = torch.nextafter(edges, torch.full_like(edges, math.inf)) if dtype == torch.float32 else edges
    below = torch.nextafter(edges, torch.full_like(edges, -math.inf)) if dtype == torch.float32 else edges
    odd = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, info.max, info.min, info.tiny, -info.tiny])
    logits = torch.cat([edges, above, below, odd.to(dtype), odd.to(dtype)]).to(backend.device)
    replaced = torch.arange(len(logits), device=backend.device) >= len(logits) - len(odd)
    mask = torch.ones_like(replaced)
    with ops.use_backend(backend.name):
        assert_counts(ops.rtd_bce(logits, replaced, mask), counts_in_numpy(logits, replaced, mask))


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_and_undefined_logits(backend):
    logits = torch.tensor([math.inf, -math.inf, math.inf, -math.inf, math.nan, 1.0], device=backend.device)
    logits.requires_grad_()
    replaced = torch.tensor([True, False, False, True, False, True], device=backend.device)

    def run(*counted: int) -> tuple[float, list[float]]:
        mask = torch.tensor([i in counted for i in range(6)], device=backend.device)
        out = ops.rtd_bce(logits, replaced, mask)
        (gradient,) = torch.autograd.grad(out.loss_sum, logits)
        return out.loss_sum.item(), gradient.tolist()

    with ops.use_backend(backend.name):
        assert run(0, 1) == (0.0, [0.0] * 6)  # infinitely sure, and right
        assert run(2, 3) == (math.inf, [0.0, 0.0, 1.0, -1.0, 0.0, 0.0])
        loss, gradient = run(4, 5)
        assert math.isnan(loss)
        assert math.isnan(gradient[4])
        assert gradient[:4] == [0.0] * 4
        assert gradient[5] == pytest.approx(-1 / (1 + math.e))
        # Tokens that don't count contribute nothing, whatever they are.
        assert run(5)[0] == pytest.approx(math.log1p(math.exp(-1)))
        assert run() == (0.0, [0.0] * 6)


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_bits(dtype, rng_seed):
    logits, replaced, mask = random_inputs((300_007,), dtype)
    logits.requires_grad_()
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        with ops.use_backend("cpp"):
            out = ops.rtd_bce(logits, replaced, mask)
        results.append((*out, *torch.autograd.grad(out.loss_sum, logits)))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_input(backend, rng_seed):
    logits, replaced, mask = (t.to(backend.device) for t in random_inputs((38, 6)))
    logits.requires_grad_()
    with ops.use_backend(backend.name):
        got = ops.rtd_bce(logits.t()[::2], replaced.t()[::2], mask.t()[::2])
        expected = ops.rtd_bce(*(t.t()[::2].contiguous() for t in (logits, replaced, mask)))
        gradients = [torch.autograd.grad(out.loss_sum, logits)[0] for out in (got, expected)]
    for ours, theirs in (*zip(got, expected, strict=True), gradients):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_result_used_twice_and_one_not_used(backend, rng_seed):
    logits, replaced, mask = random_inputs((301,), device=backend.device)
    logits.requires_grad_()
    with ops.use_backend(backend.name):
        loss_sum = ops.rtd_bce(logits, replaced, mask).loss_sum
        (once,) = torch.autograd.grad(loss_sum, logits, retain_graph=True)
        (twice,) = torch.autograd.grad(loss_sum * 2 + loss_sum, logits, retain_graph=True)
        (again,) = torch.autograd.grad(loss_sum, logits)
        ops.rtd_bce(logits, replaced, mask)
        assert torch.autograd.grad(logits.sum(), logits)[0].eq(1).all()
    torch.testing.assert_close(twice, 3 * once, rtol=1e-6, atol=0)
    assert torch.equal(once, again)


def test_gradcheck_of_the_reference(rng_seed):
    logits, replaced, mask = random_inputs((4, 9), torch.float64)
    logits.requires_grad_()
    with ops.use_backend("reference"):
        assert torch.autograd.gradcheck(lambda x: ops.rtd_bce(x, replaced, mask).loss_sum, logits)
    assert ops.rtd_bce(logits, replaced, mask).loss_sum.dtype == torch.float64


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_autocast_it_computes_in_float32(backend, rng_seed):
    logits, replaced, mask = random_inputs((500,), torch.bfloat16, backend.device)
    logits.requires_grad_()
    with ops.use_backend(backend.name):
        expected = ops.rtd_bce(logits, replaced, mask)
        with torch.autocast(backend.device, torch.bfloat16):
            out = ops.rtd_bce(logits, replaced, mask)
    assert out.loss_sum.dtype == torch.float32
    assert torch.equal(out.loss_sum, expected.loss_sum)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_gives_the_same_bits_for_any_token_count(backend, compiler, dtype, rng_seed):
    if compiler == "inductor" and backend.name != "reference":
        pytest.skip("the operator is opaque to the compiler: one backend under inductor is enough")

    def step(logits, replaced, mask):
        out = ops.rtd_bce(logits, replaced, mask)
        return (*out, *torch.autograd.grad(out.loss_sum * 3, logits))

    torch._dynamo.reset()
    compiled = torch.compile(lambda *args: ops.rtd_bce(*args), fullgraph=True, dynamic=True, backend=compiler)
    with ops.use_backend(backend.name), torch._dynamo.config.patch(error_on_recompile=True):
        for num_tokens in (30, 41, 2100):
            logits, replaced, mask = random_inputs((num_tokens,), dtype, backend.device)
            logits.requires_grad_()
            out = compiled(logits, replaced, mask)
            ours = (*out, *torch.autograd.grad(out.loss_sum * 3, logits))
            for got, expected in zip(ours, step(logits, replaced, mask), strict=True):
                assert torch.equal(got, expected)


@pytest.mark.parametrize("backend", KERNELS[:1] + BACKENDS[:1])
@pytest.mark.parametrize("needs_gradient", [True, False])
def test_opcheck(backend, needs_gradient, rng_seed):
    logits, replaced, mask = random_inputs((40,))
    logits.requires_grad_(needs_gradient)
    with ops.use_backend(backend.name):
        torch.library.opcheck(torch.ops.electra_fast.rtd_bce.default, (logits, replaced, mask, needs_gradient))


@pytest.mark.parametrize("deviation", [0.1, 1.0, 4.0])
def test_auc_from_the_histogram(deviation, rng_seed):
    g = np.random.default_rng(rng_seed)
    # So many that the order within a bin averages out; 1e-3 then bounds the bins' width alone.
    replaced = g.random(300_000) < 0.2
    scores = (deviation * (g.normal(0, 1, 300_000) + 0.8 * replaced)).astype(np.float32)
    out = ops.rtd_bce(torch.from_numpy(scores), torch.from_numpy(replaced), torch.ones(300_000, dtype=torch.bool))
    ranks = scores.argsort().argsort()  # no ties to speak of
    positives = replaced.sum()
    exact = (ranks[replaced].sum() - positives * (positives - 1) / 2) / (positives * (~replaced).sum())
    assert abs(auc(out.score_histogram).item() - exact) <= 1e-3


def test_auc_of_one_class_is_nan():
    assert auc(torch.zeros(2, 1024, dtype=torch.int64)).isnan()


def test_bad_input_is_named():
    logits, flags = torch.zeros(4), torch.zeros(4, dtype=torch.bool)
    with pytest.raises(TypeError, match="is_replaced"):
        ops.rtd_bce(logits, flags.float(), flags)
    with pytest.raises(ValueError, match="mask"):
        ops.rtd_bce(logits, flags, flags[:3])
    with pytest.raises(ValueError, match="mask lies on meta"):
        ops.rtd_bce(logits, flags, flags.to("meta"))
    with pytest.raises(TypeError, match="logits"):
        ops.rtd_bce(flags, flags, flags)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_byte_but_0_is_true(backend, rng_seed):
    logits = torch.randn(300, device=backend.device)
    bits = torch.randint(0, 2, (2, 300), device=backend.device, dtype=torch.uint8)
    odd = (bits * torch.randint(1, 256, (2, 300), device=backend.device)).to(torch.uint8).view(torch.bool)
    with ops.use_backend(backend.name):
        ours, expected = ops.rtd_bce(logits, *odd), ops.rtd_bce(logits, *bits.bool())
    for got, expect in zip(ours, expected, strict=True):
        assert torch.equal(got, expect)
