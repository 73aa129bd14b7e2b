"""The generator's head: vocabulary projection, cross-entropy of the true tokens and a sample from the softmax."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._backends import select
from electra_fast.ops.masking_sampling import sample_tokens


class GeneratorSample(NamedTuple):
    """What `linear_cross_entropy_sample` returns for M rows."""

    loss_sum: Tensor  # float32, 0-d: sum of weights * nll
    nll: Tensor  # float32 [M]: negative log-likelihood of the labels, in nats
    sampled_ids: Tensor  # int64 [M]


class GeneratorSampleWithArgmax(NamedTuple):
    """What `linear_cross_entropy_sample_with_argmax` returns: a `GeneratorSample` and the most likely tokens."""

    loss_sum: Tensor
    nll: Tensor
    sampled_ids: Tensor
    argmax_ids: Tensor  # int64 [M]


class _Options(NamedTuple):
    temperature: float
    disallow_correct: bool
    seed: Tensor | int | None
    stream: int
    row_ids: Tensor | None


def generator_head_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, weights: Tensor, options: _Options
) -> tuple[GeneratorSample, Tensor]:
    """The result and the logits [M, V] it was made from, which only a reference can afford to hold."""
    logits = F.linear(hidden, weight, bias)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    nll = torch.logsumexp(logits, dim=1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    # Unused slots may hold a label of probability zero: where() keeps 0 * inf out of the sum.
    used = weights > 0
    loss_sum = (weights * torch.where(used, nll, 0)).sum()

    sampled_ids = sample_tokens(
        logits.detach(),
        temperature=options.temperature,
        disallow=labels if options.disallow_correct else None,
        seed=options.seed,
        stream=options.stream,
        row_ids=options.row_ids,
    )
    return GeneratorSample(loss_sum, nll, torch.where(used, sampled_ids, labels)), logits


def linear_cross_entropy_sample(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    temperature: float = 1.0,
    disallow_correct: bool = False,
    seed: Tensor | int | None = None,
    stream: int = 0,
    row_ids: Tensor | None = None,
) -> GeneratorSample:
    """Cross-entropy of `labels` under softmax(hidden @ weight.T + bias), and one token drawn from it for each row.

    Args:
        hidden: [M, E], the transformed hidden states at the masked positions.
        weight: [V, E], the (tied) word embeddings. bias: [V].
        labels: int64 [M], the true tokens.
        weights: float32 [M]; 0 for unused slots, whose sample is their own label.
        temperature: divides the logits of the sample; the loss never sees it.
        disallow_correct: never sample the true token (the original's option); the loss never sees it.
        seed, stream, row_ids: which random numbers to draw, see `electra_fast.ops.random`.

    Returns:
        `(loss_sum, nll, sampled_ids)`; the first two are differentiable with respect to hidden, weight and bias.

    Raises:
        TypeError, ValueError: a dtype or shape other than the above, or a temperature that is not positive.

    Source: ELECTRA paper, section 2 and appendix A; google-research/electra, run_pretraining.py
    (`_get_masked_lm_output`) and pretrain/pretrain_helpers.py (`sample_from_softmax`).
    """
    _check(hidden, weight, bias, labels, weights)
    select("linear_cross_entropy_sample", hidden)
    options = _Options(temperature, disallow_correct, seed, stream, row_ids)
    return generator_head_reference(hidden, weight, bias, labels, weights, options)[0]


def linear_cross_entropy_sample_with_argmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    temperature: float = 1.0,
    disallow_correct: bool = False,
    seed: Tensor | int | None = None,
    stream: int = 0,
    row_ids: Tensor | None = None,
) -> GeneratorSampleWithArgmax:
    """`linear_cross_entropy_sample` that also returns the most likely token of each row."""
    _check(hidden, weight, bias, labels, weights)
    select("linear_cross_entropy_sample", hidden)
    options = _Options(temperature, disallow_correct, seed, stream, row_ids)
    result, logits = generator_head_reference(hidden, weight, bias, labels, weights, options)
    return GeneratorSampleWithArgmax(*result, logits.detach().argmax(dim=1))


def _check(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, weights: Tensor) -> None:
    name = "linear_cross_entropy_sample"
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{name}: hidden must be [M, E] and weight [V, E]; got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    rows, vocab_size = hidden.shape[0], weight.shape[0]
    for argument, tensor, shape in (
        ("bias", bias, (vocab_size,)),
        ("labels", labels, (rows,)),
        ("weights", weights, (rows,)),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: {argument} must have shape {shape}; got {tuple(tensor.shape)}")
    if not weights.is_floating_point():
        raise TypeError(f"{name}: weights must be floating point, not {weights.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"{name}: labels must be int64, not {labels.dtype}")
