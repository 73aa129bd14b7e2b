"""Philox inside a Triton kernel, against the NumPy oracle; in the interpreter where there is no GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ops import numpy_oracle

triton = pytest.importorskip("triton", reason="Triton is not installed on this platform")
tl = triton.language

from electra_fast.kernels.philox import philox  # noqa: E402


@triton.jit(do_not_specialize=["column_block", "stream"])
def philox_kernel(p_seed, p_rows, p_words, num_rows, column_block, stream, BLOCK: tl.constexpr):
    o_row = tl.arange(0, BLOCK)
    m_row = o_row < num_rows
    b_rows = tl.load(p_rows + o_row, mask=m_row, other=0)
    w0, w1, w2, w3 = philox(tl.load(p_seed), b_rows, column_block, stream)
    tl.store(p_words + o_row, w0.to(tl.int64), mask=m_row)
    tl.store(p_words + num_rows + o_row, w1.to(tl.int64), mask=m_row)
    tl.store(p_words + 2 * num_rows + o_row, w2.to(tl.int64), mask=m_row)
    tl.store(p_words + 3 * num_rows + o_row, w3.to(tl.int64), mask=m_row)


@pytest.mark.parametrize(("column_block", "stream"), [(0, 0), (1, 1), (2**20 + 3, 2**31 - 1)])
def test_philox_kernel_equals_the_oracle(column_block, stream, rng_seed):
    g = np.random.default_rng(rng_seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = g.integers(-(2**63), 2**63, 37, dtype=np.int64)
    rows[:3] = 0, -1, 2**32
    seed = int(g.integers(-(2**63), 2**63))
    words = torch.full((4, 37), -1, device=device)
    philox_kernel[(1,)](
        torch.tensor(seed, device=device),
        torch.from_numpy(rows).to(device),
        words,
        37,
        column_block,
        stream,
        BLOCK=64,
    )
    assert np.array_equal(words.cpu().numpy(), numpy_oracle.philox(seed, rows, column_block, stream))
