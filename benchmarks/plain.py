"""The plain reference: ELECTRA pretraining in one file of ordinary PyTorch, written to be read and to be right.

Both towers and every way to tie them, masking, sampling, each objective and the optimizer, on padded [B, S] tensors,
without any of electra_fast's code. The tests compare the library with it; the benchmarks measure against it.
B sequences, S length, H hidden, E embedding, V vocabulary.
Follows the ELECTRA paper and google-research/electra, except that masked positions are distinct.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embeddings(nn.Module):
    """Word + position + token type -> LayerNorm -> dropout."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.embedding_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.embedding_size)
        self.LayerNorm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        x = x + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(x))  # (B, S, E)


class Delta(nn.Module):
    """An embedding table that is another's, held fixed, plus a difference of its own: DeBERTaV3's GDES."""

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__()
        self.base = [base]  # in a list, so that it is no part of this module
        self.delta = nn.Parameter(torch.zeros_like(base.weight))
        self.padding_idx = base.padding_idx

    @property
    def weight(self) -> Tensor:
        return self.base[0].weight.detach() + self.delta

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight, self.padding_idx)


class Layer(nn.Module):
    """One post-norm transformer layer: attention and a feed-forward network, each with dropout, residual, LayerNorm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.attention_output = nn.Linear(config.hidden_size, config.hidden_size)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """`visible` [B, 1 or S, S] (bool): which keys each query sees."""
        B, S, H = x.shape

        def split(t: Tensor) -> Tensor:
            return t.view(B, S, self.heads, H // self.heads).transpose(1, 2)  # (B, heads, S, D)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = q @ k.transpose(2, 3) / math.sqrt(H // self.heads)  # (B, heads, S, S)
        scores = scores.masked_fill(~visible[:, None], float("-inf"))
        probabilities = F.dropout(scores.softmax(dim=-1), self.attention_dropout, self.training)
        context = (probabilities @ v).transpose(1, 2).reshape(B, S, H)
        x = self.attention_norm(x + self.dropout(self.attention_output(context)))
        return self.output_norm(x + self.dropout(self.output(F.gelu(self.intermediate(x)))))


class Tower(nn.Module):
    """Embeddings, a projection where their size is not the hidden one, and the layers."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        has_projection = config.embedding_size != config.hidden_size
        self.project = nn.Linear(config.embedding_size, config.hidden_size) if has_projection else nn.Identity()
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """`attention_mask` [B, S] (bool) says which tokens are real, or [B, S, S] which keys each query sees."""
        visible = attention_mask[:, None] if attention_mask.dim() == 2 else attention_mask
        x = self.project(self.embeddings(input_ids, token_type_ids))
        for layer in self.layers:
            x = layer(x, visible)
        return x  # (B, S, H)


class Losses(NamedTuple):
    loss: Tensor
    generator_loss: Tensor | None = None
    discriminator_loss: Tensor | None = None
    mlm_loss: Tensor | None = None


