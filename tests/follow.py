"""Training beside benchmarks/plain.py: the same weights, masks and samples, each with its own steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import plain
from electra_fast import ElectraForJointPreTraining
from electra_fast.data.loader import Batch, BatchLoader
from electra_fast.data.prose import paragraphs
from electra_fast.ops.random import masking_seed, step_seed
from electra_fast.pretraining.config import OptimizerConfig
from electra_fast.pretraining.optimizer import build_optimizer, learning_rate

LOSSES = ("loss", "generator_loss", "discriminator_loss", "mlm_loss")


class Step(NamedTuple):
    """The losses of one step, those that its objective has, before its update."""

    ours: dict[str, float]
    plain: dict[str, float]

    def deviation(self) -> float:
        """The largest |ours - plain| / |plain|."""
        return max(abs(self.ours[name] / value - 1) for name, value in self.plain.items())


def write_text(path: Path) -> Path:
    """Real English that every Python brings, half a megabyte: its language reference, a document a topic."""
    documents = ("\n".join(" ".join(p) for p in paragraphs(topics[name])) for name in sorted(topics))
    path.write_text("\n\n".join(document for document in documents if document) + "\n", encoding="utf-8")
    return path


def follow(
    model: ElectraForJointPreTraining,
    loader: BatchLoader,
    config: OptimizerConfig,
    steps: int,
    *,
    seed: int,
    objective: Callable[[int], str] = lambda step: "joint",
    reference: plain.PlainElectra | None = None,
) -> Iterator[Step]:
    """Train `model` as the loop of pretraining does, and beside it the plain model with the plain optimizer.

    `objective` names that of each step. `reference` is the plain model, with weights of whatever dtype; None makes one
    of the model's weights.
    """
    reference = plain.from_joint(model) if reference is None else reference
    optimizer = build_optimizer(model, config)
    adam = plain.Adam(
        reference, beta1=config.beta1, beta2=config.beta2, eps=config.eps, weight_decay=config.weight_decay
    )
    for step in range(steps):
        batch = loader.batch(step)
        out = model(
            batch.input_ids,
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
            sequence_ids=batch.sequence_ids,
            seed=step_seed(seed, step),
            mask_seed=masking_seed(seed, batch.epoch),
            objective=objective(step),
        )
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = learning_rate(step, steps, config)
        optimizer.zero_grad()
        _clipped_gradients(model, out.loss, config)
        optimizer.step()

        losses = reference(**plain_inputs(batch, out), objective=objective(step))
        reference.zero_grad()
        _clipped_gradients(reference, losses.loss, config)
        adam.step(plain.learning_rate(step, peak=config.lr, steps=steps, warmup=config.warmup_steps))
        yield Step(_values(out), _values(losses))


def _clipped_gradients(model: nn.Module, loss: Tensor, config: OptimizerConfig) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)


def _values(output: NamedTuple) -> dict[str, float]:
    values = {name: getattr(output, name) for name in LOSSES}
    return {name: float(value.detach()) for name, value in values.items() if value is not None}


def plain_inputs(batch: Batch, out: NamedTuple) -> dict[str, Tensor]:
    """A packed batch with the masks and samples of its forward, padded."""
    mask = torch.arange(int(batch.cu_seqlens.diff().max())) < batch.cu_seqlens.diff()[:, None]  # [B, S]
    flat, used = batch.input_ids, out.masked.weights > 0
    positions = out.masked.positions[used]

    def padded(tokens: Tensor) -> Tensor:
        return torch.zeros_like(mask, dtype=tokens.dtype).masked_scatter(mask, tokens)

    return {
        "input_ids": padded(flat),
        "attention_mask": mask,
        "is_masked": padded(torch.zeros_like(flat, dtype=torch.bool).index_fill(0, positions, True)),
        "masked_ids": padded(out.masked.input_ids[: len(flat)]),
        "sampled_ids": padded(flat.index_put((positions,), out.sampled_ids[used])),
    }
