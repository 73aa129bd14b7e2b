"""The kernels of masking_sampling: rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed on this platform")
tl = triton.language

from electra_fast.kernels.masking_sampling import round_share  # noqa: E402


@triton.jit
def round_share_kernel(p_result, mask_prob, BLOCK: tl.constexpr):
    o_length = tl.arange(0, BLOCK)
    tl.store(p_result + o_length, round_share(o_length, mask_prob))


def test_share_is_rounded_as_numpy_rounds_it_for_every_length(rng_seed):
    lengths = np.arange(2**14, dtype=np.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for mask_prob in (0.0, 0.15, 0.25, 0.5, 1.0, 1 / 8192, *np.random.default_rng(rng_seed).random(20).tolist()):
        result = torch.full((2**14,), -1, device=device)
        round_share_kernel[(1,)](result, mask_prob, BLOCK=2**14)
        assert np.array_equal(result.cpu().numpy(), np.rint(lengths * np.float32(mask_prob)).astype(np.int64)), (
            mask_prob
        )
