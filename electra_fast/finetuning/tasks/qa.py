"""Extractive question answering: the answer is a piece of a context, or there is none."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from electra_fast.finetuning.metrics.cmrc2018 import cmrc2018_metrics
from electra_fast.finetuning.metrics.squad import NO_ANSWER, squad1_metrics, squad2_metrics
from electra_fast.finetuning.spans import Region, Span, SpanBeam, beam_spans, best_spans
from electra_fast.finetuning.tables import Row
from electra_fast.finetuning.task import Example, Feature, Output, Prediction, Task, is_labelled
from electra_fast.finetuning.tasks.squad_files import SquadReader
from electra_fast.finetuning.windows import Window, cut_windows

_METRICS = ("squad", "cmrc2018")
# A file's split is the first of these words in its name; the trial part of CMRC2018 trains where nothing else does.
_SPLITS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "eval": "dev", "test": "test"}
_SPECIAL_TOKENS = 3  # [CLS] question [SEP] context [SEP]
_NO_ANSWER_POSITION = 0  # [CLS]


@dataclass
class QuestionAnswering(Task):
    """Questions about contexts, from JSON files in SQuAD's form: SQuAD 1.1 and 2.0, XQuAD and others.

    Source: google-research/electra, finetune/qa/, whose settings are the defaults.

    Attributes:
        query_length: tokens of a question; the rest is cut.
        doc_stride: a context that is too long is read in windows that begin so many tokens apart.
        max_answer_tokens: longer answers are not considered.
        n_best: answers that a prediction lists.
        no_answer: whether a question may have no answer, as in SQuAD 2.0; null: as the training file says.
        threshold: null odds above which a question has no answer; null: 0, with the original's head -2.75.
        skip_empty_windows: leave out training windows that don't hold the answer; the original trains them to [CLS].
        search_answers: where a training answer isn't at its answer_start, take the nearest place where it is.
        metrics: squad or cmrc2018, whose evaluation scripts differ.
    """

    name: ClassVar[str] = "qa"
    title: ClassVar[str] = "answers from a context (SQuAD 1.1 and 2.0, XQuAD)"
    head: ClassVar[str] = "span"
    metric: ClassVar[str] = "f1"
    endings: ClassVar[tuple[str, ...]] = (".json", ".jsonl")
    epochs: ClassVar[float] = 2

    max_length: int = 512
    query_length: int = 64
    doc_stride: int = 128
    max_answer_tokens: int = 30
    n_best: int = 20
    no_answer: bool | None = None
    threshold: float | None = None
    skip_empty_windows: bool = False
    search_answers: bool = False
    metrics: str = "squad"

    def __post_init__(self) -> None:
        for name in ("query_length", "doc_stride", "max_answer_tokens", "n_best"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.max_length <= self.query_length + _SPECIAL_TOKENS:
            raise ValueError(
                f"max_length {self.max_length} leaves no room for the context beside a question of query_length "
                f"{self.query_length} and {_SPECIAL_TOKENS} special tokens: lower query_length"
            )
        if self.metrics not in _METRICS:
            raise ValueError(f"metrics must be {' or '.join(_METRICS)}; got {self.metrics!r}")

    def files(self, path: Path) -> dict[str, Path]:
        if not path.is_dir():
            raise ValueError(f"{path} is no folder: expected one with {self._expected()}")
        found: dict[str, Path] = {}
        for file in sorted(path.iterdir()):
            split = _split_of(file.stem)
            if split is None or file.suffix not in self.endings:
                continue
            if split in found:
                raise ValueError(f"{path} holds {found[split].name} and {file.name}: leave one of them for {split}")
            found[split] = file
        trial = found.pop("trial", None)
        if trial is not None:
            found.setdefault("train", trial)
        if not found:
            raise ValueError(f"{path} holds no data of {self.name}: expected {self._expected()}")
        return found

    def _expected(self) -> str:
        return "files such as train-v1.1.json and dev-v1.1.json"

    def read(self, file: Path, split: str) -> list[Example]:
        return SquadReader(file, is_labelled(split), split == "train", self.search_answers).read()

    def from_rows(self, rows: Iterable[Row], split: str) -> list[Example]:
        return SquadReader(None, is_labelled(split), split == "train", self.search_answers).read(rows)

    def fit(self, examples: Sequence[Example]) -> None:
        if self.no_answer is None:
            self.no_answer = any(example["is_impossible"] for example in examples)

    def encode(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, training: bool
    ) -> list[Feature]:
        """A feature for each window: [CLS] question [SEP] a window of the context [SEP].

        In training a feature has `start_positions` and `end_positions` of the first answer, both 0 where the window
        doesn't hold it, `is_impossible`, 0 or 1, of the question, and "is_exact": whether the tokens are the answer,
        and not a little more, since it begins or ends inside one. A question whose answer has no token, as a lone
        control character, gives no feature. Otherwise "context_at", the position of the first token of the context,
        "offsets" of those tokens, (from, to) in characters, and "core", (first, last) position of an answer's start.
        """
        if not examples:
            return []
        contexts = _tokenize_contexts(examples, tokenizer)
        questions = tokenizer(
            [example["question"] for example in examples],
            add_special_tokens=False,
            truncation=True,
            max_length=self.query_length,
        )["input_ids"]
        cls_id, sep_id = tokenizer.cls_token_id, tokenizer.sep_token_id
        features: list[Feature] = []
        for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
            context = contexts[example["context"]]
            opening = [cls_id, *question, sep_id]
            answer = None
            if training and not example["is_impossible"]:
                answer = _locate(example, context)
                if answer is None:
                    continue
            width = self.max_length - len(opening) - 1
            for window in cut_windows(len(context.ids), width, self.doc_stride):
                ids = [*opening, *context.ids[window.start : window.stop], sep_id]
                feature = {
                    "input_ids": ids,
                    "token_type_ids": [0] * len(opening) + [1] * (len(ids) - len(opening)),
                    "example": number,
                }
                if not training:
                    features.append(feature | _places(window, context, len(opening)))
                elif answer is None:
                    features.append(feature | _labels(_NO_ANSWER_POSITION, _NO_ANSWER_POSITION, 1, True))
                elif window.start <= answer.start and answer.end < window.stop:
                    shift = len(opening) - window.start
                    features.append(feature | _labels(answer.start + shift, answer.end + shift, 0, answer.is_exact))
                elif not self.skip_empty_windows:
                    features.append(feature | _labels(_NO_ANSWER_POSITION, _NO_ANSWER_POSITION, 0, answer.is_exact))
        return features

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Prediction]:
        """Of each question: "id", "text", "start" in characters, "probability", and the "n_best" answers.

        Where questions may have no answer, also "null_odds", and "text" is "" where they are above the threshold.
        """
        windows: list[list[tuple[Feature, Output]]] = [[] for _ in examples]
        for feature, output in zip(features, outputs, strict=True):
            windows[feature["example"]].append((feature, output))
        return [self._predict(example, pairs) for example, pairs in zip(examples, windows, strict=True)]

    def _predict(self, example: Example, windows: list[tuple[Feature, Output]]) -> Prediction:
        context = example["context"]
        best: dict[str, tuple[int, float]] = {}  # text -> place and score
        spans = [(span, feature) for feature, output in windows for span in self._spans(feature, output)]
        for span, feature in sorted(spans, key=lambda pair: -pair[0].score):
            start, text = _text_of(feature, span, context)
            if text and text not in best:
                best[text] = (start, span.score)
            if len(best) == self.n_best:
                break
        scores = np.array([score for _, score in best.values()])
        probabilities = np.exp(scores - scores.max(initial=-np.inf)) if best else scores
        listed = [
            {"text": text, "start": start, "probability": round(float(probability / probabilities.sum()), 6)}
            for (text, (start, _)), probability in zip(best.items(), probabilities, strict=True)
        ]
        first = listed[0] if listed else {"text": NO_ANSWER, "start": None, "probability": 1.0}
        prediction = {"id": example["id"], **first}
        if self.no_answer:
            odds = self._null_odds([output for _, output in windows], scores)
            prediction["null_odds"] = odds
            if odds > self._threshold:
                prediction |= {"text": NO_ANSWER, "start": None}
        return prediction | {"n_best": listed}

    def _spans(self, feature: Feature, output: Output) -> list[Span]:
        first, last = feature["core"]
        region = Region(first, last, feature["context_at"] + len(feature["offsets"]) - 1)
        if isinstance(output, SpanBeam):
            return beam_spans(output, region, max_tokens=self.max_answer_tokens, count=self.n_best)
        return best_spans(*output, region, max_tokens=self.max_answer_tokens, count=self.n_best)

    def _null_odds(self, outputs: Sequence[Output], scores: np.ndarray) -> float:
        """How much the window that is least sure of it says that there is no answer; scores [n], best first."""
        if isinstance(outputs[0], SpanBeam):
            return float(min(output.impossible for output in outputs))
        null = min(float(start[_NO_ANSWER_POSITION]) + float(end[_NO_ANSWER_POSITION]) for start, end in outputs)
        return null - float(scores[0]) if len(scores) else float(np.finfo(np.float32).max)

    @property
    def _threshold(self) -> float:
        if self.threshold is not None:
            return self.threshold
        return -2.75 if self.head.endswith("/original") else 0.0

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        answers = [[answer["text"] for answer in example["answers"]] for example in examples]
        texts = [prediction["text"] for prediction in predictions]
        if self.metrics == "cmrc2018":
            return cmrc2018_metrics(answers, texts)
        if not self.no_answer and all(answers):
            return squad1_metrics(answers, texts)
        if not self.no_answer:  # a model for SQuAD 1.1 on SQuAD 2.0
            return squad2_metrics(answers, texts, [0.0] * len(texts), 0.0)
        best = [prediction["n_best"][0]["text"] if prediction["n_best"] else NO_ANSWER for prediction in predictions]
        return squad2_metrics(answers, best, [prediction["null_odds"] for prediction in predictions], self._threshold)

    def submission(self, split: str, predictions: Sequence[Prediction]) -> dict[str, str]:
        """The official scripts' files: answers by id, and where questions may have none, their null odds."""
        columns = {"predictions": "text"} | ({"null_odds": "null_odds"} if self.no_answer else {})
        return {
            f"{split}_{name}.json": json.dumps({row["id"]: row[key] for row in predictions}, ensure_ascii=False) + "\n"
            for name, key in columns.items()
        }


