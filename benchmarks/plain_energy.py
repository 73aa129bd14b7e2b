"""The plain reference of the objectives `electric` and `adversarial`, which need more than plain.py has.

Ordinary PyTorch on padded [B, S] tensors. B sequences, S length, H hidden, E embedding, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain import Losses, PlainElectra, Tower, full, gumbel_sample, joint_name


class PlainElectric(PlainElectra):
    """ELECTRA that also has Electric's two-tower generator."""

    def __init__(
        self,
        generator_config: Any,
        discriminator_config: Any,
        *,
        tie: str = "shared",
        never_mask_ids: tuple[int, ...] = (101, 102, 103),
        mask_prob: float = 0.15,
    ) -> None:
        super().__init__(generator_config, discriminator_config, tie=tie)
        self.never_mask_ids, self.mask_prob = never_mask_ids, mask_prob
        self.left_to_right, self.right_to_left = Tower(generator_config), Tower(generator_config)
        self.left_to_right.embeddings = self.right_to_left.embeddings = self.generator.embeddings
        self.cloze_dense = nn.Linear(2 * generator_config.hidden_size, generator_config.embedding_size)
        self.cloze_norm = nn.LayerNorm(generator_config.embedding_size, eps=generator_config.layer_norm_eps)

    def cloze_logits(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Logits [B, S, V] of each token, from the tokens before it and the tokens after it."""
        S = input_ids.shape[1]
        triangle = torch.ones(S, S, dtype=torch.bool, device=input_ids.device).tril()  # (query, key)
        # Padding sees itself, since a softmax of nothing is NaN.
        itself = torch.eye(S, dtype=torch.bool, device=input_ids.device)
        before = self.left_to_right(input_ids, attention_mask[:, None] & triangle | itself, token_type_ids)
        after = self.right_to_left(input_ids, attention_mask[:, None] & triangle.t() | itself, token_type_ids)
        after = after.masked_fill(~attention_mask[:, :, None], 0.0)  # there is nothing after the last token
        before = F.pad(before, (0, 0, 1, 0))[:, :-1]  # at t the state of t - 1
        after = F.pad(after, (0, 0, 0, 1))[:, 1:]  # and that of t + 1
        x = self.cloze_norm(F.gelu(self.cloze_dense(torch.cat([before, after], dim=-1))))
        return F.linear(x, self.generator.embeddings.word_embeddings.weight, self.generator_bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        is_masked: Tensor,
        masked_ids: Tensor,
        sampled_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        generator_weight: float = 1.0,
        discriminator_weight: float = 50.0,
        objective: str = "electric",
    ) -> Losses:
        """As `PlainElectra.forward`; "electric" puts noise where `is_masked`, and nobody reads `masked_ids`."""
        if objective != "electric":
            masks = {"is_masked": is_masked, "masked_ids": masked_ids, "sampled_ids": sampled_ids}
            return super().forward(input_ids, attention_mask, **masks, objective=objective)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        logits = full(self.cloze_logits(input_ids, attention_mask, token_type_ids))
        never_masked = torch.tensor(self.never_mask_ids, device=input_ids.device)
        is_predicted = attention_mask & ~torch.isin(input_ids, never_masked)
        generator_loss = F.cross_entropy(logits[is_predicted], input_ids[is_predicted])

        if sampled_ids is None:
            sampled_ids = gumbel_sample(logits.detach())
        noisy_ids = torch.where(is_masked, sampled_ids, input_ids)
        log_q = logits.detach().log_softmax(-1).gather(2, noisy_ids[:, :, None]).squeeze(2)
        energy = full(self.discriminator_logits(noisy_ids, attention_mask, token_type_ids))
        # log (share of noise * q) - log (share of data * exp(-energy)). Noise that happens to be the true token is
        # noise: noise-contrastive estimation asks where a token comes from.
        log_odds = math.log(self.mask_prob / (1 - self.mask_prob)) + log_q + energy
        discriminator_loss = F.binary_cross_entropy_with_logits(
            log_odds[attention_mask], is_masked[attention_mask].to(log_odds)
        )
        loss = generator_weight * generator_loss + discriminator_weight * discriminator_loss
        return Losses(loss, generator_loss, discriminator_loss)


class PlainAdversarial(PlainElectra):
    """ELECTRA whose generator can also learn by REINFORCE to make the discriminator fail."""

    def __init__(self, generator_config: Any, discriminator_config: Any, *, tie: str = "shared") -> None:
        super().__init__(generator_config, discriminator_config, tie=tie)
        self.baseline = nn.Linear(generator_config.hidden_size, 1, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        is_masked: Tensor,
        masked_ids: Tensor,
        sampled_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        generator_weight: float = 1.0,
        discriminator_weight: float = 50.0,
        objective: str = "adversarial",
    ) -> Losses:
        """As `PlainElectra.forward`; "adversarial" measures the generator's cross-entropy and does not train it."""
        if objective != "adversarial":
            masks = {"is_masked": is_masked, "masked_ids": masked_ids, "sampled_ids": sampled_ids}
            return super().forward(input_ids, attention_mask, **masks, objective=objective)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        states = self.generator(masked_ids, attention_mask, token_type_ids)
        x = self.generator_norm(F.gelu(self.generator_dense(states)))
        logits = full(F.linear(x, self.generator.embeddings.word_embeddings.weight, self.generator_bias))
        generator_loss = F.cross_entropy(logits[is_masked], input_ids[is_masked]).detach()

        if sampled_ids is None:
            sampled_ids = gumbel_sample(logits.detach())
        corrupted_ids = torch.where(is_masked, sampled_ids, input_ids)
        scores = full(self.discriminator_logits(corrupted_ids, attention_mask, token_type_ids))
        losses = F.binary_cross_entropy_with_logits(scores, (corrupted_ids != input_ids).to(scores), reduction="none")
        discriminator_loss = losses[attention_mask].mean()

        reward = losses.detach()[is_masked]  # (M,): the discriminator's loss of each sample
        score = full(self.baseline(states.detach()).squeeze(-1)[is_masked])
        baseline = -F.logsigmoid(score).detach()
        log_p = logits[is_masked].log_softmax(-1).gather(1, sampled_ids[is_masked][:, None]).squeeze(1)
        policy_loss = -((reward - baseline) * log_p).mean()
        baseline_loss = F.binary_cross_entropy_with_logits(score, torch.exp(-reward))
        loss = generator_weight * policy_loss + baseline_loss + discriminator_weight * discriminator_loss
        return Losses(loss, generator_loss, discriminator_loss)


def energy_name(name: str) -> str:
    """The name in `ElectraForJointPreTraining` of a parameter of the classes here."""
    head, _, rest = name.partition(".")
    if head in ("left_to_right", "right_to_left"):
        if rest.startswith("embeddings."):
            return joint_name(f"generator.{rest}")
        return joint_name(name).replace(f"{head}.electra", f"two_tower.{head}")
    names = {"cloze_dense": "two_tower.predictions.dense", "cloze_norm": "two_tower.predictions.LayerNorm"}
    if head in names:
        return f"{names[head]}.{rest}"
    return name if head == "baseline" else joint_name(name)


def from_joint(joint: nn.Module) -> PlainElectric | PlainAdversarial:
    """A plain model with the weights of an `ElectraForJointPreTraining` made for one of the two, in their dtype."""
    configs = joint.generator.config, joint.discriminator.config
    if joint.two_tower is not None:
        settings = {"never_mask_ids": joint.never_mask_ids, "mask_prob": joint.mask_prob}
        plain = PlainElectric(*configs, tie=joint.tie, **settings)
    else:
        plain = PlainAdversarial(*configs, tie=joint.tie)
    weights = joint.state_dict()
    plain.load_state_dict({name: weights[energy_name(name)] for name in plain.state_dict()})
    return plain.to(next(joint.parameters()))
