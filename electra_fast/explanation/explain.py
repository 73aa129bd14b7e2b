"""Why a classifier decided so: what each word of a text adds to the score of a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from electra_fast.arguments import nearest
from electra_fast.checkpoints import load_model
from electra_fast.data.tokenizer import load_tokenizer
from electra_fast.explanation.attribution import Attribution, integrated_gradients
from electra_fast.finetuning.model import check_tokenizer, find_pretrained, load_finetuned, read_config
from electra_fast.finetuning.task import TASK_FILE
from electra_fast.models import patch_transformers


@dataclass(frozen=True)
class Word:
    """A word of the text and what it adds to the score.

    Attributes:
        start, end: where it stands in its text, [start, end).
        attribution: in the score's unit; negative: it speaks against the label.
        pair: whether it is of the second text.
    """

    start: int
    end: int
    attribution: float
    pair: bool = False


@dataclass(frozen=True)
class Explanation:
    """What a model said about a text, and what each word had to do with it.

    Attributes:
        text, text_pair: as given.
        label: whose score is explained; "value" for a model that predicts a number.
        probability: of that label; None for a number.
        score: the label's log-odds, ln p / (1 - p), in nats; or the number.
        baseline: the same for the text without words: [PAD] in the place of each token but [CLS] and [SEP].
        words: in the order of the texts.
        error: the attributions of all words and `baseline` sum to `score`, but for this.
        is_cut: the text was longer than the model takes, and its end was not read.
    """

    text: str
    text_pair: str | None
    label: str
    probability: float | None
    score: float
    baseline: float
    words: tuple[Word, ...]
    error: float
    is_cut: bool = False


class Explainer:
    """Explains what a sequence classifier says.

    Args:
        path: a fine-tuned model's folder, ours or any ELECTRA's or BERT's for sequence classification.

    Attributes:
        labels: of the model; empty for one that predicts a number.

    Raises:
        ValueError: there is no such model.
    """

    def __init__(self, path: str | Path) -> None:
        folder = find_pretrained(str(path))
        if (folder / TASK_FILE).is_file():
            self.model, self.tokenizer, task = load_finetuned(folder)
            if task.head.partition("/")[0] != "sequence":
                raise ValueError(f"{folder} is a model for {task.name}: only classifiers of whole texts are explained")
            self.max_length = task.max_length
        else:
            architectures = read_config(folder).architectures or []
            if not any(name.endswith("ForSequenceClassification") for name in architectures):
                found = ", ".join(architectures) or "no known model"
                raise ValueError(f"{folder} holds {found}: expected a model for sequence classification")
            with patch_transformers():
                cls = transformers.AutoModelForSequenceClassification
                self.model = load_model(cls, folder, dtype=torch.float32)
            self.tokenizer = load_tokenizer(folder)
            self.max_length = self.model.config.max_position_embeddings
        config = self.model.config
        check_tokenizer(self.tokenizer, config, folder)
        self.labels = [] if config.num_labels == 1 else [str(config.id2label[i]) for i in range(config.num_labels)]

    def explain(self, text: str, text_pair: str | None = None, *, label: str | None = None) -> Explanation:
        """What each word adds to the score of `label`, by default the likeliest.

        Raises:
            ValueError: the model has no such label.
        """
        if label is not None and label not in self.labels:
            raise ValueError(f"no label {label!r}{nearest(label, self.labels)} (labels: {', '.join(self.labels)})")
        encoding = self.tokenizer(
            text,
            text_pair,
            truncation="longest_first",
            max_length=self.max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        ids = torch.tensor(encoding["input_ids"])
        types = torch.tensor(encoding["token_type_ids"]) if "token_type_ids" in encoding else None
        is_special = torch.tensor(encoding["special_tokens_mask"], dtype=torch.bool)
        words = self.model.get_input_embeddings()
        with torch.no_grad():
            inputs = words(ids)
            empty = words(torch.where(is_special, ids, self.tokenizer.pad_token_id))
            logits = self._logits(inputs.unsqueeze(0), types)[0]
        target = self.labels.index(label) if label is not None else int(logits.argmax()) if self.labels else 0
        attribution = integrated_gradients(lambda rows: self._score(rows, types, target), inputs, empty)
        probability = float(logits.double().softmax(-1)[target]) if self.labels else None
        name = self.labels[target] if self.labels else "value"
        return self._explanation(text, text_pair, encoding, attribution, name, probability)

    def _logits(self, embedded: Tensor, types: Tensor | None) -> Tensor:
        """[N, S, E] -> [N, labels]."""
        kinds = None if types is None else types.expand(embedded.shape[0], -1)
        return self.model(inputs_embeds=embedded, token_type_ids=kinds).logits

    def _score(self, embedded: Tensor, types: Tensor | None, target: int) -> Tensor:
        """[N, S, E] -> [N]: log-odds of label `target`, or the number that the model predicts."""
        logits = self._logits(embedded, types)
        if not self.labels:
            return logits[:, 0]
        others = torch.cat([logits[:, :target], logits[:, target + 1 :]], dim=1)
        return logits[:, target] - others.logsumexp(-1)

    def _explanation(
        self,
        text: str,
        text_pair: str | None,
        encoding: Any,
        attribution: Attribution,
        label: str,
        probability: float | None,
    ) -> Explanation:
        words: list[Word] = []
        rows = zip(encoding.sequence_ids(), encoding.word_ids(), encoding["offset_mapping"], strict=True)
        before = None
        for value, (sequence, word, (start, end)) in zip(attribution.values.tolist(), rows, strict=True):
            if sequence is None:  # [CLS], [SEP]: the same in the baseline, so they add nothing
                continue
            if (sequence, word) == before:
                last = words.pop()
                start, value = last.start, last.attribution + value
            words.append(Word(start, end, value, pair=sequence == 1))
            before = (sequence, word)
        whole = len(self.tokenizer(text, text_pair, verbose=False)["input_ids"])
        return Explanation(
            text,
            text_pair,
            label,
            probability,
            attribution.score,
            attribution.baseline_score,
            tuple(words),
            attribution.error,
            is_cut=whole > len(attribution.values),
        )


def explain_texts(path: str | Path, texts: Sequence[str], **options: Any) -> list[Explanation]:
    """`Explainer(path).explain` of each text."""
    explainer = Explainer(path)
    return [explainer.explain(text, **options) for text in texts]