class PlainElectra(nn.Module):
    """Generator and discriminator, and with `mlm` the head of a masked language model on the discriminator's encoder.

    tie: "shared" ties the embeddings (word, position, token type, LayerNorm), "untied" nothing, "all" the encoders,
    "gdes" lets the discriminator's word and position embeddings be the generator's plus a difference.
    """

    def __init__(
        self, generator_config: Any, discriminator_config: Any, *, tie: str = "shared", mlm: bool = False
    ) -> None:
        super().__init__()
        self.discriminator = Tower(discriminator_config)
        self.discriminator_dense = nn.Linear(discriminator_config.hidden_size, discriminator_config.hidden_size)
        self.discriminator_prediction = nn.Linear(discriminator_config.hidden_size, 1)
        self.generator = self.discriminator if tie == "all" else Tower(generator_config)
        ours, theirs = self.generator.embeddings, self.discriminator.embeddings
        if tie == "shared":
            for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"):
                setattr(ours, name, getattr(theirs, name))
        elif tie == "gdes":
            theirs.word_embeddings = Delta(ours.word_embeddings)
            theirs.position_embeddings = Delta(ours.position_embeddings)
        self.generator_dense = nn.Linear(generator_config.hidden_size, generator_config.embedding_size)
        self.generator_norm = nn.LayerNorm(generator_config.embedding_size, eps=generator_config.layer_norm_eps)
        self.generator_bias = nn.Parameter(torch.zeros(generator_config.vocab_size))
        if mlm:
            config = discriminator_config
            self.mlm_dense = nn.Linear(config.hidden_size, config.embedding_size)
            self.mlm_norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
            self.mlm_bias = nn.Parameter(torch.zeros(config.vocab_size))

    def generator_logits(self, masked_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Logits [B, S, V], at every position: plain means without the trick of projecting masked ones only."""
        x = self.generator(masked_ids, attention_mask, token_type_ids)
        x = self.generator_norm(F.gelu(self.generator_dense(x)))
        return F.linear(x, self.generator.embeddings.word_embeddings.weight, self.generator_bias)

    def discriminator_logits(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Logits [B, S] of having been replaced."""
        x = self.discriminator(input_ids, attention_mask, token_type_ids)
        return self.discriminator_prediction(F.gelu(self.discriminator_dense(x))).squeeze(-1)

    def mlm_logits(self, masked_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """As `generator_logits`, by the discriminator's encoder."""
        x = self.discriminator(masked_ids, attention_mask, token_type_ids)
        x = self.mlm_norm(F.gelu(self.mlm_dense(x)))
        return F.linear(x, self.discriminator.embeddings.word_embeddings.weight, self.mlm_bias)

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
        objective: str = "joint",
    ) -> Losses:
        """The losses of one batch, of the "joint" model, its "generator", its "discriminator", or "mlm".

        input_ids, attention_mask (bool), is_masked (bool), masked_ids: [B, S]; `sampled_ids` [B, S] gives the
        generator's samples (used where is_masked), None draws them.
        """
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        labels = input_ids[is_masked]
        if objective == "mlm":
            logits = self.mlm_logits(masked_ids, attention_mask, token_type_ids)
            mlm_loss = F.cross_entropy(full(logits[is_masked]), labels)
            return Losses(generator_weight * mlm_loss, mlm_loss=mlm_loss)

        generator_loss = None
        if objective != "discriminator":
            logits = self.generator_logits(masked_ids, attention_mask, token_type_ids)
            generator_loss = F.cross_entropy(full(logits[is_masked]), labels)
        elif sampled_ids is None:  # the generator only corrupts
            with torch.no_grad():
                self.generator.eval()
                logits = self.generator_logits(masked_ids, attention_mask, token_type_ids)
                self.generator.train(self.training)
        if objective == "generator":
            return Losses(generator_weight * generator_loss, generator_loss)

        if sampled_ids is None:
            sampled_ids = gumbel_sample(full(logits.detach()))
        corrupted_ids = torch.where(is_masked, sampled_ids, input_ids)
        # A sample that happens to be the true token counts as original.
        is_replaced = corrupted_ids != input_ids
        scores = self.discriminator_logits(corrupted_ids, attention_mask, token_type_ids)
        scores = full(scores[attention_mask])
        discriminator_loss = F.binary_cross_entropy_with_logits(scores, is_replaced[attention_mask].to(scores))
        loss = discriminator_weight * discriminator_loss
        if objective == "joint":
            loss = generator_weight * generator_loss + loss
        return Losses(loss, generator_loss, discriminator_loss)


def full(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def gumbel_sample(logits: Tensor) -> Tensor:
    """One token id a row of logits [..., V], drawn from their softmax."""
    uniform = torch.rand_like(logits).clamp_(min=torch.finfo(logits.dtype).tiny)
    return (logits - torch.log(-torch.log(uniform))).argmax(dim=-1)


def choose_masks(
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    mask_token_id: int,
    never_mask_ids: tuple[int, ...],
    mask_prob: float = 0.15,
    replace_prob: float = 0.85,
) -> tuple[Tensor, Tensor]:
    """Choose tokens to predict and hide most of them: (is_masked [B, S] bool, masked_ids [B, S])."""
    most = int((mask_prob + 0.005) * input_ids.shape[1])
    k = (attention_mask.sum(1) * mask_prob).round().clamp(max=most).clamp(min=1)  # (B,)
    is_candidate = attention_mask & ~torch.isin(input_ids, torch.tensor(never_mask_ids, device=input_ids.device))
    keys = torch.rand(input_ids.shape, device=input_ids.device).masked_fill(~is_candidate, 2.0)
    rank = keys.argsort(dim=1).argsort(dim=1)
    is_masked = (rank < k[:, None]) & is_candidate
    hide = is_masked & (torch.rand(input_ids.shape, device=input_ids.device) < replace_prob)
    return is_masked, torch.where(hide, mask_token_id, input_ids)


class Adam:
    """Adam as the original has it: no bias correction, eps outside the root, weight decay of all but biases and
    LayerNorm beside the step. A parameter without gradient stays as it is."""

    def __init__(
        self,
        model: nn.Module,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.parameters = list(model.parameters())
        decayed = [not ("norm" in name.lower() or name.endswith("bias")) for name, _ in model.named_parameters()]
        self.weight_decay = [weight_decay * is_decayed for is_decayed in decayed]
        self.m = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.v = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for parameter, m, v, decay in zip(self.parameters, self.m, self.v, self.weight_decay, strict=True):
            if parameter.grad is not None:
                m.mul_(self.beta1).add_(parameter.grad, alpha=1 - self.beta1)
                v.mul_(self.beta2).add_(parameter.grad**2, alpha=1 - self.beta2)
                parameter.sub_(lr * (m / (v.sqrt() + self.eps) + decay * parameter))


def learning_rate(step: int, *, peak: float, steps: int, warmup: int) -> float:
    """The original's: linear decay from the start, times linear warm-up."""
    return peak * (1 - step / steps) * min(1.0, step / warmup)


LAYER_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}
HEAD_NAMES = {
    "discriminator_dense": "discriminator.discriminator_predictions.dense",
    "discriminator_prediction": "discriminator.discriminator_predictions.dense_prediction",
    "generator_dense": "generator.generator_predictions.dense",
    "generator_norm": "generator.generator_predictions.LayerNorm",
    "generator_bias": "generator.generator_lm_head.bias",
    "mlm_dense": "mlm_head.dense",
    "mlm_norm": "mlm_head.LayerNorm",
    "mlm_bias": "mlm_head.bias",
}


def joint_name(name: str) -> str:
    """The name in `ElectraForJointPreTraining`, where the towers are transformers' classes, of a parameter here."""
    head, _, rest = name.partition(".")
    if head in HEAD_NAMES:
        return f"{HEAD_NAMES[head]}.{rest}".removesuffix(".")
    part, _, rest = rest.partition(".")
    if part == "layers":
        index, layer_part, kind = rest.split(".")
        return f"{head}.electra.encoder.layer.{index}.{LAYER_NAMES[layer_part]}.{kind}"
    return f"{head}.electra.{part.replace('project', 'embeddings_project')}.{rest}"


def from_joint(joint: nn.Module) -> PlainElectra:
    """A plain model with the weights of an `ElectraForJointPreTraining`, in their dtype."""
    plain = PlainElectra(
        joint.generator.config, joint.discriminator.config, tie=joint.tie, mlm=joint.mlm_head is not None
    )
    weights = joint.state_dict()
    plain.load_state_dict({name: weights[joint_name(name)] for name in plain.state_dict()})
    return plain.to(next(joint.parameters()))
