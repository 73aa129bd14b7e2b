"""Held-out metrics with fixed corruptions: the same text, masks and random numbers at every evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from electra_fast.data.corpus import Corpus
from electra_fast.data.loader import Batch, BatchLoader, CurriculumLoader
from electra_fast.models import ElectraForJointPreTraining
from electra_fast.ops import corrupt_tokens
from electra_fast.ops.random import masking_seed, step_seed
from electra_fast.ops.rtd_bce import auc
from electra_fast.pretraining.accumulation import count_predicted, model_inputs
from electra_fast.pretraining.config import PretrainConfig

Loader = BatchLoader | CurriculumLoader

EVALUATION_SEED = 20200323  # the same for every run, so that runs compare
UNIGRAM_TOKENS = 20_000_000


def unigram_log_probabilities(corpora: Sequence[Corpus], vocab_size: int) -> Tensor:
    """float32 [V]: add-one-smoothed log frequencies of tokens, from the first 20 million of each corpus."""
    counts = np.ones(vocab_size, dtype=np.float64)
    for corpus in corpora:
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

    def __init__(self, config: PretrainConfig, train: Loader, valid: Loader, device: torch.device) -> None:
        self.loader = valid
        self.batches = max(1, min(config.training.eval_batches, int(valid.steps_per_epoch)))
        self.unigram = unigram_log_probabilities(train.corpora, train.corpora[0].meta.vocab_size)
        self.device = device

    def evaluate(self, model: ElectraForJointPreTraining, objective: str = "joint") -> dict[str, float]:
        return evaluate(model, self.loader, self.unigram, batches=self.batches, device=self.device, objective=objective)


@torch.no_grad()
def evaluate(
    model: ElectraForJointPreTraining,
    loader: Loader,
    unigram: Tensor,
    *,
    batches: int,
    device: torch.device,
    objective: str = "joint",
) -> dict[str, float]:
    """Metrics of what `objective` trains on the first `batches` batches of `loader`, with dropout off.

    Args:
        unigram: float32 [V], log frequencies of the training text's tokens.
        objective: of a phase.

    Returns:
        loss: what training minimises, the weighted sum (of "adversarial", what "joint" would).
        Of the generator: generator_loss, unigram_loss (nats per masked token: the generator's, and the cross-entropy of
        the same tokens under `unigram`), generator_accuracy (argmax), sampled_accuracy. For "mlm" they are those of the
        discriminator's encoder, and the first and the third are called mlm_loss and mlm_accuracy.
        Of the discriminator, but for "generator" and "mlm": discriminator_loss (nats per token), accuracy, precision,
        recall, auc (of the generator's corruptions, over all real tokens as in the original), maskable_auc (the same
        without [CLS] and [SEP], which are never replaced) and unigram_auc (the same positions filled from the token
        frequencies).
        "electric" has loss, generator_loss (nats per predicted token), discriminator_loss and auc (noise or not).
    """
    was_training = model.training
    model.eval()
    try:
        if objective == "electric":
            return _metrics_of_electric(model, loader, batches=batches, device=device)
        predictor = "mlm" if objective == "mlm" else "generator"
        judges = objective not in ("mlm", "generator")
        return _metrics(model, loader, unigram, batches=batches, device=device, predictor=predictor, judges=judges)
    finally:
        model.train(was_training)


def _inputs(batch: Batch, number: int) -> dict[str, Any]:
    """Arguments of the model's `forward` for a held-out batch: always the same corruptions."""
    seeds = {"seed": step_seed(EVALUATION_SEED, number), "mask_seed": masking_seed(EVALUATION_SEED, batch.epoch)}
    return model_inputs(batch, **seeds)


def _metrics_of_electric(
    model: ElectraForJointPreTraining, loader: Loader, *, batches: int, device: torch.device
) -> dict[str, float]:
    generator, discriminator, predicted, counts, histogram = 0.0, 0.0, 0.0, 0, 0
    for i in range(batches):
        batch = loader.batch(i).to(device)
        inputs = _inputs(batch, i)
        out = model(**inputs, objective="electric", masked_count=1.0, token_count=1.0)  # sums
        generator += float(out.generator_loss)
        discriminator += float(out.discriminator_loss)
        predicted += float(count_predicted(model, batch, "electric", 0))
        counts, histogram = counts + out.rtd.count, histogram + out.rtd.score_histogram
    generator, discriminator = generator / predicted, discriminator / float(counts)
    return {
        "loss": model.generator_weight * generator + model.discriminator_weight * discriminator,
        "generator_loss": generator,
        "discriminator_loss": discriminator,
        "auc": float(auc(histogram)),
    }


def _metrics(
    model: ElectraForJointPreTraining,
    loader: Loader,
    unigram: Tensor,
    *,
    batches: int,
    device: torch.device,
    predictor: str,
    judges: bool,
) -> dict[str, float]:
    """Of who predicts masked tokens, "generator" or "mlm", and, where it `judges`, of the discriminator."""
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
        inputs = _inputs(batch, i)
        token_type_ids = inputs["token_type_ids"]
        names = ("sequence_ids", "seed", "mask_seed", "unit_starts")
        corruption = model.corrupt(
            batch.input_ids,
            packing,
            token_type_ids=token_type_ids,
            predictor=predictor,
            with_argmax=True,
            **{name: inputs[name] for name in names},
        )
        masked, used = corruption.masked, corruption.masked.weights > 0
        sums["masked"] += int(used.sum())
        sums["generator"] += float(corruption.nll[used].double().sum())
        sums["unigram"] -= float(unigram[masked.labels[used]].double().sum())
        sums["argmax"] += int((corruption.argmax_ids == masked.labels)[used].sum())
        sums["sampled"] += int((corruption.sampled_ids == masked.labels)[used].sum())
        if not judges:
            continue
        real = slice(batch.num_tokens)  # padding of fixed shapes comes last
        parts["logits"].append(
            model.discriminate(corruption.corrupted_ids, packing, token_type_ids=token_type_ids)[real]
        )
        parts["replaced"].append(corruption.is_replaced[real])
        parts["is_maskable"].append(~torch.isin(batch.input_ids[real], never_masked))

        drawn = torch.multinomial(unigram.exp().cpu(), len(masked.labels), replacement=True, generator=draw).to(device)
        drawn = torch.where(used, drawn, masked.labels)
        corrupted_ids, is_replaced = corrupt_tokens(batch.input_ids, masked.positions, drawn, masked.weights)
        parts["unigram_logits"].append(model.discriminate(corrupted_ids, packing, token_type_ids=token_type_ids)[real])
        parts["unigram_replaced"].append(is_replaced[real])
    count = max(sums["masked"], 1)
    metrics = {
        "loss": model.generator_weight * sums["generator"] / count,
        f"{predictor}_loss": sums["generator"] / count,
        "unigram_loss": sums["unigram"] / count,
        f"{predictor}_accuracy": sums["argmax"] / count,
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
