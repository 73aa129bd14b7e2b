"""mask_tokens: the C++ kernel beside the reference, which is the plain PyTorch, vectorised."""

from __future__ import annotations

import statistics
import time
from functools import partial

import pytest
import torch

from electra_fast import ops

# (sequences, tokens a sequence): a batch of ELECTRA-small, and one of ELECTRA-large.
SHAPES = [(128, 128), (256, 512)]


def make_inputs(sequences: int, length: int, copies: int = 8) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    cu_seqlens = torch.arange(0, sequences * length + 1, length, dtype=torch.int32)
    return [
        (torch.randint(5, 30522, (sequences * length,)), cu_seqlens, torch.randint(2**60, ())) for _ in range(copies)
    ]


def mask(ids: torch.Tensor, cu_seqlens: torch.Tensor, seed: torch.Tensor, *, num_masked: int) -> ops.MaskedTokens:
    return ops.mask_tokens(
        ids, cu_seqlens, mask_token_id=103, never_mask_ids=(101, 102, 103), num_masked=num_masked, seed=seed
    )


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize(("sequences", "length"), SHAPES)
def test_mask_tokens(benchmark, measure, backend, sequences, length):
    inputs = make_inputs(sequences, length)
    call = partial(mask, num_masked=round(sequences * length * 0.15))
    with ops.use_backend(backend):
        median = measure(call, inputs)
    benchmark.extra_info["tokens_per_second"] = sequences * length / median
    benchmark.extra_info["times_the_reference"] = reference_seconds(call, inputs) / median


def reference_seconds(call, inputs) -> float:
    """The reference once more, in the same process and minute: the ratio is what counts."""
    seconds = []
    with ops.use_backend("reference"):
        for arguments in inputs:
            start = time.perf_counter()
            call(*arguments)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
