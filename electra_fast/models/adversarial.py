"""The generator trained to fool the discriminator, by REINFORCE with a learned baseline: the paper's ablation.

The reward R of a sampled token is the discriminator's loss there. The generator follows grad log p(sample) * (R - b),
where the baseline b = -log sigmoid(w . h) is read off its encoder's state h at the token.
Source: ELECTRA paper, appendix "Adversarial Training": reward, baseline, and the assumption that a token's reward
depends on no other sample. Not said there, and so ours: the baseline's cross-entropy has the target exp(-R), the
probability that the discriminator gave to the right answer; it trains w alone; losses are means over masked tokens.
M masked tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from electra_fast.models.cloze import log_probabilities
from electra_fast.models.objectives import FlatInputs, JointPreTrainingOutput, corrupt, detect

if TYPE_CHECKING:
    from electra_fast.models.joint import ElectraForJointPreTraining


class Reinforce(NamedTuple):
    """Sums over the masked tokens."""

    policy_loss: Tensor  # its gradient is REINFORCE's; its value means nothing
    baseline_loss: Tensor  # nats
    reward: Tensor  # nats, no gradient


def reinforce(
    log_p: Tensor, detector_logits: Tensor, is_replaced: Tensor, baseline_logits: Tensor, weights: Tensor
) -> Reinforce:
    """The sums for M sampled tokens.

    Args:
        log_p: [M], the generator's log-probability of each sample.
        detector_logits: [M], the discriminator's there; no gradient flows to them. is_replaced: bool [M].
        baseline_logits: [M], w . h. weights: [M], 0 for unused slots.
    """
    replaced = is_replaced.to(log_p.dtype)
    reward = F.binary_cross_entropy_with_logits(detector_logits.detach().to(log_p.dtype), replaced, reduction="none")
    baseline_logits = baseline_logits.to(log_p.dtype)
    advantage = reward - F.softplus(-baseline_logits.detach())
    right = (-reward).exp()
    baseline = F.binary_cross_entropy_with_logits(baseline_logits, right, reduction="none")
    used = weights > 0  # an unused slot may hold anything, and 0 * inf is no 0
    return Reinforce(*((weights * x.where(used, 0)).sum() for x in (-advantage * log_p, baseline, reward)))


def adversarial(model: ElectraForJointPreTraining, inputs: FlatInputs) -> JointPreTrainingOutput:
    """The generator by REINFORCE, its baseline, and the discriminator as always.

    `generator_loss` is the masked language modelling loss, which is measured and not trained.
    """
    baseline = model.made_for("adversarial", model.baseline)
    corruption = corrupt(model, inputs)
    detection = detect(model, inputs, corruption)
    masked = corruption.masked
    log_p = log_probabilities(
        model.generator.generator_lm_head, corruption.hidden, masked.labels, corruption.nll, corruption.sampled_ids
    )
    sums = reinforce(
        log_p,
        detection.logits[masked.positions],
        corruption.is_replaced[masked.positions],
        baseline(corruption.states.detach()).squeeze(-1),
        masked.weights,
    )
    count = masked.weights.sum().clamp(min=1) if inputs.masked_count is None else inputs.masked_count
    policy_loss, baseline_loss, reward = (total / count for total in sums)
    return JointPreTrainingOutput(
        loss=model.generator_weight * policy_loss + baseline_loss + model.discriminator_weight * detection.loss,
        generator_loss=(corruption.loss_sum / count).detach(),
        discriminator_loss=detection.loss.detach(),
        masked=masked,
        sampled_ids=corruption.sampled_ids,
        corrupted_ids=corruption.corrupted_ids,
        rtd=detection.rtd,
        policy_loss=policy_loss.detach(),
        baseline_loss=baseline_loss.detach(),
        reward=reward,
    )
