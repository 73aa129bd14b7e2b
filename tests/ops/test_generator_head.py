"""linear_cross_entropy_sample: loss and gradients against float64, the sample against sample_tokens' law."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops
from electra_fast.ops import generator_head
from tests.ops.backends import BACKENDS, KERNELS, Backend, assert_as_accurate, needs_cpp, poison_new_tensors
from tests.ops.test_sample_tokens import chi_square_is_usual, inverse_cdf, uniform53

ALL = os.environ.get("ELECTRA_FAST_TEST_ALL") == "1"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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


def check_against_float64(backend: Backend, x: dict[str, Tensor], d_loss: float, d_nll: Tensor | None) -> None:
    exact = plain({k: t.double() if t.is_floating_point() else t for k, t in x.items()}, d_loss, d_nll)
    same_dtype = plain(x, d_loss, d_nll)
    with ops.use_backend(backend.name):
        got = ours(x, d_loss, d_nll)
    for name, a, b, c in zip(("loss", "nll", "d_hidden", "d_weight", "d_bias"), got, same_dtype, exact, strict=True):
        # Roundings of a result of this size and of a logit of about 4, where PyTorch's happened to be lucky.
        scale = c.abs().nan_to_num(posinf=0.0).max().item() if c.numel() else 0.0
        assert_as_accurate(a, b, c, atol=2 * torch.finfo(a.dtype).eps * scale + 1e-6, name=name)


# Rows: none, one, few, a block and a bit of the Triton kernels, a chunk and a bit of the C++ one's, several.
# Vocabularies: the least, around a tile of 256, ELECTRA's, one divisible by 256. Widths: below a tensor core's,
# ELECTRA's embeddings and hidden sizes.
SHAPES = [
    (0, 100, 8),
    (1, 2, 8),
    (3, 255, 64),
    (3, 256, 128),
    (304, 257, 64),
    (130, 100, 8),
    (1000, 100, 8),
    (3, 100, 256),
    (3, 100, 768),
    (304, 30522, 128),
    (3, 50368, 64),
]


def too_slow(backend: Backend, rows: int, vocab_size: int, width: int) -> bool:
    return backend.interpreted and (rows > 500 or rows * vocab_size * width > 10**6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("rows", "vocab_size", "width"), SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_and_gradients_against_float64(backend, rows, vocab_size, width, dtype, rng_seed, monkeypatch):
    if too_slow(backend, rows, vocab_size, width):
        pytest.skip("takes the interpreter too long")
    if backend.name == "cpp" and dtype == torch.float16:
        pytest.skip("float16 on CPU runs the reference")
    if dtype != torch.float32 and rows * vocab_size * width > 10**8 and not ALL:
        pytest.skip("PyTorch's own products in 16 bits take long on CPU; runs under ELECTRA_FAST_TEST_ALL=1")
    if backend.interpreted and dtype != torch.float32 and rows > 100 and not ALL:
        pytest.skip("many programs; runs under ELECTRA_FAST_TEST_ALL=1")
    x = make_inputs(rows, vocab_size, width, dtype, backend.device)
    d_nll = torch.randn(rows, device=backend.device)
    poison_new_tensors(monkeypatch)
    check_against_float64(backend, x, 0.7, d_nll)
    check_against_float64(backend, x, -1.3, None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_impossible_tokens_and_huge_logits(backend, rng_seed):
    x = make_inputs(20, 300, 16, device=backend.device)
    x["bias"][::3] = -math.inf
    x["labels"] = x["labels"] // 3 * 3 + 1
    # Softmaxes of one token. Products of these are exact: the Triton kernels make logits again in the backward, and
    # would round ones of 10^4 to another float32.
    x["hidden"][:5] = (x["hidden"][:5] * 4).round() * 1024
    x["weight"] = (x["weight"] * 16).round() / 16
    check_against_float64(backend, x, 1.0, torch.randn(20, device=backend.device))
    with ops.use_backend(backend.name):
        out = ops.linear_cross_entropy_sample(**x, seed=rng_seed)
        assert (out.sampled_ids[x["weights"] > 0] % 3 != 0).all()
        x["labels"][0], x["weights"][0] = 3, 1.0  # a true token of probability 0
        loss, nll, d_hidden, d_weight, d_bias = ours(x, 1.0, None)
    assert loss == math.inf
    assert nll[0] == math.inf
    assert all(gradient.isfinite().all() for gradient in (d_hidden, d_weight, d_bias))


@pytest.mark.parametrize("backend", BACKENDS)
def test_unused_rows_hold_anything_draw_their_label_and_cost_exactly_nothing(backend, rng_seed):
    x = make_inputs(40, 50, 8, device=backend.device)
    x["weights"] = (torch.arange(40, device=backend.device) % 2).float()
    clean = {name: tensor.detach().clone() for name, tensor in x.items()}
    with torch.no_grad():
        x["hidden"][0::4], x["hidden"][2::4] = math.nan, math.inf
    used = {name: clean[name][1::2] for name in ("hidden", "labels", "weights")}
    with ops.use_backend(backend.name):
        leaves, clean_leaves = leaves_of(x), leaves_of(clean)
        got = ops.linear_cross_entropy_sample(**x, seed=rng_seed)
        expected = ops.linear_cross_entropy_sample(**clean, seed=rng_seed)
        gradients = torch.autograd.grad(got.loss_sum, leaves)
        expected_gradients = torch.autograd.grad(expected.loss_sum, clean_leaves)
        alone = ops.linear_cross_entropy_sample(**(clean | used), seed=rng_seed)
    assert torch.equal(got.loss_sum, expected.loss_sum)
    torch.testing.assert_close(got.loss_sum, alone.loss_sum)
    assert torch.equal(got.sampled_ids, expected.sampled_ids)
    assert torch.equal(got.sampled_ids[::2], x["labels"][::2])
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(a, b)
    assert (gradients[0][::2] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_weights_zero(backend):
    x = make_inputs(6, 30, 8, device=backend.device)
    x["weights"].zero_()
    with ops.use_backend(backend.name):
        loss, nll, *gradients = ours(x, 1.0, None)
        sampled = ops.linear_cross_entropy_sample(**x, seed=1).sampled_ids
    assert loss == 0
    assert nll.isfinite().all()
    assert torch.equal(sampled, x["labels"])
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_one_result_twice_and_of_each_alone(backend, rng_seed):
    x = make_inputs(10, 40, 8, device=backend.device)
    leaves = leaves_of(x)
    with ops.use_backend(backend.name):
        out = ops.linear_cross_entropy_sample(**x, seed=1)
        first = torch.autograd.grad(out.loss_sum * 2, leaves, retain_graph=True)
        weighted = torch.autograd.grad((out.nll * x["weights"]).sum(), leaves, retain_graph=True)
        twice = torch.autograd.grad(out.loss_sum + out.loss_sum, leaves, retain_graph=True)
        again = torch.autograd.grad(out.loss_sum * 2, leaves)
    for a, b, c, d in zip(first, again, twice, weighted, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        torch.testing.assert_close(a, 2 * d, atol=1e-6, rtol=1e-5)
    assert not out.sampled_ids.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_gradients_belong_to_whoever_gets_them(backend, scale, rng_seed):
    x = make_inputs(10, 40, 8, device=backend.device)
    leaves = leaves_of(x)
    with ops.use_backend(backend.name):
        expected = torch.autograd.grad(ops.linear_cross_entropy_sample(**x, seed=1).loss_sum * scale, leaves)
        loss = ops.linear_cross_entropy_sample(**x, seed=1).loss_sum * scale
        torch.autograd.grad(loss, x["hidden"], retain_graph=True)[0].zero_()
        for _ in range(3):  # .grad keeps what it gets first, and adds the rest to it
            loss.backward(retain_graph=True)
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, 3 * gradient)


def test_gradcheck_of_the_reference():
    x = make_inputs(4, 7, 3, torch.float64)
    x["weights"][0] = 0.0

    def loss_and_nll(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        tensors = {"hidden": hidden, "weight": weight, "bias": bias}
        return ops.linear_cross_entropy_sample(**(x | tensors), seed=1)[:2]

    with ops.use_backend("reference"):
        assert torch.autograd.gradcheck(loss_and_nll, leaves_of(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "vocab_size"), [(20, 11), (12, 257), (40, 30522)])
def test_samples_equal_the_inverse_cdf(backend, rows, vocab_size, rng_seed):
    if too_slow(backend, rows, vocab_size, 16):
        pytest.skip("takes the interpreter too long")
    x = make_inputs(rows, vocab_size, 16, device=backend.device)
    x["weights"].fill_(1.0)
    names = torch.randint(2**62, (rows,))
    logits = F.linear(*(x[name].double().cpu() for name in ("hidden", "weight", "bias"))).numpy()
    uniform = uniform53(rng_seed, 9, names.numpy())
    for temperature, disallow in ((1.0, False), (0.7, True), (1.0, True), (2.0, False)):
        with ops.use_backend(backend.name):
            out = ops.linear_cross_entropy_sample_with_argmax(
                **x,
                temperature=temperature,
                disallow_correct=disallow,
                seed=rng_seed,
                stream=9,
                row_ids=names.to(backend.device),
            )
            base = ops.linear_cross_entropy_sample(**x, seed=0)
        labels = x["labels"].cpu().numpy()
        expected, distance = inverse_cdf(logits, temperature, labels if disallow else None, uniform)
        got = out.sampled_ids.cpu().numpy()
        # Logits of 16 float32 products are right to 1e-6, and so are their masses.
        assert np.array_equal(got[distance > 2e-6], expected[distance > 2e-6])
        assert not disallow or (got != labels).all()
        assert np.array_equal(out.argmax_ids.cpu().numpy(), logits.argmax(1))
        torch.testing.assert_close(out.nll, base.nll)  # temperature and disallow_correct change the sample only
        torch.testing.assert_close(out.loss_sum, base.loss_sum)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_of_equal_tokens_is_the_argmax(backend):
    x = make_inputs(5, 300, 8, device=backend.device)
    x["hidden"].zero_()
    x["bias"].zero_()
    x["bias"][[20, 33, 290]] = 1.0
    with ops.use_backend(backend.name):
        out = ops.linear_cross_entropy_sample_with_argmax(**x, seed=1)
    assert (out.argmax_ids == 20).all()


@pytest.mark.parametrize("backend", KERNELS[1:])
def test_the_same_ids_whatever_the_tile(backend, monkeypatch, rng_seed):
    from electra_fast.kernels import generator_head as kernels

    x = make_inputs(12, 300, 16, device=backend.device)
    x["weights"].fill_(1.0)
    with ops.use_backend(backend.name):
        expected = ops.linear_cross_entropy_sample(**x, seed=rng_seed).sampled_ids
        for block in (32, 64):
            monkeypatch.setitem(kernels._MEASURE, 4, kernels.Launch(16, block, 16, 4, 1))
            assert torch.equal(ops.linear_cross_entropy_sample(**x, seed=rng_seed).sampled_ids, expected)


@needs_cpp
def test_any_number_of_threads_order_chunk_and_cut(rng_seed, monkeypatch):
    x = make_inputs(530, 1200, 16)
    names = torch.randint(2**62, (530,))

    def sample(**changes) -> Tensor:
        return ops.linear_cross_entropy_sample(**(x | {"row_ids": names} | changes), seed=5).sampled_ids

    expected = sample()
    torch.set_num_threads(1)
    single = ours(x, 1.0, None)
    assert torch.equal(sample(), expected)
    torch.set_num_threads(2)
    assert torch.equal(sample(), expected)
    for a, b in zip(single, ours(x, 1.0, None), strict=True):
        torch.testing.assert_close(a, b)  # PyTorch's products may split their sums by thread
    order = torch.randperm(530)
    permuted = {name: x[name][order] for name in ("hidden", "labels", "weights")} | {"row_ids": names[order]}
    assert (sample(**permuted) == expected[order]).float().mean() > 0.995  # but for a step within a rounding
    monkeypatch.setattr(generator_head, "_CHUNK", 100)
    assert (sample() == expected).float().mean() > 0.995


@needs_cpp
def test_samples_have_the_law_of_the_softmax():
    g = np.random.default_rng(3)  # fixed: the bound is statistical
    for vocab_size, draws in ((100, 10**7 if ALL else 10**5), (30522, 3 * 10**5 if ALL else 5000)):
        bias = torch.from_numpy(g.normal(0, 2, vocab_size)).float()
        weights, labels = torch.ones(draws), torch.zeros(draws, dtype=torch.int64)
        out = ops.linear_cross_entropy_sample(
            torch.zeros(draws, 8), torch.randn(vocab_size, 8), bias, labels, weights, seed=3
        )
        counts = torch.bincount(out.sampled_ids, minlength=vocab_size)
        assert chi_square_is_usual(counts.numpy(), (torch.softmax(bias.double(), 0) * draws).numpy())


@pytest.mark.parametrize("backend", KERNELS[1:])
def test_samples_of_the_triton_kernel_have_the_law_of_the_softmax(backend, monkeypatch):
    from electra_fast.kernels import generator_head as kernels

    # Several calls of few programs: the interpreter takes its time by program.
    monkeypatch.setitem(kernels._MEASURE, 4, kernels.Launch(512, 128, 16, 4, 1))
    monkeypatch.setitem(kernels._FINISH, 4, kernels.Launch(512, 128, 16, 4, 1))
    draws, calls, vocab_size = 10**5 if ALL else 10**4, 4, 100
    bias = torch.from_numpy(np.random.default_rng(3).normal(0, 2, vocab_size)).float().to(backend.device)
    rows = draws // calls
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    with ops.use_backend(backend.name):
        for seed in range(calls):
            labels = torch.zeros(rows, dtype=torch.int64, device=backend.device)
            zeros = torch.zeros(rows, 8, device=backend.device)
            weight = torch.randn(vocab_size, 8, device=backend.device)
            out = ops.linear_cross_entropy_sample(zeros, weight, bias, labels, torch.ones_like(zeros[:, 0]), seed=seed)
            counts += torch.bincount(out.sampled_ids.cpu(), minlength=vocab_size)
    assert chi_square_is_usual(counts.numpy(), (torch.softmax(bias.double().cpu(), 0) * draws).numpy())


@needs_cpp
def test_without_a_gradient_none_is_made(monkeypatch):
    x = make_inputs(30, 100, 8)

    def fail(*_):
        raise AssertionError("made a gradient")

    monkeypatch.setattr(torch.Tensor, "addmm_", fail)
    monkeypatch.setattr(generator_head, "_CHUNK", 10)
    with torch.no_grad():
        leaves_of(x)
        ops.linear_cross_entropy_sample(**x, seed=1)
    ops.linear_cross_entropy_sample(**{name: tensor.detach() for name, tensor in x.items()}, seed=1)
    with pytest.raises(AssertionError, match="made a gradient"):
        ops.linear_cross_entropy_sample(**x, seed=1)


MEMORY = """
import resource, torch
from electra_fast import ops
rows, vocab_size, width = 2432, 30522, 128
hidden, bias = torch.randn(rows, width, requires_grad=True), torch.zeros(vocab_size, requires_grad=True)
weight = torch.randn(vocab_size, width, requires_grad=True)
labels, weights = torch.randint(vocab_size, (rows,)), torch.ones(rows)
few = slice(0, 4)
results = [torch.ones_like(tensor) for tensor in (hidden, weight, bias)]  # room for the gradients, which anyone makes
torch.autograd.grad(ops.linear_cross_entropy_sample(
    hidden[few], weight[:9], bias[:9], labels[few] % 9, weights[few], seed=1).loss_sum, (hidden, weight, bias))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
