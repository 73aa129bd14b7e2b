"""What a task is: how its files are read, how texts become features, which head reads them, and how it is scored.

The path of the data: files -> examples (`read`) -> features (`encode`) -> the model's outputs, one a feature
(`inference.py`; for a task that reads twice, again by `encode_again`) -> predictions, one an example (`decode`) ->
metrics (`score`). All of them are plain dicts and lists.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from electra_fast.arguments import nearest
from electra_fast.files import write_whole
from electra_fast.finetuning.tables import ENDINGS, Row, object_rows, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = dict[str, Any]  # what a file says: texts, and "label" where it is known
Feature = dict[str, Any]  # lists of ints that the model reads, "example" (int), and what `decode` wants to know
Prediction = dict[str, Any]  # what `predict` writes as one line of JSON
Output = Any  # of one feature: what `Head.outputs` gives

BATCH_TOKENS = 4096  # of a packed batch: more gives no more speed on two cores
TASK_FILE = "task.json"  # beside a fine-tuned model
_FORMAT = 1
# Names of splits in a folder of data: train, dev and test by any of these names.
_FILE_NAMES = {"train": ("train",), "dev": ("dev", "valid", "validation", "eval"), "test": ("test",)}
# Where each task lives: its module in electra_fast.finetuning.tasks and its class.
TASKS = {
    "cola": ("glue", "CoLA"),
    "sst2": ("glue", "SST2"),
    "mrpc": ("glue", "MRPC"),
    "stsb": ("glue", "STSB"),
    "qqp": ("glue", "QQP"),
    "mnli": ("glue", "MNLI"),
    "qnli": ("glue", "QNLI"),
    "rte": ("glue", "RTE"),
    "wnli": ("glue", "WNLI"),
    "classification": ("classification", "Classification"),
    "regression": ("regression", "Regression"),
    "tagging": ("tagging", "Tagging"),
    "relation": ("relation", "Relation"),
    "events": ("events", "Events"),
    "qa": ("qa", "QuestionAnswering"),
    "cmrc2018": ("qa", "CMRC2018"),
    "choice": ("choice", "Choice"),
    "seq2seq": ("seq2seq", "Seq2Seq"),
}


@dataclass
class Task(ABC):
    """One task; its fields are its options on the command line, and go with the model into `task.json`.

    Attributes:
        name: on the command line.
        title: a line for help and model cards.
        head: key of `heads.HEADS`: what the model predicts. A run may give its task another: `heads.choose_head`.
        metric: the entry of `score` by which epochs, seeds and trials are compared; higher is better.
        endings: of the files that `read` takes.
        epochs: the paper's number of passes over the training data.
        max_length: tokens of a feature, [CLS] and [SEP] included; the model's position table is a limit too.
        labels: in the order of the head's outputs; None until `fit` has seen the training data, or for none.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    head: ClassVar[str]
    metric: ClassVar[str]
    endings: ClassVar[tuple[str, ...]] = ENDINGS
    epochs: ClassVar[float] = 3

    max_length: int = 128
    labels: list[str] | None = None

    def files(self, path: Path) -> dict[str, Path]:
        """The files of each split that `path`, a folder, holds: "train", "dev", "test" or more of the task's own.

        The first that is neither "train" nor "test" is the one by which models are compared.

        Raises:
            ValueError: there is none, or two for one split.
        """
        if not path.is_dir():
            raise ValueError(f"{path} is no folder: expected one with {self._expected()}")
        found: dict[str, Path] = {}
        for split, names in _FILE_NAMES.items():
            there = [file for name in names for ending in self.endings if (file := path / (name + ending)).is_file()]
            if len(there) > 1:
                raise ValueError(f"{path} holds {there[0].name} and {there[1].name}: leave one of them for {split}")
            if there:
                found[split] = there[0]
        if not found:
            raise ValueError(f"{path} holds no data of {self.name}: expected {self._expected()}")
        return found

    def _expected(self) -> str:
        endings = self.endings[0] if len(self.endings) == 1 else f"{{{','.join(self.endings)}}}"
        return f"train{endings}, dev{endings}, and test{endings} if there is one"

    def read(self, file: Path, split: str) -> list[Example]:
        """The examples of a file, in its order. Labels may be absent where `is_labelled(split)` is false.

        Raises:
            ValueError: about the file and row that is wrong.
        """
        return self.from_rows(read_rows(file), split)

    def from_rows(self, rows: Iterable[Row], split: str) -> list[Example]:
        """The examples of a table's rows, or of JSON objects that no file holds. A task has this or `read`.

        Raises:
            ValueError: about the row that is wrong.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither `read` nor `from_rows`")

    def from_objects(self, objects: Sequence[Any]) -> list[Example]:
        """Examples to predict, of objects as `predict` takes them in JSON lines.

        Raises:
            ValueError: about the object that is wrong, as "example 3: text is empty".
        """
        rows = object_rows(objects)
        if not rows:
            return []
        # The class that says last how data is read.
        owner = next(cls for cls in type(self).__mro__ if vars(cls).keys() & {"from_rows", "read"})
        if "from_rows" in vars(owner):
            return self.from_rows(rows, "predict")
        with tempfile.TemporaryDirectory() as folder:  # a task that reads files only
            file = Path(folder) / "examples.jsonl"
            file.write_text("".join(json.dumps(row.values) + "\n" for row in rows), encoding="utf-8")
            try:
                return self.read(file, "predict")
            except ValueError as error:
                raise ValueError(str(error).replace(f"{file}, row", "example")) from error

    def fit(self, examples: Sequence[Example]) -> None:  # noqa: B027
        """Look at the training examples once, e.g. to set `labels`. Options that were given stay."""

    @abstractmethod
    def encode(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, training: bool
    ) -> list[Feature]:
        """Features in the order of the examples, one or more (or, in training, none) each.

        Lists of ints as the tokenizer gives them, `labels` where the example has a label, and "example", the index of
        the example in `examples`. No feature is longer than `max_length`.
        """

    def encode_again(
        self,
        examples: Sequence[Example],
        features: Sequence[Feature],
        outputs: Sequence[Output],
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Feature]:
        """Features that depend on the outputs of the first ones, where a task reads twice; `decode` gets both."""
        return []

    @abstractmethod
    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Prediction]:
        """A prediction for each example; `outputs` are those of `features`, one each."""

    @abstractmethod
    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Metrics in percent, `metric` among them. All examples have labels."""

    def submission(self, split: str, predictions: Sequence[Prediction]) -> dict[str, str]:
        """Name -> text of the files that the task's leaderboard takes for `split`; empty where there is none."""
        return {}

    def save(self, folder: Path) -> None:
        """Write `task.json` into a model's folder."""
        content = {"format": _FORMAT, "task": task_path(type(self)), "head": self.head, "options": asdict(self)}
        write_whole(folder / TASK_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def num_tokens(feature: Feature) -> int:
    """Tokens of a feature, all choices together."""
    ids = feature["input_ids"]
    return sum(map(len, ids)) if ids and isinstance(ids[0], list) else len(ids)


def is_labelled(split: str) -> bool:
    """Whether every example of a split must have a label: of "train", "dev" and "dev_...", not of "test", "predict"."""
    return split == "train" or split.startswith("dev")


def task_class(name: str) -> type[Task]:
    """The class of a task: by its name, or by `FILE.py:Class` or `module:Class` for one of your own.

    Raises:
        ValueError: there is none of that name.
    """
    if ":" in name:
        return _own_task(name)
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}{nearest(name, TASKS)} (tasks: {', '.join(TASKS)}, or FILE.py:Class)")
    module, cls = TASKS[name]
    return getattr(importlib.import_module(f"electra_fast.finetuning.tasks.{module}"), cls)


