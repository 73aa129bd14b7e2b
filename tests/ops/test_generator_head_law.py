"""linear_cross_entropy_sample: the sample against the inverse CDF in float64, and its law by draws."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops
from electra_fast.ops import generator_head
from tests.ops.backends import BACKENDS, KERNELS, assert_as_accurate, needs_cpp
from tests.ops.generator_head import make_inputs, ours, plain, too_slow
from tests.ops.test_sample_tokens import NEAR_HALF, inverse_cdf, uniform53

ALL = os.environ.get("ELECTRA_FAST_TEST_ALL") == "1"

# How near to a step of the CDF a uniform number may lie for backends to differ: their logits are float32 sums of
# products, whose roundings move the steps by up to 6e-7 (E <= 128) and, PyTorch's own, by up to 1.5e-6 (E = 768).
NEAR_A_STEP = 1e-6


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def oracle(x: dict[str, Tensor], temperature: float, disallow: bool, seed: int, stream: int, names: np.ndarray):
    """The tokens by float64 logits, and which rows have no step near their uniform number."""
    logits = F.linear(*(x[name].double().cpu() for name in ("hidden", "weight", "bias"))).numpy()
    labels = x["labels"].cpu().numpy() if disallow else None
    expected, distance = inverse_cdf(logits, temperature, labels, uniform53(seed, stream, names))
    return torch.from_numpy(expected), torch.from_numpy(distance > NEAR_A_STEP)


def largest(x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Which rows have one largest logit, beyond the rounding of float32, and the argmax of float64."""
    logits = F.linear(*(x[name].detach().double().cpu() for name in ("hidden", "weight", "bias")))
    values, tokens = logits.topk(2, dim=1)
    return values[:, 0] - values[:, 1] > 1e-5, tokens[:, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "vocab_size"), [(20, 11), (12, 257), (40, 30522)])
def test_samples_equal_the_inverse_cdf(backend, rows, vocab_size, rng_seed):
    if too_slow(backend, rows, vocab_size, 16):
        pytest.skip("takes the interpreter too long")
    x = make_inputs(rows, vocab_size, 16, device=backend.device)
    x["weights"].fill_(1.0)
    names = torch.randint(2**62, (rows,))
    one_is_largest, argmax = largest(x)
    with ops.use_backend(backend.name):
        base = ops.linear_cross_entropy_sample(**x, seed=0)
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
        expected, clear = oracle(x, temperature, disallow, rng_seed, 9, names.numpy())
        got = out.sampled_ids.cpu()
        assert torch.equal(got[clear], expected[clear])
        assert not disallow or (got != x["labels"].cpu()).all()
        assert torch.equal(out.argmax_ids.cpu()[one_is_largest], argmax[one_is_largest])
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

    rows = 12 if backend.interpreted else 2000
    x = make_inputs(rows, 300, 16, device=backend.device)
    x["weights"].fill_(1.0)
    expected, clear = oracle(x, 1.0, False, rng_seed, 0, np.arange(rows))
    with ops.use_backend(backend.name):
        for block in (32, 64, 128):
            monkeypatch.setitem(kernels._MEASURE, 4, kernels.Launch(16, block, 16, 4, 1))
            got = ops.linear_cross_entropy_sample(**x, seed=rng_seed).sampled_ids.cpu()
            assert torch.equal(got[clear], expected[clear])


