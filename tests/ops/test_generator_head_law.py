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
from tests.ops.backends import BACKENDS, KERNELS, needs_cpp
from tests.ops.generator_head import check_against_float64, make_inputs, ours, too_slow
from tests.ops.test_sample_tokens import NEAR_HALF, chi_square_is_usual, inverse_cdf, uniform53

ALL = os.environ.get("ELECTRA_FAST_TEST_ALL") == "1"


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