def _own_task(name: str) -> type[Task]:
    source, _, cls = name.rpartition(":")
    file = Path(source)
    try:
        if file.suffix == ".py":
            spec = importlib.util.spec_from_file_location(file.stem, file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise ValueError(f"no task {name!r}: {error}") from error
    found = getattr(module, cls, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ValueError(f"{source} holds no task {cls!r}: expected a subclass of electra_fast.finetuning.Task")
    found.source = str(file.resolve()) if file.suffix == ".py" else source
    return found


def task_path(cls: type[Task]) -> str:
    """What `task_class` takes to find the class again."""
    if cls.name in TASKS and task_class(cls.name) is cls:
        return cls.name
    return f"{getattr(cls, 'source', cls.__module__)}:{cls.__qualname__}"


def load_task(folder: Path) -> Task:
    """The task that a fine-tuned model was trained for.

    Raises:
        ValueError: the folder holds no `task.json`, or a damaged one, or the task is of the user's own and gone.
    """
    file = folder / TASK_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        cls = task_class(content["task"])
        known = {field.name for field in fields(cls)}
        if content["format"] != _FORMAT or unknown_options(content["options"], known):
            raise ValueError(f"{file} is of another version of electra-fast")
        task = cls(**content["options"])
        task.head = content["head"]
        return task
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no {TASK_FILE}: expected a model that electra-fast has fine-tuned") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def unknown_options(options: dict[str, Any], known: set[str]) -> list[str]:
    """Options that a task does not have."""
    return sorted(set(options) - known)