del results
loss = ops.linear_cross_entropy_sample(hidden, weight, bias, labels, weights, seed=1).loss_sum
gradients = torch.autograd.grad(loss, (hidden, weight, bias))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024)
"""


@needs_cpp
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak in KiB")
def test_extra_memory_is_an_eighth_of_the_logits():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True, check=True)
    assert int(run.stdout) <= 2432 * 30522 * 4 / 8


@pytest.mark.parametrize("backend", [BACKENDS[0], *KERNELS[:1]])
def test_compiled_forward_and_backward_give_the_same_bits(backend, rng_seed):
    torch._dynamo.reset()

    def step(x: dict[str, Tensor], seed: Tensor) -> tuple[Tensor, ...]:
        out = ops.linear_cross_entropy_sample_with_argmax(**x, seed=seed)
        return out.loss_sum * 2, out.sampled_ids, out.argmax_ids

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    with ops.use_backend(backend.name):
        for rows in (5, 9, 12):
            x, seed = make_inputs(rows, 70, 8), torch.tensor(rng_seed)
            leaves = leaves_of(x)
            got, expected = compiled(x, seed), step(x, seed)
            gradients = torch.autograd.grad(got[0], leaves), torch.autograd.grad(expected[0], leaves)
            for a, b in zip((*got, *gradients[0]), (*expected, *gradients[1]), strict=True):
                assert torch.equal(a, b)


@needs_cpp
@torch._inductor.config.patch(force_disable_caches=True)  # they know our operators by name alone
def test_compiled_by_inductor_with_a_gradient_through_nll(rng_seed):
    torch._dynamo.reset()

    def step(x: dict[str, Tensor], seed: Tensor) -> Tensor:
        out = ops.linear_cross_entropy_sample(**x, seed=seed)
        return out.loss_sum + (out.nll * 0.5).sum()

    x, seed = make_inputs(7, 70, 8), torch.tensor(rng_seed)
    leaves = leaves_of(x)
    got, expected = torch.compile(step, fullgraph=True)(x, seed), step(x, seed)
    torch.testing.assert_close(got, expected)
    for a, b in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    x = make_inputs(3, 7, 4, device=backend.device)
    seed, rows = torch.tensor(3, device=backend.device), torch.arange(3, device=backend.device)
    leaves_of(x)
    with ops.use_backend(backend.name):
        on_cpu = backend.device == "cpu"
        forward = torch.ops.electra_fast.linear_cross_entropy_sample.default
        torch.library.opcheck(forward, (*x.values(), seed, rows, 0.8, True, 2, True, on_cpu))
        detached = [x[name].detach() for name in ("hidden", "weight", "bias", "labels", "weights")]
        logits = F.linear(*detached[:3])
        lse = torch.stack([torch.zeros_like(logits[:, 0]), logits.logsumexp(1)])
        torch.library.opcheck(torch.ops.electra_fast.linear_cross_entropy_sample_backward.default, (*detached, lse))


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_autocast_products_take_its_dtype_and_losses_float32(backend):
    x = make_inputs(6, 50, 16, device=backend.device)
    leaves = leaves_of(x)
    with ops.use_backend(backend.name), torch.autocast(backend.device, dtype=torch.bfloat16):
        out = ops.linear_cross_entropy_sample(**x, seed=1)
    assert out.loss_sum.dtype == out.nll.dtype == torch.float32
    gradients = torch.autograd.grad(out.loss_sum, leaves)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    rounded = [x[name].detach().bfloat16().double().cpu() for name in ("hidden", "weight")]
    exact = F.cross_entropy(F.linear(*rounded, x["bias"].double().cpu()), x["labels"].cpu(), reduction="none")
    torch.testing.assert_close(out.nll.double().cpu(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_with_other_strides(backend, rng_seed):
    x = make_inputs(9, 60, 16, device=backend.device)
    with ops.use_backend(backend.name):
        expected = ours(x, 1.0, None)
        y = {name: tensor.detach() for name, tensor in x.items()}
        y["hidden"] = y["hidden"].t().contiguous().t()
        y["weight"] = torch.cat([y["weight"], y["weight"]], dim=1)[:, :16]
        for name in ("labels", "weights", "bias"):
            y[name] = torch.stack([y[name], y[name]], dim=1)[:, 0]
        for a, b in zip(ours(y, 1.0, None), expected, strict=True):
            torch.testing.assert_close(a, b)


def test_bad_input_is_named():
    x = make_inputs(4, 6, 8)
    for name, value in (
        ("hidden", x["hidden"][:, :5]),
        ("weight", x["weight"][:0]),
        ("bias", x["bias"][:3]),
        ("labels", x["labels"][:2]),
        ("labels", x["labels"] + 6),
        ("labels", x["labels"] - 6),
        ("weights", x["weights"][:1]),
    ):
        with pytest.raises(ValueError, match=name):
            ops.linear_cross_entropy_sample(**(x | {name: value}), seed=0)
    for name, value in (
        ("weight", x["weight"].double()),
        ("labels", x["labels"].int()),
        ("weights", x["weights"].bool()),
        ("bias", x["bias"].long()),
    ):
        with pytest.raises(TypeError, match=name):
            ops.linear_cross_entropy_sample(**(x | {name: value}), seed=0)
    with pytest.raises(ValueError, match="temperature"):
        ops.linear_cross_entropy_sample(**x, seed=0, temperature=0.0)
    with pytest.raises(ValueError, match="row_ids"):
        ops.linear_cross_entropy_sample(**x, seed=0, row_ids=torch.arange(3))
    one = make_inputs(2, 1, 8)
    with pytest.raises(ValueError, match="disallow_correct"):
        ops.linear_cross_entropy_sample(**one, seed=0, disallow_correct=True)


# One tile and a bit, several tiles, each with widths above a slice of the fused kernel; ELECTRA's vocabulary on a GPU.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("rows", "vocab_size", "width"), [(7, 257, 264), (5, 600, 768), (600, 30522, 264)])
@pytest.mark.parametrize("backend", KERNELS[1:])
def test_fused_and_chunked_kernels_agree(backend, rows, vocab_size, width, dtype, rng_seed, monkeypatch):
    if backend.interpreted and (vocab_size > 600 or (dtype != torch.float32 and width > 264 and not ALL)):
        pytest.skip("takes the interpreter too long")
    from electra_fast.kernels import generator_head_chunks

    monkeypatch.setattr(generator_head_chunks, "_CHUNK", 3 if backend.interpreted else 256)
    x = make_inputs(rows, vocab_size, width, dtype, backend.device)
    d_nll = torch.randn(rows, device=backend.device)
    x["weights"].fill_(1.0)
    logits = F.linear(*(x[name].double().cpu() for name in ("hidden", "weight", "bias"))).numpy()
    uniform = uniform53(rng_seed, 0, np.arange(rows))
    labels = x["labels"].cpu().numpy()
    for path in ("fused", "chunks"):
        monkeypatch.setattr(generator_head, "_PATHS", dict.fromkeys((2, 4), ((math.inf, path),)))
        check_against_float64(backend, x, 0.7, d_nll)
        for temperature, disallow in ((1.0, False), (0.7, True)):
            with ops.use_backend(backend.name), torch.no_grad():
                out = ops.linear_cross_entropy_sample_with_argmax(
                    **x, seed=rng_seed, temperature=temperature, disallow_correct=disallow
                )
            expected, distance = inverse_cdf(logits, temperature, labels if disallow else None, uniform)
            # Both paths round logits of `width` products differently: each may differ where u is this near to a step.
            clear = distance > 2e-6
            assert np.array_equal(out.sampled_ids.cpu().numpy()[clear], expected[clear])
            top = np.sort(logits, axis=1)[:, -2:]
            clear = top[:, 1] - top[:, 0] > 1e-5
            assert np.array_equal(out.argmax_ids.cpu().numpy()[clear], logits.argmax(1)[clear])
