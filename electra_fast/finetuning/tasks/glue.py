"""GLUE's nine tasks, from its own files and with its own metrics (Wang et al. 2018; gluebenchmark.com).

Defaults are those of ELECTRA's paper, appendix B, and of google-research/electra,
finetune/classification/classification_tasks.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from electra_fast.finetuning.metrics import classification as metrics
from electra_fast.finetuning.tables import Row, read_rows
from electra_fast.finetuning.task import Example, Feature, Output, Prediction, Task, is_labelled
from electra_fast.finetuning.tasks.classification import decode_class, encode_texts, read_label
from electra_fast.finetuning.tasks.regression import from_unit, to_unit

_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")


@dataclass
class Glue(Task):
    """A task of GLUE: one or two sentences into a class.

    Attributes:
        folder: GLUE's name of the task: that of its folder and of its file on the leaderboard.
        texts: columns of the sentence or of both.
        label: column of the label.
        index: column of the number that the leaderboard wants back.
        classes: all labels; none for a number.
        blank: whether some texts are.
        names: of the files of the splits.
        submissions: names of the leaderboard's files, by split.
    """

    head: ClassVar[str] = "sequence"
    metric: ClassVar[str] = "accuracy"
    endings: ClassVar[tuple[str, ...]] = (".tsv",)
    folder: ClassVar[str]
    texts: ClassVar[tuple[str, ...]] = _SENTENCES
    label: ClassVar[str] = "label"
    index: ClassVar[str] = "index"
    classes: ClassVar[tuple[str, ...]] = ("0", "1")
    blank: ClassVar[bool] = False
    names: ClassVar[Mapping[str, str]] = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}
    submissions: ClassVar[Mapping[str, str]]

    def __post_init__(self) -> None:
        if self.labels is not None and sorted(self.labels) != sorted(self.classes):
            raise ValueError(f"labels of {self.name} are {', '.join(self.classes) or 'numbers'}; got {self.labels}")
        self.labels = self.labels or list(self.classes) or None

    def files(self, path: Path) -> dict[str, Path]:
        """The task's files in `path`, which is its folder, or the one that holds it by GLUE's name."""
        if found := self._find(path):
            return found
        expected = ", ".join(self.names.values())
        raise ValueError(
            f"{path} holds no data of {self.name}: expected {expected} in it or in its folder {self.folder}"
        )

    def _find(self, path: Path) -> dict[str, Path]:
        own = path / self.folder if (path / self.folder).is_dir() else path
        return {split: file for split, name in self.names.items() if (file := own / name).is_file()}

    def read(self, file: Path, split: str) -> list[Example]:
        return self.from_rows(self._rows(file, split), split)

    def from_rows(self, rows: Iterable[Row], split: str) -> list[Example]:
        return [self._example(row, split) for row in rows]

    def _rows(self, file: Path, split: str) -> Iterable[Row]:
        return read_rows(file)

    def _example(self, row: Row, split: str) -> Example:
        texts = [row.text(column, may_be_blank=self.blank) for column in self.texts]
        example = dict(zip(("text", "text_pair"), texts, strict=False))
        if split in self.submissions or (split == "predict" and row.has(self.index)):
            example["index"] = row.text(self.index)
        if is_labelled(split) or row.has(self.label):
            example["label"] = self._label(row)
        return example

    def _label(self, row: Row) -> str | float:
        return read_label(row, self.label, self.labels)

    def encode(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, training: bool
    ) -> list[Feature]:
        return encode_texts(examples, tokenizer, self.max_length, self.labels)

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Prediction]:
        predictions = map(self._prediction, outputs)
        return [_index(example) | prediction for example, prediction in zip(examples, predictions, strict=True)]

    def _prediction(self, output: Output) -> Prediction:
        return decode_class(output, self.labels)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        return self._score([example["label"] for example in examples], [value["label"] for value in predictions])

    def _score(self, labels: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
        return metrics.accuracy(labels, predicted)

    def submission(self, split: str, predictions: Sequence[Prediction]) -> dict[str, str]:
        if split not in self.submissions:
            return {}
        rows = [f"{prediction['index']}\t{self._submitted(prediction)}\n" for prediction in predictions]
        return {self.submissions[split]: "".join(["index\tprediction\n", *rows])}

    def _submitted(self, prediction: Prediction) -> str:
        return prediction["label"]


def _index(example: Example) -> Prediction:
    return {"index": example["index"]} if "index" in example else {}


@dataclass
class CoLA(Glue):
    """Whether a sentence is good English. Only its test file has a header."""

    name: ClassVar[str] = "cola"
    title: ClassVar[str] = "GLUE's CoLA: is a sentence grammatical?"
    metric: ClassVar[str] = "matthews_correlation"
    folder: ClassVar[str] = "CoLA"
    texts: ClassVar[tuple[str, ...]] = ("sentence",)
    submissions: ClassVar[Mapping[str, str]] = {"test": "CoLA.tsv"}

    def _rows(self, file: Path, split: str) -> Iterable[Row]:
        with file.open("rb") as opened:
            has_header = opened.readline().rstrip() == b"index\tsentence"
        return read_rows(file, columns=None if has_header else ("source", "label", "mark", "sentence"))

    def _score(self, labels: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
        return metrics.matthews_correlation(labels, predicted) | metrics.accuracy(labels, predicted)


@dataclass
class SST2(Glue):
    name: ClassVar[str] = "sst2"
    title: ClassVar[str] = "GLUE's SST-2: is a sentence of a film review positive?"
    folder: ClassVar[str] = "SST-2"
    texts: ClassVar[tuple[str, ...]] = ("sentence",)
    submissions: ClassVar[Mapping[str, str]] = {"test": "SST-2.tsv"}


@dataclass
class _Unordered(Glue):
    """Pairs whose order says nothing.

    Attributes:
        double_unordered: learn each training pair in both orders, as in the original.
    """

    double_unordered: bool = True

    def encode(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, training: bool
    ) -> list[Feature]:
        features = super().encode(examples, tokenizer, training=training)
        if training and self.double_unordered:
            swapped = [example | _swapped(**example) for example in examples]
            features += super().encode(swapped, tokenizer, training=True)
        return sorted(features, key=lambda feature: feature["example"])


def _swapped(text: str, text_pair: str, **_: object) -> Example:
    return {"text": text_pair, "text_pair": text}


@dataclass
class MRPC(_Unordered):
    """Its folder's dev_ids.tsv is not needed: it says which pairs of Microsoft's training file became dev.tsv."""

    name: ClassVar[str] = "mrpc"
    title: ClassVar[str] = "GLUE's MRPC: do two sentences of the news say the same?"
    folder: ClassVar[str] = "MRPC"
    texts: ClassVar[tuple[str, ...]] = ("#1 String", "#2 String")
    label: ClassVar[str] = "Quality"
    submissions: ClassVar[Mapping[str, str]] = {"test": "MRPC.tsv"}

    def _score(self, labels: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
        return metrics.accuracy_and_binary_f1(labels, predicted, positive="1")


@dataclass
class QQP(Glue):
    """Some of its questions are blank, and rows of its train.tsv with a line break in a question are broken: the
    parts are left out, as in the original."""

    name: ClassVar[str] = "qqp"
    title: ClassVar[str] = "GLUE's QQP: do two questions of Quora ask the same?"
    folder: ClassVar[str] = "QQP"
    texts: ClassVar[tuple[str, ...]] = ("question1", "question2")
    label: ClassVar[str] = "is_duplicate"
    index: ClassVar[str] = "id"
    blank: ClassVar[bool] = True
    submissions: ClassVar[Mapping[str, str]] = {"test": "QQP.tsv"}

    def _rows(self, file: Path, split: str) -> Iterable[Row]:
        return read_rows(file, skip_broken=split == "train")

    def _score(self, labels: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
        return metrics.accuracy_and_binary_f1(labels, predicted, positive="1")


@dataclass
class STSB(_Unordered):
    """How much alike two sentences are, 0 to 5; the model learns a fifth of it, as in the original.

    Attributes:
        low, high: scores that the model learns as 0 and as 1; 0 and 1 to learn them as they are.
    """

    name: ClassVar[str] = "stsb"
    title: ClassVar[str] = "GLUE's STS-B: how much alike are two sentences, 0 to 5?"
    metric: ClassVar[str] = "spearman"
    epochs: ClassVar[float] = 10
    folder: ClassVar[str] = "STS-B"
    label: ClassVar[str] = "score"
    classes: ClassVar[tuple[str, ...]] = ()
    submissions: ClassVar[Mapping[str, str]] = {"test": "STS-B.tsv"}

    low: float = 0.0
    high: float = 5.0

    def _label(self, row: Row) -> float:
        score = row.real(self.label)
        if not 0 <= score <= 5:
            raise row.error(f"{self.label} must be 0 to 5; got {score:g}")
        return score

    def encode(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, training: bool
    ) -> list[Feature]:
        return super().encode(to_unit(examples, self.low, self.high), tokenizer, training=training)

    def _prediction(self, output: Output) -> Prediction:
        return {"score": from_unit(float(output[0]), self.low, self.high)}

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        return metrics.correlations([example["label"] for example in examples], [p["score"] for p in predictions])

    def _submitted(self, prediction: Prediction) -> str:
        return f"{min(max(prediction['score'], 0.0), 5.0):.3f}"


@dataclass
class MNLI(Glue):
    """Its model also predicts AX, GLUE's diagnostic set, which has no labels."""

    name: ClassVar[str] = "mnli"
    title: ClassVar[str] = "GLUE's MNLI and AX: does one sentence follow from another?"
    folder: ClassVar[str] = "MNLI"
    label: ClassVar[str] = "gold_label"
    classes: ClassVar[tuple[str, ...]] = ("contradiction", "entailment", "neutral")
    blank: ClassVar[bool] = True  # not known: better none refused than GLUE's own file
    names: ClassVar[Mapping[str, str]] = {
        split: f"{split}.tsv" for split in ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")
    }
    submissions: ClassVar[Mapping[str, str]] = {
        "test_matched": "MNLI-m.tsv",
        "test_mismatched": "MNLI-mm.tsv",
        "ax": "AX.tsv",
    }

    def _find(self, path: Path) -> dict[str, Path]:
        beside = [path.parent] if path.name == self.folder else []
        places = [path / self.folder, path, *beside]
        ax = next((file for place in places for name in _AX if (file := place / name).is_file()), None)
        return super()._find(path) | ({} if ax is None else {"ax": ax})


