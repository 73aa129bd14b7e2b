"""linear_cross_entropy_sample: loss, nll and gradients against float64."""

from __future__ import annotations

import math
import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops
from tests.ops.backends import BACKENDS, poison_new_tensors
from tests.ops.generator_head import check_against_float64, leaves_of, make_inputs, ours, too_slow

ALL = os.environ.get("ELECTRA_FAST_TEST_ALL") == "1"

# Rows: none, one, few, a block of the Triton kernels and a bit, two chunks of the C++ one's, six. Vocabularies: the
# least, around a tile of 256, ELECTRA's, one divisible by 256. Widths: below a tensor core's, ELECTRA's embeddings and
# hidden sizes, of which the largest are more than one slice and one sum of the kernels.
SHAPES = [
    (0, 100, 8),
    (1, 2, 8),
    (3, 255, 64),
    (3, 256, 128),
    (304, 257, 64),
    (65, 100, 8),
    (1000, 100, 8),
    (3, 100, 256),
    (3, 100, 768),
    (304, 257, 768),
    (1000, 256, 256),
    (304, 30522, 128),
    (3, 50368, 64),
]
SLOW_SHAPES = [(1000, 30522, 128), (304, 50368, 256), (3, 30522, 768)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("rows", "vocab_size", "width"), SHAPES + (SLOW_SHAPES if ALL else []))
@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_and_gradients_against_float64(backend, rows, vocab_size, width, dtype, rng_seed, monkeypatch):
    if too_slow(backend, rows, vocab_size, width):
        pytest.skip("takes the interpreter too long")
    if backend.name == "cpp" and dtype == torch.float16:
        pytest.skip("float16 on CPU runs the reference")
    if dtype != torch.float32 and rows * vocab_size * width > 10**8 and not ALL:
        pytest.skip("PyTorch's own products in 16 bits take long on CPU; runs under ELECTRA_FAST_TEST_ALL=1")
    if backend.interpreted and dtype != torch.float32 and (rows > 3 or width in (128, 256)) and not ALL:
        pytest.skip("many programs; runs under ELECTRA_FAST_TEST_ALL=1")
    x = make_inputs(rows, vocab_size, width, dtype, backend.device)
    d_nll = torch.randn(rows, device=backend.device)
    poison_new_tensors(monkeypatch)
    check_against_float64(backend, x, 0.7, d_nll)
    if backend.interpreted and rows > 3 and not ALL:
        return  # many programs once
    check_against_float64(backend, x, -1.3, None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_impossible_tokens_and_huge_logits(backend, rng_seed):
    x = make_inputs(20, 300, 16, device=backend.device)
    # Softmaxes of one token. The sums of these are exact, multiples of 1/64 below 2^17: ones of 10^4 that are rounded
    # another way would give two tokens that are almost as likely other probabilities.
    x["hidden"][:5] = (x["hidden"][:5] * 4).round() * 1024
    x["weight"] = (x["weight"] * 16).round() / 16
    x["bias"] = (x["bias"] * 64).round() / 64
    x["bias"][::3] = -math.inf
    x["labels"] = x["labels"] // 3 * 3 + 1
    check_against_float64(backend, x, 1.0, torch.randn(20, device=backend.device), exact_rows=5)
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
