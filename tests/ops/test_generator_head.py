"""linear_cross_entropy_sample against float64 arithmetic written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from electra_fast import ops


def inputs(seed: int, rows: int, vocab_size: int, width: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "hidden": torch.randn(rows, width, generator=g),
        "weight": torch.randn(vocab_size, width, generator=g) * 0.5,
        "bias": torch.randn(vocab_size, generator=g),
        "labels": torch.randint(vocab_size, (rows,), generator=g),
        "weights": (torch.rand(rows, generator=g) < 0.8).float(),
    }


@pytest.mark.parametrize(("rows", "vocab_size", "width"), [(1, 2, 8), (7, 100, 8), (37, 257, 24), (0, 5, 3)])
def test_nll_loss_and_gradients_against_float64(rows, vocab_size, width, rng_seed):
    x = inputs(rng_seed, rows, vocab_size, width)
    leaves = [x[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    out = ops.linear_cross_entropy_sample(**x, seed=1)
    upstream = torch.randn(rows)
    gradients = torch.autograd.grad(out.loss_sum * 0.7 + (out.nll * upstream).sum(), leaves)

    hidden, weight, bias = (leaf.detach().double().numpy() for leaf in leaves)
    logits = hidden @ weight.T + bias
    logits -= logits.max(axis=1, keepdims=True, initial=-np.inf)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    onehot = np.eye(vocab_size)[x["labels"].numpy()]
    nll = -np.log((probabilities * onehot).sum(axis=1))
    np.testing.assert_allclose(out.nll.detach(), nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out.loss_sum.detach(), (x["weights"].numpy() * nll).sum(), rtol=1e-5, atol=1e-5)

    coefficient = 0.7 * x["weights"].double().numpy() + upstream.double().numpy()
    d_logits = (probabilities - onehot) * coefficient[:, None]
    for ours, exact in zip(gradients, (d_logits @ weight, d_logits.T @ hidden, d_logits.sum(axis=0)), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=2e-5)


def test_unused_rows_draw_their_own_label_and_cost_nothing(rng_seed):
    x = inputs(rng_seed, 9, 50, 8)
    x["weights"] = torch.tensor([1.0, 0.0] * 4 + [0.0])
    x["bias"][x["labels"][1]] = -torch.inf  # an unused slot's label of probability zero must not make the loss NaN
    x["labels"][::2] = (x["labels"][1] + 1) % 50
    out = ops.linear_cross_entropy_sample(**x, seed=rng_seed)
    assert out.loss_sum.isfinite()
    assert torch.equal(out.sampled_ids[1::2], x["labels"][1::2])


def test_temperature_and_disallow_change_the_sample_only(rng_seed):
    x = inputs(rng_seed, 200, 11, 8)
    x["weights"].fill_(1.0)
    base = ops.linear_cross_entropy_sample_with_argmax(**x, seed=rng_seed)
    assert torch.equal(base.argmax_ids, (x["hidden"] @ x["weight"].T + x["bias"]).argmax(dim=1))
    cold = ops.linear_cross_entropy_sample(**x, seed=rng_seed, temperature=1e-4)
    assert float((cold.sampled_ids == base.argmax_ids).float().mean()) >= 0.99
    other = ops.linear_cross_entropy_sample(**x, seed=rng_seed, disallow_correct=True)
    assert not (other.sampled_ids == x["labels"]).any()
    for out in (cold, other):
        assert torch.equal(out.nll, base.nll)
        assert torch.equal(out.loss_sum, base.loss_sum)
    with pytest.raises(ValueError, match="temperature"):
        ops.linear_cross_entropy_sample(**x, seed=0, temperature=0.0)


def test_bad_shapes_are_named(rng_seed):
    x = inputs(rng_seed, 4, 6, 8)
    for name, value in (("hidden", x["hidden"][:, :5]), ("bias", x["bias"][:3]), ("labels", x["labels"][:2])):
        with pytest.raises(ValueError, match=name):
            ops.linear_cross_entropy_sample(**(x | {name: value}), seed=0)
    with pytest.raises(TypeError, match="labels"):
        ops.linear_cross_entropy_sample(**(x | {"labels": x["labels"].int()}), seed=0)