# Where the scripts and archives that people get GLUE by put the diagnostic set.
_AX = ("diagnostic/diagnostic.tsv", "AX/AX.tsv", "diagnostic.tsv", "AX.tsv")


@dataclass
class QNLI(Glue):
    name: ClassVar[str] = "qnli"
    title: ClassVar[str] = "GLUE's QNLI: does a sentence answer a question?"
    folder: ClassVar[str] = "QNLI"
    texts: ClassVar[tuple[str, ...]] = ("question", "sentence")
    classes: ClassVar[tuple[str, ...]] = _ENTAILMENT
    submissions: ClassVar[Mapping[str, str]] = {"test": "QNLI.tsv"}


@dataclass
class RTE(Glue):
    name: ClassVar[str] = "rte"
    title: ClassVar[str] = "GLUE's RTE: does one sentence follow from another?"
    epochs: ClassVar[float] = 10
    folder: ClassVar[str] = "RTE"
    classes: ClassVar[tuple[str, ...]] = _ENTAILMENT
    submissions: ClassVar[Mapping[str, str]] = {"test": "RTE.tsv"}


@dataclass
class WNLI(Glue):
    name: ClassVar[str] = "wnli"
    title: ClassVar[str] = "GLUE's WNLI: does the sentence with a pronoun filled in follow?"
    folder: ClassVar[str] = "WNLI"
    submissions: ClassVar[Mapping[str, str]] = {"test": "WNLI.tsv"}
