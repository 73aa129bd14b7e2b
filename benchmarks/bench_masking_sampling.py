"""Masking and corruption: our kernels beside plain PyTorch, vectorised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import plain
from electra_fast import ops

# (sequences, tokens a sequence): a batch of ELECTRA-small, and one of ELECTRA-large.
SHAPES = {"cpu": [(128, 128), (256, 512)], "cuda": [(128, 128), (256, 512)]}
VOCABULARY = 30522
NEVER = (101, 102, 103)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_reference(call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with ops.use_backend("reference"):
            return call(*arguments)

    return run


@pytest.mark.parametrize("has_units", [False, True], ids=["tokens", "units"])
@pytest.mark.parametrize(("sequences", "length"), SHAPES[DEVICE])
def test_mask_tokens(compare, copies, device, sequences, length, has_units):
    num_tokens = sequences * length
    num_masked = round(num_tokens * 0.15)
    cu_seqlens = torch.arange(0, num_tokens + 1, length, dtype=torch.int32, device=device)

    def make_inputs() -> tuple[Tensor, ...]:
        ids, seed = torch.randint(5, VOCABULARY, (num_tokens,), device=device), torch.randint(2**60, (), device=device)
        # As many units a token as WordPiece makes words of English.
        return ids, seed, torch.rand(num_tokens, device=device) < 0.8

    def mask(ids: Tensor, seed: Tensor, unit_starts: Tensor) -> ops.MaskedTokens:
        return ops.mask_tokens(
            ids,
            cu_seqlens,
            mask_token_id=103,
            never_mask_ids=NEVER,
            num_masked=num_masked,
            seed=seed,
            unit_starts=unit_starts if has_units else None,
        )

    def mask_with_torchs_generator(ids: Tensor, seed: Tensor, unit_starts: Tensor) -> tuple[Tensor, Tensor]:
        ids = ids.view(sequences, length)
        return plain.choose_masks(ids, torch.ones_like(ids, dtype=torch.bool), mask_token_id=103, never_mask_ids=NEVER)

    compare(
        "mask_tokens, units" if has_units else "mask_tokens",
        ours=mask,
        plain=on_reference(mask),  # the same masks
        # Other masks, by a generator that depends on the batch: what people write.
        rivals={} if has_units else {"torch.rand, argsort": mask_with_torchs_generator},
        inputs=copies(make_inputs),
        bytes_moved=16 * num_tokens + 20 * num_masked + has_units * num_tokens,
        shape=f"{sequences} x {length}",
        target=5.0 if device == "cpu" else None,
    )


def sample_by_multinomial(logits: Tensor) -> Tensor:
    return torch.multinomial(logits.softmax(-1), 1).squeeze(1)


@pytest.mark.parametrize(("sequences", "length"), [(128, 128)])
def test_mask_sample_corrupt(compare, copies, benchmark, device, sequences, length):
    """The whole chain, from given logits: choose and replace, sample, write."""
    sequences = sequences if benchmark.enabled else 2
    num_tokens = sequences * length
    num_masked = sequences * round(length * 0.15)
    cu_seqlens = torch.arange(0, num_tokens + 1, length, dtype=torch.int32, device=device)

    def make_inputs() -> tuple[Tensor, ...]:
        ids, seed = (
            torch.randint(105, VOCABULARY, (num_tokens,), device=device),
            torch.randint(2**60, (), device=device),
        )
        return ids, torch.randn(num_masked, VOCABULARY, device=device), seed

    def chain(ids: Tensor, logits: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        masked = ops.mask_tokens(
            ids, cu_seqlens, mask_token_id=103, never_mask_ids=NEVER, num_masked=num_masked, seed=seed
        )
        sampled_ids = ops.sample_tokens(logits, seed=seed, row_ids=masked.positions)
        return masked.input_ids, *ops.corrupt_tokens(ids, masked.positions, sampled_ids, masked.weights)

    def plain_chain(sample: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        def run(ids: Tensor, logits: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
            ids = ids.view(sequences, length)
            is_real = torch.ones_like(ids, dtype=torch.bool)
            is_masked, masked_ids = plain.choose_masks(ids, is_real, mask_token_id=103, never_mask_ids=NEVER)
            corrupted_ids = ids.masked_scatter(is_masked, sample(logits))
            return masked_ids, corrupted_ids, corrupted_ids != ids

        return run

    compare(
        "mask, sample, corrupt",
        ours=chain,
        plain=plain_chain(plain.gumbel_sample),  # the faster of the two on two CPU cores
        rivals={"multinomial": plain_chain(sample_by_multinomial)},
        inputs=copies(make_inputs),
        bytes_moved=4 * num_masked * VOCABULARY,
        shape=f"{sequences} x {length}, V = {VOCABULARY}",
        target=3.0 if device == "cpu" else None,
    )


@pytest.mark.parametrize(("sequences", "length"), SHAPES[DEVICE])
def test_corrupt_tokens(compare, copies, device, sequences, length):
    num_tokens, num_masked = sequences * length, round(sequences * length * 0.15)

    def make_inputs() -> tuple[Tensor, ...]:
        ids = torch.randint(5, VOCABULARY, (num_tokens,), device=device)
        positions = torch.randperm(num_tokens, device=device)[:num_masked].sort().values
        return ids, positions, torch.randint_like(positions, VOCABULARY), torch.ones(num_masked, device=device)

    compare(
        "corrupt_tokens",
        ours=ops.corrupt_tokens,
        plain=on_reference(ops.corrupt_tokens),
        inputs=copies(make_inputs),
        bytes_moved=17 * num_tokens + 36 * num_masked,
        shape=f"{sequences} x {length}",
    )
