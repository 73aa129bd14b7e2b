"""rtd_bce against float64 NumPy, exact counts and a brute-force AUC."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from electra_fast import ops
from electra_fast.ops.rtd_bce import auc


@pytest.mark.parametrize("shape", [(0,), (1,), (977,), (5, 37)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_gradient_and_counts(shape, dtype, rng_seed):
    g = np.random.default_rng(rng_seed)
    logits = torch.from_numpy(g.normal(0, 4, shape)).to(dtype).requires_grad_()
    replaced = torch.from_numpy(g.random(shape) < 0.15)
    mask = torch.from_numpy(g.random(shape) < 0.9)
    out = ops.rtd_bce(logits, replaced, mask)
    (gradient,) = torch.autograd.grad(out.loss_sum * 3, logits)

    x, y, m = logits.detach().double().numpy(), replaced.numpy(), mask.numpy()
    losses = np.logaddexp(0, x) - x * y
    # A loss near 0 is the difference of terms as large as the logit, at most 20 here: 20 * 2**-24 a token.
    np.testing.assert_allclose(out.loss_sum.item(), losses[m].sum(), rtol=1e-5, atol=1.2e-6 * x.size)
    expected = 3 * m * (1 / (1 + np.exp(-x)) - y)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    np.testing.assert_allclose(gradient.double(), expected, rtol=tolerance, atol=1e-6)
    assert out.loss_sum.dtype == torch.float32

    counts = [
        m.sum(),
        *((m & (x > 0) & y).sum(), (m & (x > 0) & ~y).sum(), (m & (x <= 0) & ~y).sum(), (m & (x <= 0) & y).sum()),
    ]
    assert [int(t) for t in out[1:6]] == counts
    bins = np.clip(np.floor(32 * x) + 512, 0, 1023).astype(int)
    for row, chosen in enumerate((m & ~y, m & y)):
        assert np.array_equal(out.score_histogram[row].numpy(), np.bincount(bins[chosen], minlength=1024))


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
    with pytest.raises(TypeError, match="logits"):
        ops.rtd_bce(flags, flags, flags)
