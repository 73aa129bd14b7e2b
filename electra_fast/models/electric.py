"""Electric: the discriminator learns the energy of each token in its context, by noise-contrastive estimation.

The model is p(x_t | the others) = exp(-E(x)_t), with E the discriminator's logit. A two-tower generator q learns to
predict every token, and replaces some by noise. The discriminator then says of each token whether it is noise, and its
answer has the logit log(k q) - log((n - k) exp(-E)) = log(k / (n - k)) + log q + E, where k of n tokens are noise. So q
explains what it can, and E has to be right about the rest.
Source: Clark et al. 2020, "Pre-Training Transformers as Energy-Based Cloze Models"; google-research/electra,
run_pretraining.py (`electric_objective`): k / n is `mask_prob`, the loss is over all tokens, [CLS] and [SEP] too.
T tokens, B sequences, S length, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from electra_fast.models.cloze import log_probabilities
from electra_fast.models.layers import FlatBatch
from electra_fast.models.objectives import (
    SAMPLING_STREAM,
    TWO_TOWER_STREAM,
    Corruption,
    FlatInputs,
    JointPreTrainingOutput,
    detect,
)
from electra_fast.ops.generator_head import linear_cross_entropy_sample
from electra_fast.ops.masking_sampling import corrupt_tokens

if TYPE_CHECKING:
    from electra_fast.models.joint import ElectraForJointPreTraining


def electric(model: ElectraForJointPreTraining, inputs: FlatInputs) -> JointPreTrainingOutput:
    """The generator's cross-entropy at every token that may be noise, and the noise-contrastive loss.

    `generator_loss` is in nats per predicted token, and `masked_count` counts those. In `rtd`, replaced means noise,
    the true token by chance included, and the logits are those of the answer, not the energies.
    """
    corruption, log_q, predicted = _noise(model, inputs)
    log_odds = log_q + math.log(model.mask_prob / (1 - model.mask_prob))
    detection = detect(model, inputs, corruption, torch.where(inputs.packing.is_real, log_odds, 0))
    generator_loss = corruption.loss_sum / (predicted if inputs.masked_count is None else inputs.masked_count)
    return JointPreTrainingOutput(
        loss=model.generator_weight * generator_loss + model.discriminator_weight * detection.loss,
        generator_loss=generator_loss.detach(),
        discriminator_loss=detection.loss.detach(),
        masked=corruption.masked,
        sampled_ids=corruption.sampled_ids,
        corrupted_ids=corruption.corrupted_ids,
        rtd=detection.rtd,
    )


def _noise(model: ElectraForJointPreTraining, inputs: FlatInputs) -> tuple[Corruption, Tensor, Tensor]:
    """The generator's half, log q [T] of each token that it left, and how many tokens it predicted."""
    input_ids, packing = inputs.input_ids, inputs.packing
    masked, seed, row_ids = model.mask(input_ids, packing, **inputs.options)
    hidden = model.made_for("electric", model.two_tower)(
        model.generator.electra.embeddings,
        input_ids,
        FlatBatch(packing, seed, row_ids),
        inputs.token_type_ids,
        stream=TWO_TOWER_STREAM,
    )  # [T, E]
    never_masked = torch.tensor(model.never_mask_ids, device=input_ids.device)
    is_predicted = packing.is_real & ~torch.isin(input_ids, never_masked)
    projection = model.generator.generator_lm_head
    loss_sum, nll, proposals = linear_cross_entropy_sample(
        hidden,
        projection.weight,
        projection.bias,
        input_ids,
        is_predicted.float(),
        seed=seed,
        stream=SAMPLING_STREAM,
        row_ids=row_ids,
    )
    positions = masked.positions
    sampled_ids = torch.where(masked.weights > 0, proposals[positions], masked.labels)
    corrupted_ids, _ = corrupt_tokens(input_ids, positions, sampled_ids, masked.weights)
    # Unused slots point to token 0 with weight 0.
    is_noise = torch.zeros_like(packing.is_real, dtype=torch.float32).index_add(0, positions, masked.weights) > 0
    with torch.no_grad():
        log_q = log_probabilities(projection, hidden, input_ids, nll, corrupted_ids)
    corruption = Corruption(masked, loss_sum, nll[positions], sampled_ids, None, corrupted_ids, is_noise, seed, row_ids)
    return corruption, log_q, is_predicted.sum().clamp(min=1)


@torch.no_grad()
def pseudo_log_likelihood(
    discriminator: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    special_token_ids: Sequence[int] = (101, 102, 103),
) -> Tensor:
    """How likely each text is, in nats: float [B], the sum of -E over its tokens, in one pass.

    Differences between texts are what it is for, e.g. to rank what a speech recogniser heard: it is normalised as far
    as noise-contrastive estimation has learned to. In eval mode; 0 for a text without tokens.

    Args:
        discriminator: an `ElectraForPreTraining`, ours or transformers', that was trained by `electric`.
        input_ids: int64 [B, S]. attention_mask: [B, S], nonzero at real tokens; None: all are.
        special_token_ids: which count for nothing: [CLS], [SEP] and [MASK], that are never noise.

    Source: Clark et al. 2020, "Pre-Training Transformers as Energy-Based Cloze Models", on pseudo-log-likelihoods.
    """
    counted = ~torch.isin(input_ids, torch.tensor(special_token_ids, device=input_ids.device))
    if attention_mask is not None:
        counted = counted & (attention_mask != 0)
    was_training = discriminator.training
    discriminator.eval()
    try:
        energies = discriminator(input_ids, attention_mask=attention_mask).logits
    finally:
        discriminator.train(was_training)
    return -energies.masked_fill(~counted, 0.0).sum(dim=1)
