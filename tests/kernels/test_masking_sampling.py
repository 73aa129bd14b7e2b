"""The kernels of masking_sampling: rounding, and compiling ahead of time for each generation of hardware."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed on this platform")
tl = triton.language

from electra_fast.kernels.masking_sampling import round_share  # noqa: E402

ROOT = Path(__file__).parents[2]


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


# Ampere (A100), Hopper (H100) and Blackwell (B200), and AMD's MI300.
@pytest.mark.parametrize(
    "target", [("cuda", "80", "32"), ("cuda", "90", "32"), ("cuda", "100", "32"), ("hip", "gfx942", "64")]
)
def test_kernels_compile(target, tmp_path):
    # A process of its own: this one may have imported Triton as an interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    script = Path(__file__).with_name("compile_masking_sampling.py")
    run = subprocess.run(
        [sys.executable, script, *target], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    kernels = json.loads(run.stdout.splitlines()[-1])
    assert set(kernels) == {"draw", "pick", "write"}
    for name, kernel in kernels.items():
        assert kernel["bytes"] > 1000, name
        assert kernel["shared"] <= 48 * 1024, name
        assert kernel["spills"] in (0, None), name