@needs_cpp
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "disallow_correct": True}])
def test_a_row_has_the_same_bits_whatever_it_comes_with(options, rng_seed, monkeypatch):
    """Threads, order, chunk and cut change no id, no nll and no gradient of hidden."""
    x = make_inputs(530, 1200, 40)
    names = torch.randint(2**62, (530,))

    def call(rows: Tensor) -> list[Tensor]:
        y = {name: x[name][rows].detach() for name in ("hidden", "labels", "weights")}
        y["hidden"].requires_grad_()
        out = ops.linear_cross_entropy_sample(**(x | y), row_ids=names[rows], seed=5, **options)
        return [out.sampled_ids, out.nll.detach(), torch.autograd.grad(out.loss_sum, y["hidden"])[0]]

    def assert_equal(got: list[Tensor], rows: Tensor) -> None:
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b[rows])

    everything, order = torch.arange(530), torch.randperm(530)
    expected, gradients = call(everything), ours(x, 1.0, None)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert_equal(call(everything), everything)
        for a, b in zip(ours(x, 1.0, None), gradients, strict=True):
            assert torch.equal(a, b)  # those of weight and bias too
    assert_equal(call(order), order)
    for rows in order.split(77):
        assert_equal(call(rows), rows)
    monkeypatch.setattr(generator_head, "_CHUNK", {4: 100})
    assert_equal(call(everything), everything)


def p_value(counts: Tensor, expected: Tensor) -> float:
    """Of Pearson's chi-square; bins that expect under 5 are one bin, left out if it does too."""
    usual = expected >= 5
    counts = torch.cat([counts[usual], counts[~usual].sum().reshape(1)])
    expected = torch.cat([expected[usual], expected[~usual].sum().reshape(1)])
    if expected[-1] < 5:
        counts, expected = counts[:-1], expected[:-1]
    chi_square = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), chi_square / 2).item()


def law_of_draws(backend_name: str, device: str, vocab_size: int, draws: int, calls: int) -> float:
    """The p-value of tokens against softmax(bias), hidden being zero. Fixed seeds: a bound on it is statistical."""
    bias = torch.from_numpy(np.random.default_rng(3).normal(0, 2, vocab_size)).float()
    rows, counts = draws // calls, torch.zeros(vocab_size, dtype=torch.int64)
    x = {
        "hidden": torch.zeros(rows, 8),
        "weight": torch.randn(vocab_size, 8),
        "bias": bias,
        "labels": torch.zeros(rows, dtype=torch.int64),
        "weights": torch.ones(rows),
    }
    x = {name: tensor.to(device) for name, tensor in x.items()}
    with ops.use_backend(backend_name):
        for seed in range(calls):
            sampled = ops.linear_cross_entropy_sample(**x, seed=seed).sampled_ids
            counts += torch.bincount(sampled.cpu(), minlength=vocab_size)
    found = p_value(counts, torch.softmax(bias.double(), 0) * draws)
    print(f"{backend_name}: V = {vocab_size}, {draws} draws: p = {found:.3f}")
    return found


@needs_cpp
@pytest.mark.parametrize(("vocab_size", "draws"), [(100, 10**7 if ALL else 10**5), (30522, 3 * 10**5 if ALL else 5000)])
def test_samples_have_the_law_of_the_softmax(vocab_size, draws):
    assert law_of_draws("cpp", "cpu", vocab_size, draws, calls=10) > 1e-4


@pytest.mark.parametrize("backend", KERNELS[1:])
def test_samples_of_the_triton_kernel_have_the_law_of_the_softmax(backend, monkeypatch):
    from electra_fast.kernels import generator_head as kernels

    if backend.interpreted:  # few programs, since the interpreter takes its time by program
        monkeypatch.setitem(kernels._MEASURE, 4, kernels.Launch(512, 128, 16, 4, 1))
        monkeypatch.setitem(kernels._FINISH, 4, kernels.Launch(512, 128, 16, 4, 1))
    draws = 10**5 if ALL else 10**4
    assert law_of_draws("triton", backend.device, 100, draws, calls=4) > 1e-4


