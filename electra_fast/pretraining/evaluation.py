"""Held-out metrics with fixed corruptions: the same text, masks and random numbers at every evaluation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from electra_fast.data.corpus import Corpus
from electra_fast.data.loader import BatchLoader
from electra_fast.models import ElectraForJointPreTraining
from electra_fast.ops import corrupt_tokens
from electra_fast.ops.random import masking_seed, step_seed
from electra_fast.pretraining.config import PretrainConfig

EVALUATION_SEED = 20200323  # the same for every run, so that runs compare
UNIGRAM_TOKENS = 20_000_000


def unigram_log_probabilities(corpus: Corpus, vocab_size: int) -> Tensor:
    """float32 [V]: add-one-smoothed log frequencies of the corpus's first 20 million tokens."""
    counts = np.ones(vocab_size, dtype=np.float64)
    stop = min(corpus.num_tokens, UNIGRAM_TOKENS)
    for start in range(0, stop, 2**20):
        counts += np.bincount(corpus.read(start, min(start + 2**20, stop)), minlength=vocab_size)
    return torch.from_numpy(np.log(counts / counts.sum())).float()


def exact_auc(scores: Tensor, is_positive: Tensor) -> float:
    """Area under the ROC curve: the probability that a positive outscores a negative, ties counting one half."""
    scores, is_positive = scores.double().cpu().numpy(), is_positive.cpu().numpy()
    values, inverse = np.unique(scores, return_inverse=True)
    positives = np.bincount(inverse[is_positive], minlength=len(values))
    negatives = np.bincount(inverse[~is_positive], minlength=len(values))
    below = np.cumsum(negatives) - negatives
    pairs = positives.sum() * negatives.sum()
    return float((positives * (below + 0.5 * negatives)).sum() / pairs) if pairs else float("nan")


class HeldOut:
    """The held-out corpus: its first whole batches, or what there is of one."""

    def __init__(self, config: PretrainConfig, train: Corpus, valid: Corpus, device: torch.device) -> None:
        data = config.data
        self.loader = BatchLoader(valid, batch_size=data.batch_size, max_length=data.max_length, shuffle=False)
        self.batches = max(1, min(config.training.eval_batches, int(self.loader.steps_per_epoch)))
        self.unigram = unigram_log_probabilities(train, train.meta.vocab_size)
        self.device = device

    def evaluate(self, model: ElectraForJointPreTraining, objective: str = "joint") -> dict[str, float]:
        return evaluate(model, self.loader, self.unigram, batches=self.batches, device=self.device, objective=objective)


@torch.no_grad()
def evaluate(
    model: ElectraForJointPreTraining,
    loader: BatchLoader,
    unigram: Tensor,
    *,
    batches: int,
    device: torch.device,
    objective: str = "joint",
) -> dict[str, float]:
    """Metrics of what `objective` trains on the first `batches` batches of `loader`, with dropout off.

    Args:
        unigram: float32 [V], log frequencies of the training text's tokens.
        objective: of a phase. For "generator" the discriminator does not run; "mlm" and "electric" have the losses that
            the model itself computes; all others have the metrics of both towers.

    Returns:
        loss: what training minimises, the weighted sum. Of the generator: generator_loss, unigram_loss (nats per masked
        token: the generator's, and the cross-entropy of the same tokens under `unigram`), generator_accuracy (argmax),
        sampled_accuracy. Of the discriminator: discriminator_loss (nats per token), accuracy, precision, recall, auc
        (of the generator's corruptions, over all real tokens as in the original), maskable_auc (the same without [CLS]
        and [SEP], which are never replaced) and unigram_auc (the same positions filled from the token frequencies).
    """
    was_training = model.training
    model.eval()
    try:
        if objective in ("mlm", "electric"):
            return _losses(model, loader, batches=batches, device=device, objective=objective)
        return _metrics_of_towers(
            model, loader, unigram, batches=batches, device=device, judges=objective != "generator"
        )
    finally:
        model.train(was_training)


