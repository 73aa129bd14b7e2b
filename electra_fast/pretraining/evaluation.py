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


@torch.no_grad()
def evaluate(
    model: ElectraForJointPreTraining, loader: BatchLoader, unigram: Tensor, *, batches: int, device: torch.device
) -> dict[str, float]:
    """Metrics of both towers on the first `batches` batches of `loader`, with dropout off.

    Returns:
        generator_loss, unigram_loss (nats per masked token: the generator's, and the cross-entropy of the same tokens
        under the training text's token frequencies), generator_accuracy (argmax), sampled_accuracy, discriminator_loss
        (nats per token), accuracy, precision, recall, auc (of the generator's corruptions, over all real tokens as in
        the original), maskable_auc (the same without [CLS] and [SEP], which are never replaced) and unigram_auc (the
        same positions filled from the token frequencies).
    """
    was_training = model.training
    model.eval()
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
        parts["logits"].append(model.discriminate(corruption.corrupted_ids, packing))
        parts["replaced"].append(corruption.is_replaced)
        parts["is_maskable"].append(~torch.isin(batch.input_ids, never_masked))

        drawn = torch.multinomial(unigram.exp().cpu(), len(masked.labels), replacement=True, generator=draw).to(device)
        drawn = torch.where(used, drawn, masked.labels)
        corrupted_ids, is_replaced = corrupt_tokens(batch.input_ids, masked.positions, drawn, masked.weights)
        parts["unigram_logits"].append(model.discriminate(corrupted_ids, packing))
        parts["unigram_replaced"].append(is_replaced)
    model.train(was_training)

    joined = {name: torch.cat(tensors) for name, tensors in parts.items()}
    logits, replaced = joined["logits"].double(), joined["replaced"]
    predicted = logits > 0
    hits = int((predicted & replaced).sum())
    count = max(sums["masked"], 1)
    return {
        "generator_loss": sums["generator"] / count,
        "unigram_loss": sums["unigram"] / count,
        "generator_accuracy": sums["argmax"] / count,
        "sampled_accuracy": sums["sampled"] / count,
        "discriminator_loss": float(torch.nn.functional.binary_cross_entropy_with_logits(logits, replaced.double())),
        "accuracy": float((predicted == replaced).double().mean()),
        "precision": hits / max(int(predicted.sum()), 1),
        "recall": hits / max(int(replaced.sum()), 1),
        "auc": exact_auc(logits, replaced),
        "maskable_auc": exact_auc(logits[joined["is_maskable"]], replaced[joined["is_maskable"]]),
        "unigram_auc": exact_auc(joined["unigram_logits"], joined["unigram_replaced"]),
    }