@pytest.mark.parametrize("place", [300, 511])  # within a tile, and as the last of one
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_of_probability_1e_7_comes_out_at_its_rate(backend, place):
    """The uniform number goes through its interval around a half: what finds the token is 1e-7 long."""
    rows = len(NEAR_HALF)
    bias = torch.full((600,), -math.inf)
    bias[place] = math.log(1e-7)
    bias[5] = bias[590] = math.log(0.5 - 0.5e-7)
    x = make_inputs(rows, 600, 8, device=backend.device)
    x |= {"hidden": torch.zeros_like(x["hidden"]), "bias": bias.to(backend.device)}
    x |= {"labels": torch.full_like(x["labels"], 5), "weights": torch.ones_like(x["weights"])}
    with ops.use_backend(backend.name):
        got = ops.linear_cross_entropy_sample(**x, seed=7, row_ids=torch.from_numpy(NEAR_HALF).to(backend.device))
    uniform = uniform53(7, 0, NEAR_HALF)
    order = np.argsort(uniform)
    uniform, tokens = uniform[order], got.sampled_ids.cpu().numpy()[order]
    below, found, above = (uniform[tokens == token] for token in (5, place, 590))
    assert len(below) + len(found) + len(above) == len(uniform)
    assert (np.diff(np.searchsorted([5, place, 590], tokens)) >= 0).all()
    # Float32 moves both ends of the interval alike; its length shows to within that of neighbouring numbers.
    assert found[-1] - found[0] <= 1.01e-7
    assert above[0] - below[-1] >= 0.99e-7


# Each path where it is chosen and where its rival is: one tile and a bit, several, and widths of one slice and of more;
# ELECTRA's vocabulary on a GPU.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    ("rows", "vocab_size", "width"), [(7, 300, 64), (5, 130, 264), (3, 40, 768), (600, 30522, 128), (600, 30522, 768)]
)
@pytest.mark.parametrize("backend", KERNELS[1:])
def test_fused_and_chunked_kernels_agree(backend, rows, vocab_size, width, dtype, rng_seed, monkeypatch):
    if backend.interpreted and vocab_size > 600:
        pytest.skip("takes the interpreter too long")
    if backend.interpreted and not ALL and (width == 768 or (dtype != torch.float32 and width > 64)):
        pytest.skip("many programs; runs under ELECTRA_FAST_TEST_ALL=1")
    from electra_fast.kernels import generator_head_chunks

    monkeypatch.setattr(generator_head_chunks, "_CHUNK", 3 if backend.interpreted else 256)
    x = make_inputs(rows, vocab_size, width, dtype, backend.device)
    x["weights"].fill_(1.0)
    d_nll = torch.randn(rows, device=backend.device)
    one_is_largest, _ = largest(x)
    names, same_dtype, results, samples = np.arange(rows), plain(x, 0.7, d_nll), {}, {}
    for path in ("fused", "chunks"):
        monkeypatch.setattr(generator_head, "_PATHS", dict.fromkeys((2, 4), ((math.inf, path),)))
        with ops.use_backend(backend.name):
            results[path] = ours(x, 0.7, d_nll)
            for law in ((1.0, False), (0.7, True)):
                temperature, disallow = law
                with torch.no_grad():
                    samples[path, law] = ops.linear_cross_entropy_sample_with_argmax(
                        **x, seed=rng_seed, temperature=temperature, disallow_correct=disallow
                    )
    for name, a, b, c in zip(
        ("loss", "nll", "d_hidden", "d_weight", "d_bias"), *results.values(), same_dtype, strict=True
    ):
        # As far from each other as PyTorch in this dtype is from one of them, twice at most.
        atol = 4 * torch.finfo(a.dtype).eps * b.abs().max().item() + 1e-6
        assert_as_accurate(a, c, b.double(), atol=atol, name=name)
    for law in ((1.0, False), (0.7, True)):
        _, clear = oracle({name: tensor.detach() for name, tensor in x.items()}, *law, rng_seed, 0, names)
        fused, chunks = samples["fused", law], samples["chunks", law]
        assert torch.equal(fused.sampled_ids.cpu()[clear], chunks.sampled_ids.cpu()[clear])
        assert torch.equal(fused.argmax_ids.cpu()[one_is_largest], chunks.argmax_ids.cpu()[one_is_largest])
