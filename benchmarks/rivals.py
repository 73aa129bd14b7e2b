"""What the pretraining step is compared with: plain PyTorch, transformers' classes, and either compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from benchmarks.plain import Losses, PlainElectra, choose_masks, from_joint, full, gumbel_sample
from electra_fast import ElectraConfig, ElectraForJointPreTraining
from electra_fast.pretraining.precision import MasterWeights

CLS, SEP, MASK = 101, 102, 103
Step = Callable[[Tensor], Tensor]


def masked_of(length: int) -> int:
    """How many tokens of a sequence are masked."""
    return int((0.15 + 0.005) * length)


def small_configs(dropout: float = 0.1) -> list[ElectraConfig]:
    """Generator and discriminator of ELECTRA-small."""
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return [
        ElectraConfig(hidden_size=64, num_attention_heads=1, intermediate_size=256, **rates),
        ElectraConfig(hidden_size=256, num_attention_heads=4, intermediate_size=1024, **rates),
    ]


def base_configs(dropout: float = 0.1) -> list[ElectraConfig]:
    """Generator and discriminator of ELECTRA-base."""
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "embedding_size": 768}
    return [
        ElectraConfig(hidden_size=256, num_attention_heads=4, intermediate_size=1024, **rates),
        ElectraConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072, **rates),
    ]


CONFIGS = {"small": small_configs, "base": base_configs}


class StrongElectra(PlainElectra):
    """Plain, but the generator's head sees the masked positions only."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *, is_masked: Tensor, masked_ids: Tensor) -> Losses:
        token_type_ids = torch.zeros_like(input_ids)
        x = self.generator(masked_ids, attention_mask, token_type_ids)
        columns = is_masked.int().topk(masked_of(input_ids.shape[1]), dim=1).indices  # [B, M / B]
        x = x.gather(1, columns.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        x = self.generator_norm(F.gelu(self.generator_dense(x)))
        logits = F.linear(x, self.generator.embeddings.word_embeddings.weight, self.generator_bias)
        generator_loss = F.cross_entropy(logits.flatten(0, 1).float(), input_ids.gather(1, columns).flatten())
        corrupted_ids = input_ids.scatter(1, columns, gumbel_sample(logits.detach().float()))
        is_replaced = (corrupted_ids != input_ids).float()
        scores = self.discriminator_logits(corrupted_ids, attention_mask, token_type_ids)
        discriminator_loss = F.binary_cross_entropy_with_logits(scores.float(), is_replaced)
        return Losses(generator_loss + 50 * discriminator_loss, generator_loss, discriminator_loss)


class StockElectra(nn.Module):
    """transformers' own two classes with shared embeddings, as users put them together; attention by SDPA."""

    def __init__(self, configs: list[ElectraConfig]) -> None:
        super().__init__()
        generator, discriminator = configs
        self.discriminator = transformers.ElectraForPreTraining(discriminator)
        self.generator = transformers.ElectraForMaskedLM(generator)
        self.generator.electra.embeddings = self.discriminator.electra.embeddings
        self.generator.generator_lm_head.weight = self.discriminator.electra.embeddings.word_embeddings.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *, is_masked: Tensor, masked_ids: Tensor) -> Losses:
        labels = input_ids.masked_fill(~is_masked, -100)
        generated = self.generator(masked_ids, attention_mask=attention_mask, labels=labels)
        sampled_ids = gumbel_sample(full(generated.logits.detach()))
        corrupted_ids = torch.where(is_masked, sampled_ids, input_ids)
        is_replaced = (corrupted_ids != input_ids).long()
        found = self.discriminator(corrupted_ids, attention_mask=attention_mask, labels=is_replaced)
        return Losses(generated.loss + 50 * found.loss, generated.loss, found.loss)


def train_step(model: nn.Module, loss_of: Callable[[Tensor], Tensor], input_ids: Tensor) -> Tensor:
    """Gradients are fresh each time, as after `optimizer.zero_grad()`."""
    for parameter in model.parameters():
        parameter.grad = None
    loss = loss_of(input_ids)
    loss.backward()
    return loss.detach()


def masked_loss(forward: Callable[..., Losses], input_ids: Tensor) -> Tensor:
    """Of a model that is told what is masked."""
    attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
    never = (CLS, SEP, MASK)
    is_masked, masked_ids = choose_masks(input_ids, attention_mask, mask_token_id=MASK, never_mask_ids=never)
    return forward(input_ids, attention_mask, is_masked=is_masked, masked_ids=masked_ids).loss


class Contestant(NamedTuple):
    """A model, and its step: token ids [B, S] -> loss after forward and backward, with fresh gradients."""

    model: nn.Module
    step: Step


class Contestants:
    """Makes what takes part in a pretraining step, all with the same sizes; plain and strong with ours' weights too.

    Args:
        size: "small" or "base".
        device: "cpu" or "cuda".
        dtype: of the weights; in bfloat16 ours is as `electra-fast pretrain` has it, with LayerNorm in float32.
        compiled: compile by inductor; for a quick look not at all.
    """

    NAMES = ("ours", "plain", "strong", "stock", "stock compiled")

    def __init__(self, size: str, device: str, dtype: torch.dtype = torch.float32, *, compiled: bool = True) -> None:
        torch.compiler.reset()  # what was compiled for other models counts towards the limit of recompilations
        self._configs, self._device, self._dtype = CONFIGS[size](), device, dtype
        self._compile = partial(torch.compile, backend="inductor" if compiled else "eager", dynamic=False)
        self._joint = ElectraForJointPreTraining(*self._configs).to(device).train()
        self._plain = from_joint(self._joint).to(dtype).train()
        MasterWeights(self._joint, dtype)  # rounds the model's own

    def __getitem__(self, name: str) -> Contestant:
        if name == "ours":
            return Contestant(self._joint, partial(train_step, self._joint, lambda ids: self._joint(ids).loss))
        if name == "plain":
            model: nn.Module = self._plain
        elif name == "strong":
            model = StrongElectra(*self._configs)
            model.load_state_dict(self._plain.state_dict())
        else:
            model = StockElectra(self._configs)
        model = model.to(self._device, self._dtype).train()
        forward = self._compile(model) if name in ("strong", "stock compiled") else model
        return Contestant(model, partial(train_step, model, partial(masked_loss, forward)))
