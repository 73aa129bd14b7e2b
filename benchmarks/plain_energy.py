"""The plain reference of the objectives `electric` and `adversarial`, beside that of ELECTRA in plain.py.

B sequences, S length, H hidden, E embedding, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain import HEAD_NAMES, Losses, PlainElectra, Tower, gumbel_sample, joint_name

TIED = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")


class PlainElectric(nn.Module):
    """Electric: a two-tower generator makes noise, and the discriminator learns each token's energy."""

    def __init__(self, generator_config: Any, discriminator_config: Any) -> None:
        super().__init__()
        self.discriminator = Tower(discriminator_config)
        self.discriminator_dense = nn.Linear(discriminator_config.hidden_size, discriminator_config.hidden_size)
        self.discriminator_prediction = nn.Linear(discriminator_config.hidden_size, 1)
        self.left_to_right = Tower(generator_config)
        self.right_to_left = Tower(generator_config)
        for tower in (self.left_to_right, self.right_to_left):
            for name in TIED:
                setattr(tower.embeddings, name, getattr(self.discriminator.embeddings, name))
        self.cloze_dense = nn.Linear(2 * generator_config.hidden_size, generator_config.embedding_size)
        self.cloze_norm = nn.LayerNorm(generator_config.embedding_size, eps=generator_config.layer_norm_eps)
        self.generator_bias = nn.Parameter(torch.zeros(generator_config.vocab_size))

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
        return F.linear(x, self.discriminator.embeddings.word_embeddings.weight, self.generator_bias)

    def energy(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """The energy [B, S] of each token in its context: low where it fits."""
        x = self.discriminator(input_ids, attention_mask, token_type_ids)
        return self.discriminator_prediction(F.gelu(self.discriminator_dense(x))).squeeze(-1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        is_noise: Tensor,
        is_predicted: Tensor,
        sampled_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        mask_prob: float = 0.15,
        generator_weight: float = 1.0,
        discriminator_weight: float = 50.0,
    ) -> Losses:
        """Both losses of one batch.

        input_ids, attention_mask (bool), is_noise (bool, whose tokens are replaced), is_predicted (bool, whom the
        generator learns from): [B, S]; `sampled_ids` [B, S] gives the noise (used where is_noise), None draws it.
        """
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        logits = self.cloze_logits(input_ids, attention_mask, token_type_ids).float()
        generator_loss = F.cross_entropy(logits[is_predicted], input_ids[is_predicted])

        if sampled_ids is None:
            sampled_ids = gumbel_sample(logits.detach())
        noisy_ids = torch.where(is_noise, sampled_ids, input_ids)
        # Noise that happens to be the true token is noise: noise-contrastive estimation asks where a token comes from.
        log_q = logits.detach().log_softmax(-1).gather(2, noisy_ids[:, :, None]).squeeze(2)
        energy = self.energy(noisy_ids, attention_mask, token_type_ids).float()
        # log (share of noise * q) - log (share of data * exp(-energy))
        posterior = math.log(mask_prob / (1 - mask_prob)) + log_q + energy
        discriminator_loss = F.binary_cross_entropy_with_logits(
            posterior[attention_mask], is_noise[attention_mask].float()
        )
        loss = generator_weight * generator_loss + discriminator_weight * discriminator_loss
        return Losses(loss, generator_loss, discriminator_loss)


class PlainAdversarial(PlainElectra):
    """ELECTRA whose generator learns by REINFORCE to make the discriminator fail."""

    def __init__(self, generator_config: Any, discriminator_config: Any, *, tie: bool = True) -> None:
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
    ) -> Losses:
        """As `PlainElectra.forward`; the generator's loss is still its cross-entropy, which is not trained."""
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        states = self.generator(masked_ids, attention_mask, token_type_ids)
        x = self.generator_norm(F.gelu(self.generator_dense(states)))
        logits = F.linear(x, self.generator.embeddings.word_embeddings.weight, self.generator_bias).float()
        generator_loss = F.cross_entropy(logits[is_masked], input_ids[is_masked]).detach()

        if sampled_ids is None:
            sampled_ids = gumbel_sample(logits.detach())
        corrupted_ids = torch.where(is_masked, sampled_ids, input_ids)
        is_replaced = (corrupted_ids != input_ids).float()
        scores = self.discriminator_logits(corrupted_ids, attention_mask, token_type_ids).float()
        losses = F.binary_cross_entropy_with_logits(scores, is_replaced, reduction="none")  # (B, S)
        discriminator_loss = losses[attention_mask].mean()

        reward = losses.detach()[is_masked]  # (M,)
        score = self.baseline(states.detach()).squeeze(-1)[is_masked].float()
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
            return joint_name(f"discriminator.{rest}")
        return joint_name(name).replace(f"{head}.electra", f"two_tower.{head}")
    if head in ("cloze_dense", "cloze_norm"):
        generator_head = HEAD_NAMES[head.replace("cloze", "generator")]
        return generator_head.replace("generator.generator_predictions", "two_tower.predictions") + f".{rest}"
    return name if head == "baseline" else joint_name(name)


def load_joint(plain: nn.Module, joint: nn.Module) -> nn.Module:
    """`plain`, one of the classes here, with the weights of an `ElectraForJointPreTraining`."""
    weights = joint.state_dict()
    plain.load_state_dict({name: weights[energy_name(name)] for name in plain.state_dict()})
    return plain.to(next(joint.parameters()))