@dataclass
class CMRC2018(QuestionAnswering):
    """Chinese machine reading comprehension: SQuAD's form, some answers a character off their place, own metrics."""

    name: ClassVar[str] = "cmrc2018"
    title: ClassVar[str] = "answers from a Chinese context (CMRC2018)"

    search_answers: bool = True
    metrics: str = "cmrc2018"


def _split_of(stem: str) -> str | None:
    """train-v1.1 -> train, cmrc2018_dev -> dev, xquad.zh -> dev_zh; None: of no split."""
    words = re.split(r"[^a-z0-9]+", stem.lower())
    if words[0] == "xquad":  # of which all is for evaluation
        return "_".join(["dev", *words[1:]])
    if "trial" in words:
        return "trial"
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


class _Context(NamedTuple):
    ids: list[int]
    offsets: list[tuple[int, int]]  # of each token: [from, to) in characters


class _Answer(NamedTuple):
    start: int  # tokens of the context
    end: int
    is_exact: bool


def _tokenize_contexts(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> dict[str, _Context]:
    """The tokens of each context, once."""
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} doesn't say where its tokens stand in the text: take a fast one")
    texts = list(dict.fromkeys(example["context"] for example in examples))
    encoded = tokenizer(
        texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    return {
        text: _Context(ids, offsets)
        for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    }


def _locate(example: Example, context: _Context) -> _Answer | None:
    """The fewest tokens that hold the first answer; None: the tokenizer drops all of it."""
    answer = example["answers"][0]
    first_char, end_char = answer["answer_start"], answer["answer_start"] + len(answer["text"])
    inside = [i for i, (start, end) in enumerate(context.offsets) if start < end_char and end > first_char]
    if not inside:
        return None
    start, end = inside[0], inside[-1]
    _, text = _cut(example["context"], context.offsets[start][0], context.offsets[end][1])
    return _Answer(start, end, text == answer["text"].strip())


def _labels(start: int, end: int, is_impossible: int, is_exact: bool) -> Feature:
    return {"start_positions": start, "end_positions": end, "is_impossible": is_impossible, "is_exact": is_exact}


def _places(window: Window, context: _Context, context_at: int) -> Feature:
    shift = context_at - window.start
    return {
        "context_at": context_at,
        "offsets": context.offsets[window.start : window.stop],
        "core": (window.core_start + shift, window.core_stop + shift - 1),
    }


def _text_of(feature: Feature, span: Span, context: str) -> tuple[int, str]:
    offsets, shift = feature["offsets"], feature["context_at"]
    return _cut(context, offsets[span.start - shift][0], offsets[span.end - shift][1])


def _cut(context: str, start: int, end: int) -> tuple[int, str]:
    """Where the text [start, end) begins, and it: without blanks around it, but with the accents of its last letter.

    Tokenizers that strip accents leave them out of the letter's place.
    """
    while end < len(context) and unicodedata.category(context[end])[0] == "M":
        end += 1
    text = context[start:end]
    return start + len(text) - len(text.lstrip()), text.strip()
