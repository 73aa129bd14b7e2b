"""What `ElectraForJointPreTraining` can be trained for: one function an objective, from flat tokens to its losses.

T tokens, B sequences, M masked slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from electra_fast.models.tower import STREAMS_PER_TOWER
from electra_fast.ops.masking_sampling import MaskedTokens
from electra_fast.ops.rtd_bce import RTDLoss, rtd_bce
from electra_fast.packing import Packing

if TYPE_CHECKING:
    from electra_fast.models.joint import ElectraForJointPreTraining

# Streams of one seed: the sampling's, then those of each tower's dropout.
SAMPLING_STREAM = 1
GENERATOR_STREAM = STREAMS_PER_TOWER
DISCRIMINATOR_STREAM = 2 * STREAMS_PER_TOWER
TWO_TOWER_STREAM = 3 * STREAMS_PER_TOWER


@dataclass
class JointPreTrainingOutput(ModelOutput):
    """What `ElectraForJointPreTraining.forward` returns; what an objective does not compute is None.

    M masked slots among T real tokens in row order.
    """

    loss: Tensor | None = None  # the weighted sum of the losses that are trained
    generator_loss: Tensor | None = None  # nats per masked token; of `electric` per token but [CLS] and [SEP]
    discriminator_loss: Tensor | None = None  # nats per token
    mlm_loss: Tensor | None = None  # nats per masked token, of the discriminator's encoder
    masked: MaskedTokens | None = None
    sampled_ids: Tensor | None = None  # int64 [M]
    corrupted_ids: Tensor | None = None  # int64, the shape of input_ids
    rtd: RTDLoss | None = None
    policy_loss: Tensor | None = None  # of `adversarial`: its gradient is REINFORCE's, its value means nothing
    baseline_loss: Tensor | None = None  # of `adversarial`: nats per masked token
    reward: Tensor | None = None  # of `adversarial`: the discriminator's nats per masked token


class Masking(NamedTuple):
    """The tokens to predict, and what names the random numbers of a step."""

    masked: MaskedTokens
    seed: Tensor  # int64, 0-d: of the sampling and of the dropout
    row_ids: Tensor  # int64 [T], names of the tokens


class Corruption(NamedTuple):
    """The generator's half of a step."""

    masked: MaskedTokens
    loss_sum: Tensor  # float32, 0-d
    nll: Tensor  # float32 [M]
    sampled_ids: Tensor  # int64 [M]
    argmax_ids: Tensor | None  # int64 [M], where asked for
    corrupted_ids: Tensor  # int64 [T]
    is_replaced: Tensor  # bool [T]
    seed: Tensor  # int64, 0-d: of the sampling and of the dropout
    row_ids: Tensor  # int64 [T], names of the tokens for the random numbers
    states: Tensor | None = None  # [M, H], of the encoder that predicted
    hidden: Tensor | None = None  # [M, E], what was projected onto the vocabulary


class FlatInputs(NamedTuple):
    """The arguments of `ElectraForJointPreTraining.forward` without padding."""

    input_ids: Tensor  # int64 [T]
    packing: Packing
    token_type_ids: Tensor | None  # int64 [T]
    options: dict[str, Any]  # of `corrupt`: sequence_ids, seed, mask_seed, num_masked, unit_starts
    masked_count: Tensor | float | None
    token_count: Tensor | float | None


def joint(model: ElectraForJointPreTraining, inputs: FlatInputs) -> JointPreTrainingOutput:
    """Both losses: the generator's, and the discriminator's of what the generator sampled."""
    corruption = corrupt(model, inputs)
    _, rtd, discriminator_loss = detect(model, inputs, corruption)
    generator_loss = mean_nll(corruption, inputs)
    return JointPreTrainingOutput(
        loss=model.generator_weight * generator_loss + model.discriminator_weight * discriminator_loss,
        generator_loss=generator_loss.detach(),
        discriminator_loss=discriminator_loss.detach(),
        masked=corruption.masked,
        sampled_ids=corruption.sampled_ids,
        corrupted_ids=corruption.corrupted_ids,
        rtd=rtd,
    )


def generator(model: ElectraForJointPreTraining, inputs: FlatInputs) -> JointPreTrainingOutput:
    """The generator's masked language modelling alone; the discriminator does not run."""
    corruption = corrupt(model, inputs)
    loss = mean_nll(corruption, inputs)
    return JointPreTrainingOutput(
        loss=model.generator_weight * loss,
        generator_loss=loss.detach(),
        masked=corruption.masked,
        sampled_ids=corruption.sampled_ids,
    )


def discriminator(model: ElectraForJointPreTraining, inputs: FlatInputs) -> JointPreTrainingOutput:
    """The discriminator alone; the generator only corrupts, without gradients and without dropout."""
    with torch.no_grad(), _without_dropout(model.generator):
        corruption = corrupt(model, inputs)
    _, rtd, loss = detect(model, inputs, corruption)
    return JointPreTrainingOutput(
        loss=model.discriminator_weight * loss,
        discriminator_loss=loss.detach(),
        masked=corruption.masked,
        sampled_ids=corruption.sampled_ids,
        corrupted_ids=corruption.corrupted_ids,
        rtd=rtd,
    )


def corrupt(model: ElectraForJointPreTraining, inputs: FlatInputs, *, predictor: str = "generator") -> Corruption:
    """The generator's half of a step, or that of another `predictor`."""
    return model.corrupt(
        inputs.input_ids, inputs.packing, token_type_ids=inputs.token_type_ids, predictor=predictor, **inputs.options
    )


def mean_nll(corruption: Corruption, inputs: FlatInputs) -> Tensor:
    """Nats per masked token."""
    count = inputs.masked_count
    if count is None:
        count = corruption.masked.weights.sum().clamp(min=1)
    return corruption.loss_sum / count


class Detection(NamedTuple):
    """The discriminator's half of a step."""

    logits: Tensor  # [T]
    rtd: RTDLoss  # no gradient
    loss: Tensor  # nats per token


def detect(
    model: ElectraForJointPreTraining, inputs: FlatInputs, corruption: Corruption, log_odds: Tensor | None = None
) -> Detection:
    """The discriminator's answers, to whose logits `log_odds` [T] are added, and their loss."""
    logits = model.discriminate(
        corruption.corrupted_ids,
        inputs.packing,
        token_type_ids=inputs.token_type_ids,
        seed=corruption.seed,
        row_ids=corruption.row_ids,
    )
    if log_odds is not None:
        logits = logits.to(log_odds.dtype) + log_odds
    rtd = rtd_bce(logits, corruption.is_replaced, inputs.packing.is_real)
    count = rtd.count.clamp(min=1) if inputs.token_count is None else inputs.token_count
    # torch 2.11 can't compile `_replace`.
    return Detection(logits, RTDLoss(rtd.loss_sum.detach(), *rtd[1:]), rtd.loss_sum / count)


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """Within the block every part of `module` is in eval mode; afterwards each is in its own again."""
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
