"""A small labelled task on which the discriminator is tried during a run, without a bit of the run changing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from electra_fast.models import ElectraForPreTraining, ElectraForSequenceClassification
from electra_fast.models.gdes import folded
from electra_fast.pretraining.config import ConfigError, ProbeConfig

PROBE_SEED = 20200324  # the same for every run, so that runs compare
_L2 = 1e-3  # of the linear probe, on standardised features
_BATCH_TOKENS = 8192  # where no gradients are needed


class Examples:
    """Texts as token ids, and the number of each one's label."""

    def __init__(self, input_ids: list[list[int]], labels: Tensor) -> None:
        self.input_ids, self.labels = input_ids, labels

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids and attention mask [B, S] of some of the texts, padded on the right."""
        texts = [self.input_ids[row] for row in rows]
        ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        return ids.to(device), mask.to(device)


class Probe:
    """Logistic regression on the discriminator's mean hidden states, or a short fine-tuning of a copy of it."""

    def __init__(self, settings: ProbeConfig, train: Examples, valid: Examples, num_labels: int) -> None:
        self.settings, self.train, self.valid, self.num_labels = settings, train, valid, num_labels

    @classmethod
    def open(cls, settings: ProbeConfig, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Probe:
        """Read both files; texts are cut at `max_length` tokens.

        Raises:
            ConfigError: a file is missing or not UTF-8, a line is not TEXT<TAB>LABEL, there are fewer than two labels,
                or `valid` has one that `train` has not; the message names file and line.
        """
        files = [Path(str(settings.train)), Path(str(settings.valid))]
        read = [_read(path) for path in files]
        names = sorted(set(read[0][1]))
        if len(names) < 2:
            raise ConfigError(f"{files[0]} has the label {names[0]!r} only: a probe needs two")
        parts = []
        for texts, labels in read:
            unknown = sorted(set(labels) - set(names))
            if unknown:
                raise ConfigError(f"{files[1]} has the label {unknown[0]!r}, which {files[0]} has not")
            encoded = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
            parts.append(Examples(encoded, torch.tensor([names.index(label) for label in labels])))
        return cls(settings, *parts, num_labels=len(names))

    def measure(self, discriminator: ElectraForPreTraining) -> dict[str, float]:
        """`accuracy` and `mcc` (Matthews' correlation) on the valid file. The discriminator and torch's random state
        are afterwards as they were."""
        device = next(discriminator.parameters()).device
        was_training = discriminator.training
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(PROBE_SEED)
            try:
                predicted = (self._linear if self.settings.kind == "linear" else self._finetune)(discriminator, device)
            finally:
                discriminator.train(was_training)
        return _scores(predicted.cpu(), self.valid.labels, self.num_labels)

    def _linear(self, discriminator: ElectraForPreTraining, device: torch.device) -> Tensor:
        features, wanted = (_mean_states(discriminator, part, device) for part in (self.train, self.valid))
        mean, deviation = features.mean(0), features.std(0).clamp(min=1e-6)
        features, wanted = (features - mean) / deviation, (wanted - mean) / deviation
        weight = torch.zeros(features.shape[1] + 1, self.num_labels, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            solver.zero_grad()
            value = F.cross_entropy(features @ weight[:-1] + weight[-1], self.train.labels)
            value = value + _L2 * weight[:-1].square().sum()
            value.backward()
            return value

        solver.step(loss)
        return (wanted @ weight[:-1] + weight[-1]).argmax(dim=1).detach()

    def _finetune(self, discriminator: ElectraForPreTraining, device: torch.device) -> Tensor:
        config = discriminator.config.__class__.from_dict(discriminator.config.to_dict() | {"dtype": "float32"})
        config.num_labels = self.num_labels
        model = ElectraForSequenceClassification(config).to(device).train()
        model.electra.load_state_dict(folded(discriminator.electra))
        rows, size = len(self.train.input_ids), self.settings.batch_size
        steps = self.settings.epochs * math.ceil(rows / size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.settings.lr, weight_decay=0.0)
        warmup = max(1, steps // 10)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(steps - warmup, 1))
        )
        for _ in range(self.settings.epochs):
            order = torch.randperm(rows).tolist()
            for first in range(0, rows, size):
                chosen = order[first : first + size]
                ids, mask = self.train.batch(chosen, device)
                labels = self.train.labels[chosen].to(device)
                optimizer.zero_grad()
                model(ids, attention_mask=mask, labels=labels).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
        model.eval()
        predicted = torch.empty(len(self.valid.input_ids), dtype=torch.int64)
        with torch.no_grad():
            for chosen in _by_length(self.valid):
                ids, mask = self.valid.batch(chosen, device)
                predicted[chosen] = model(ids, attention_mask=mask).logits.argmax(dim=1).cpu()
        return predicted


@torch.no_grad()
def _mean_states(discriminator: ElectraForPreTraining, examples: Examples, device: torch.device) -> Tensor:
    """float64 [N, H] on the CPU: the mean of each text's last hidden states."""
    discriminator.eval()
    means = torch.empty(len(examples.input_ids), discriminator.config.hidden_size, dtype=torch.float64)
    for chosen in _by_length(examples):
        ids, mask = examples.batch(chosen, device)
        states = discriminator.electra(ids, attention_mask=mask).last_hidden_state.double()
        means[chosen] = ((states * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)).cpu()
    return means


def _by_length(examples: Examples) -> list[list[int]]:
    """Rows in batches of about _BATCH_TOKENS tokens, longest first, so that little is padding."""
    rows = sorted(range(len(examples.input_ids)), key=lambda row: -len(examples.input_ids[row]))
    batches, first = [], 0
    while first < len(rows):
        size = max(1, _BATCH_TOKENS // len(examples.input_ids[rows[first]]))
        batches.append(rows[first : first + size])
        first += size
    return batches


def _scores(predicted: Tensor, labels: Tensor, num_labels: int) -> dict[str, float]:
    """Accuracy, and Matthews' correlation for any number of classes (Gorodkin, 2004); 0 where it is undefined."""
    confusion = torch.bincount(labels * num_labels + predicted, minlength=num_labels**2)
    confusion = confusion.view(num_labels, num_labels).double()
    count, right = confusion.sum(), confusion.trace()
    true, guessed = confusion.sum(1), confusion.sum(0)
    spread = (count**2 - guessed @ guessed) * (count**2 - true @ true)
    mcc = float((right * count - true @ guessed) / spread.sqrt()) if spread > 0 else 0.0
    return {"accuracy": float(right / count), "mcc": mcc}


def _read(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels of a file of lines TEXT<TAB>LABEL; a first line whose label is "label" is a header."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise ConfigError(f"probe file {path} is not there: give a file of lines TEXT<TAB>LABEL") from error
    except IsADirectoryError as error:
        raise ConfigError(f"probe file {path} is a folder: give a file of lines TEXT<TAB>LABEL") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 at byte {error.start}: save it as UTF-8") from error
    texts, labels = [], []
    for number, line in enumerate(lines, start=1):
        text, tab, label = line.rpartition("\t")
        if number == 1 and label.strip().lower() == "label":
            continue
        if not tab or not text.strip() or not label.strip():
            raise ConfigError(f"{path}, line {number}: expected TEXT<TAB>LABEL; got {line[:60]!r}")
        texts.append(text)
        labels.append(label.strip())
    if not texts:
        raise ConfigError(f"{path} holds no line TEXT<TAB>LABEL")
    return texts, labels