def _losses(
    model: ElectraForJointPreTraining, loader: BatchLoader, *, batches: int, device: torch.device, objective: str
) -> dict[str, float]:
    """Means of the losses that the model computes, each batch counting by its tokens."""
    sums: dict[str, float] = {}
    tokens = 0
    for i in range(batches):
        batch = loader.batch(i).to(device)
        out = model(
            batch.input_ids,
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
            sequence_ids=batch.sequence_ids,
            seed=step_seed(EVALUATION_SEED, i),
            mask_seed=masking_seed(EVALUATION_SEED, batch.epoch),
            objective=objective,
        )
        count = batch.input_ids.shape[0]
        tokens += count
        for name, value in out.items():
            if name.endswith("loss"):
                sums[name] = sums.get(name, 0.0) + count * float(value)
    return {name: value / tokens for name, value in sums.items()}


def _metrics_of_towers(
    model: ElectraForJointPreTraining,
    loader: BatchLoader,
    unigram: Tensor,
    *,
    batches: int,
    device: torch.device,
    judges: bool,
) -> dict[str, float]:
    unigram = unigram.to(device)
    sums = dict.fromkeys(("masked", "generator", "unigram", "argmax", "sampled"), 0.0)
    parts: dict[str, list[Tensor]] = {
        name: []
        for name in (
            "logits",
            "replaced",
            "is_maskable",
            "unigram_logits",
            "unigram_replaced",
        )
    }
    never_masked = torch.tensor(model.never_mask_ids, device=device)
    draw = torch.Generator().manual_seed(EVALUATION_SEED)
    for i in range(batches):
        batch = loader.batch(i).to(device)
        packing = model.packing(batch.input_ids, None, batch.cu_seqlens, batch.max_seqlen)
        corruption = model.corrupt(
            batch.input_ids,
            packing,
            sequence_ids=batch.sequence_ids,
            seed=step_seed(EVALUATION_SEED, i),
            mask_seed=masking_seed(EVALUATION_SEED, batch.epoch),
            with_argmax=True,
        )
        masked, used = corruption.masked, corruption.masked.weights > 0
        sums["masked"] += int(used.sum())
        sums["generator"] += float(corruption.nll[used].double().sum())
        sums["unigram"] -= float(unigram[masked.labels[used]].double().sum())
        sums["argmax"] += int((corruption.argmax_ids == masked.labels)[used].sum())
        sums["sampled"] += int((corruption.sampled_ids == masked.labels)[used].sum())
        if not judges:
            continue
        parts["logits"].append(model.discriminate(corruption.corrupted_ids, packing))
        parts["replaced"].append(corruption.is_replaced)
        parts["is_maskable"].append(~torch.isin(batch.input_ids, never_masked))

        drawn = torch.multinomial(unigram.exp().cpu(), len(masked.labels), replacement=True, generator=draw).to(device)
        drawn = torch.where(used, drawn, masked.labels)
        corrupted_ids, is_replaced = corrupt_tokens(batch.input_ids, masked.positions, drawn, masked.weights)
        parts["unigram_logits"].append(model.discriminate(corrupted_ids, packing))
        parts["unigram_replaced"].append(is_replaced)
    count = max(sums["masked"], 1)
    metrics = {
        "loss": model.generator_weight * sums["generator"] / count,
        "generator_loss": sums["generator"] / count,
        "unigram_loss": sums["unigram"] / count,
        "generator_accuracy": sums["argmax"] / count,
        "sampled_accuracy": sums["sampled"] / count,
    }
    if not judges:
        return metrics

    joined = {name: torch.cat(tensors) for name, tensors in parts.items()}
    logits, replaced = joined["logits"].double(), joined["replaced"]
    predicted = logits > 0
    hits = int((predicted & replaced).sum())
    loss = float(torch.nn.functional.binary_cross_entropy_with_logits(logits, replaced.double()))
    metrics["loss"] += model.discriminator_weight * loss
    return metrics | {
        "discriminator_loss": loss,
        "accuracy": float((predicted == replaced).double().mean()),
        "precision": hits / max(int(predicted.sum()), 1),
        "recall": hits / max(int(replaced.sum()), 1),
        "auc": exact_auc(logits, replaced),
        "maskable_auc": exact_auc(logits[joined["is_maskable"]], replaced[joined["is_maskable"]]),
        "unigram_auc": exact_auc(joined["unigram_logits"], joined["unigram_replaced"]),
    }
