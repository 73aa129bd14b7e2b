"""Drawing one token a row from softmaxes, by the inverse CDF; the generator's head draws its own by the same law."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from electra_fast.ops import _backends
from electra_fast.ops._checks import check_tensor
from electra_fast.ops._register import register
from electra_fast.ops.random import as_seed, check_stream, philox, uniform53


def _sample_tokens_shapes(
    logits: Tensor, seed: Tensor, row_ids: Tensor | None, disallow: Tensor | None, temperature: float, stream: int
) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


def sample_tokens_reference(
    logits: Tensor, seed: Tensor, row_ids: Tensor | None, disallow: Tensor | None, temperature: float, stream: int
) -> Tensor:
    """Plain PyTorch on any device: masses in float32 (float64 for float64 logits), their prefix sums in float64."""
    rows = torch.arange(logits.shape[0], device=logits.device) if row_ids is None else row_ids
    word0, word1, _, _ = philox(seed, rows, 0, stream)
    # In place from here on: each new [M, V] costs more in page faults than in arithmetic.
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    if disallow is not None:
        scores.scatter_(1, disallow.unsqueeze(1), -math.inf)
    # The largest goes first: the division would round large logits by more than the difference of two of them.
    masses = scores.sub_(scores.amax(1, keepdim=True)).div_(temperature).exp_()
    cumulative = masses.double().cumsum_(1)  # [M, V]; cumsum(dtype=float64) is 10 times slower (torch 2.13, CPU)
    total = cumulative[:, -1:]
    # Below the total even where the product rounds up to it, so that the token found has a mass.
    aim = torch.minimum(uniform53(word0, word1).unsqueeze(1) * total, torch.nextafter(total, torch.zeros_like(total)))
    # A row with a NaN has no law to draw from; its token must still index the embeddings, so that the loss can tell.
    return torch.searchsorted(cumulative, aim, right=True).squeeze(1).clamp_(max=logits.shape[1] - 1)


def _sample_tokens_cpp(
    logits: Tensor, seed: Tensor, row_ids: Tensor | None, disallow: Tensor | None, temperature: float, stream: int
) -> Tensor:
    num_rows, vocab_size = logits.shape
    logits = rows_of(logits)
    row_ids, disallow = contiguous(row_ids), contiguous(disallow)
    sampled_ids = logits.new_empty(num_rows, dtype=torch.int64)
    _backends.extension().sample_tokens(
        logits=logits.data_ptr(),
        bfloat16=logits.dtype == torch.bfloat16,
        num_rows=num_rows,
        vocab_size=vocab_size,
        row_stride=logits.stride(0),
        row_ids=0 if row_ids is None else row_ids.data_ptr(),
        disallow=0 if disallow is None else disallow.data_ptr(),
        seed=seed.item(),
        stream=stream,
        inverse_temperature=inverse_of(temperature),
        sampled_ids=sampled_ids.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return sampled_ids


def _sample_tokens_triton(
    logits: Tensor, seed: Tensor, row_ids: Tensor | None, disallow: Tensor | None, temperature: float, stream: int
) -> Tensor:
    from electra_fast.kernels.sampling import sample_tokens_triton

    return sample_tokens_triton(
        rows_of(logits), seed, contiguous(row_ids), contiguous(disallow), inverse_of(temperature), stream
    )


def rows_of(matrix: Tensor) -> Tensor:
    """`matrix`, or a copy, with the elements of a row beside each other; rows may lie anywhere."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def inverse_of(temperature: float) -> float:
    """1 / temperature, at most the largest float32: the infinity above it would make NaN of the largest score, 0."""
    return min(1.0 / temperature, torch.finfo(torch.float32).max)


def _sample_tokens_check(
    logits: Tensor, seed: Tensor, row_ids: Tensor | None, disallow: Tensor | None, *_: Any
) -> None:
    if disallow is not None and disallow.numel() > 0:
        low, high = (int(bound) for bound in disallow.aminmax())
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(
                f"sample_tokens: disallow must hold tokens in [0, V = {logits.shape[1]}); got {low} to {high}"
            )


_sample_tokens = register(
    "sample_tokens",
    {"reference": sample_tokens_reference, "cpp": _sample_tokens_cpp, "triton": _sample_tokens_triton},
    operator="sample_tokens",
    shapes=_sample_tokens_shapes,
    check_values=_sample_tokens_check,
)


def sample_tokens(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    disallow: Tensor | None = None,
    seed: Tensor | int | None = None,
    stream: int = 0,
    row_ids: Tensor | None = None,
) -> Tensor:
    """Draw one token for each row from softmax(logits / temperature), by the inverse CDF in vocabulary order.

    Args:
        logits: [M, V], floating point, V >= 1; no gradient flows through the sample.
        temperature: positive.
        disallow: int64 [M], one token in [0, V) for each row that is never drawn (V >= 2 then); None allows all. On
            CUDA the range is checked under ELECTRA_FAST_DEBUG=1 only; one outside disallows nothing.
        seed: int64 0-d tensor on the device of the data, or an int; None draws one from torch's default generator.
        stream: int in [0, 2^31), separates uses of one seed.
        row_ids: int64 [M], names of the rows for the random numbers; None is 0..M-1.

    Returns:
        int64 [M].

    Raises:
        TypeError, ValueError: a dtype, shape, device or range other than the above.

    Source: ELECTRA paper, section 2; google-research/electra, pretrain/pretrain_helpers.py (`sample_from_softmax`),
    which takes the argmax over Gumbel noise: the same law.
    """
    name = "sample_tokens"
    if logits.dim() != 2 or not logits.is_floating_point():
        raise TypeError(f"{name}: logits must be floating point [M, V]; got {logits.dtype} {tuple(logits.shape)}")
    if logits.shape[1] < (1 if disallow is None else 2):
        raise ValueError(f"{name}: logits has {logits.shape[1]} columns, which leaves no token to draw")
    for argument, tensor in (("disallow", disallow), ("row_ids", row_ids)):
        if tensor is None:
            continue
        check_tensor(name, argument, tensor, 1, (torch.int64,), logits.device)
        if tensor.shape[0] != logits.shape[0]:
            raise ValueError(f"{name}: {argument} has {tensor.shape[0]} entries, logits {logits.shape[0]} rows")
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"{name}: temperature must be positive and finite; got {temperature}")
    return _sample_tokens(
        logits.detach(), as_seed(seed, logits.device), row_ids, disallow, temperature, check_stream(stream)
    )
