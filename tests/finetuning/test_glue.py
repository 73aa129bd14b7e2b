"""GLUE's tasks: files of its own layout, features, metrics, the leaderboard's files, and mistakes in files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from electra_fast.finetuning.task import task_class
from tests.finetuning.words import read_ids, word_tokenizer

PAIR = {"text": 'He said "no .', "text_pair": "No , he said ."}
FIRST = "index\tsentence1\tsentence2"
MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
)
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
STSB_ROW = '7\tnews\tMSRpar\t2012\t0001\tnone\tnone\tHe said "no .\tNo , he said .'
MNLI_ROW = '7\t31193\t31193n\ttravel\t( He )\t( No )\t(ROOT He)\t(ROOT No)\tHe said "no .\tNo , he said .'


def both(text: str) -> str:
    return f"7\t{PAIR['text']}\t{PAIR['text_pair']}{text}"


# Task -> its folder; its files, each with header ("" for none), a row and the example that the row is; rows of a label
# and then, of files for the leaderboard, index and texts.
FILES: dict[str, tuple[str, dict[str, tuple[str, str, dict[str, Any]]]]] = {
    "cola": (
        "CoLA",
        {
            "train": ("", 'gj04\t1\t\tHe said "no .', {"text": 'He said "no .', "label": "1"}),
            "dev": ("", 'gj04\t0\t*\tHe "no said .', {"text": 'He "no said .', "label": "0"}),
            "test": ("index\tsentence", '7\tHe said "no .', {"text": 'He said "no .', "index": "7"}),
        },
    ),
    "sst2": (
        "SST-2",
        {
            "train": ("sentence\tlabel", 'a "charming journey \t1', {"text": 'a "charming journey', "label": "1"}),
            "dev": ("sentence\tlabel", "dull . \t0", {"text": "dull .", "label": "0"}),
            "test": ("index\tsentence", "7\tdull .", {"text": "dull .", "index": "7"}),
        },
    ),
    "mrpc": (
        "MRPC",
        {
            "train": (
                "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
                '1\t702876\t702977\tHe said "no .\tNo , he said .',
                {**PAIR, "label": "1"},
            ),
            "test": (
                "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
                '7\t702876\t702977\tHe said "no .\tNo , he said .',
                {**PAIR, "index": "7"},
            ),
        },
    ),
    "stsb": (
        "STS-B",
        {
            "train": (f"{STSB}\tscore", f"{STSB_ROW}\t3.800", {**PAIR, "label": 3.8}),
            "dev": (f"{STSB}\tscore", f"{STSB_ROW}\t0", {**PAIR, "label": 0.0}),
            "test": (STSB, STSB_ROW, {**PAIR, "index": "7"}),
        },
    ),
    "qqp": (
        "QQP",
        {
            "train": (
                "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
                '9\t1\t2\tbroken in\n\tthe middle ?\t0\n7\t15\t16\tHe said "no .\tNo , he said .\t1',
                {**PAIR, "label": "1"},
            ),
            "dev": (
                "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
                "7\t15\t16\tDevelop it ?\t\t0",
                {"text": "Develop it ?", "text_pair": "", "label": "0"},
            ),
            "test": ("id\tquestion1\tquestion2", both(""), {**PAIR, "index": "7"}),
        },
    ),
    "mnli": (
        "MNLI",
        {
            "train": (
                f"{MNLI}\tsentence1\tsentence2\tlabel1\tgold_label",
                f"{MNLI_ROW}\tneutral\tneutral",
                {**PAIR, "label": "neutral"},
            ),
            **{
                f"dev_{kind}": (
                    f"{MNLI}\tsentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
                    f"{MNLI_ROW}\tneutral\tentailment\tentailment\tneutral\tentailment\tentailment",
                    {**PAIR, "label": "entailment"},
                )
                for kind in ("matched", "mismatched")
            },
            **{
                f"test_{kind}": (f"{MNLI}\tsentence1\tsentence2", MNLI_ROW, {**PAIR, "index": "7"})
                for kind in ("matched", "mismatched")
            },
        },
    ),
    "qnli": (
        "QNLI",
        {
            "train": (
                "index\tquestion\tsentence\tlabel",
                both("\tnot_entailment"),
                {**PAIR, "label": "not_entailment"},
            ),
            "test": ("index\tquestion\tsentence", both(""), {**PAIR, "index": "7"}),
        },
    ),
    "rte": (
        "RTE",
        {
            "dev": (f"{FIRST}\tlabel", both("\tentailment"), {**PAIR, "label": "entailment"}),
            "test": (FIRST, both(""), {**PAIR, "index": "7"}),
        },
    ),
    "wnli": (
        "WNLI",
        {
            "dev": (f"{FIRST}\tlabel", both("\t1"), {**PAIR, "label": "1"}),
            "test": (FIRST, both(""), {**PAIR, "index": "7"}),
        },
    ),
}


def _write(folder: Path, task: str) -> Path:
    """The folder that holds the task's by GLUE's name."""
    name, files = FILES[task]
    (folder / name).mkdir()
    for split, (header, row, _) in files.items():
        lines = [line for line in (header, row) if line]
        (folder / name / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_official_layout(tmp_path: Path, name: str) -> None:
    task = task_class(name)()
    folder, files = FILES[name]
    holder = _write(tmp_path, name)
    for path in (holder, holder / folder):
        assert task.files(path) == {split: holder / folder / f"{split}.tsv" for split in files}
    for split, (_, _, example) in files.items():
        assert task.read(holder / folder / f"{split}.tsv", split) == [example]


@pytest.mark.parametrize("place", ["diagnostic/diagnostic.tsv", "AX/AX.tsv", "MNLI/diagnostic.tsv"])
def test_the_diagnostic_set_is_mnlis(tmp_path: Path, place: str) -> None:
    task = task_class("mnli")()
    holder = _write(tmp_path, "mnli")
    file = holder / place
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{FIRST}\n{both('')}\n", encoding="utf-8")
    for path in (holder, holder / "MNLI"):
        assert list(task.files(path)) == [*FILES["mnli"][1], "ax"]
        assert task.files(path)["ax"] == file
    assert task.read(file, "ax") == [{**PAIR, "index": "7"}]


# DATA.md's counts, and of the test files, whose lines are numbered from 0.
REAL = {
    "cola": {"train": 8551, "dev": 1043, "test": 1063},
    "sst2": {"train": 67349, "dev": 872, "test": 1821},
    "mrpc": {"train": 3668, "dev": 408, "test": 1725},
    "stsb": {"train": 5749, "dev": 1500, "test": 1379},
    "rte": {"train": 2490, "dev": 277, "test": 3000},
    "wnli": {"train": 635, "dev": 71, "test": 146},
    "qnli": {"dev": 5463},
    "mnli": {"ax": 1104},
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_whole(shared_data: Callable[[str], Path], name: str) -> None:
    task = task_class(name)()
    files = task.files(shared_data("glue"))
    examples = {split: task.read(file, split) for split, file in files.items()}
    assert {split: len(rows) for split, rows in examples.items()} == REAL[name]
    for split, rows in examples.items():
        unlabelled = split in ("test", "ax")
        assert {key for row in rows for key in row} - {"text", "text_pair"} == {"index" if unlabelled else "label"}
        if unlabelled:
            assert [row["index"] for row in rows] == [str(number) for number in range(len(rows))]
        elif task.labels is not None:
            assert {row["label"] for row in rows} == set(task.labels)
        else:
            assert {min(row["label"] for row in rows), max(row["label"] for row in rows)} == {0.0, 5.0}


def test_real_mrpc_is_split_by_its_dev_ids(shared_data: Callable[[str], Path]) -> None:
    lines = shared_data("glue/MRPC/dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    listed = shared_data("glue/MRPC/dev_ids.tsv").read_text(encoding="utf-8").splitlines()
    assert sorted(tuple(line.split("\t")[1:3]) for line in lines) == sorted(tuple(line.split("\t")) for line in listed)


def test_features() -> None:
    tokenizer = word_tokenizer("a b c d e f")
    task = task_class("rte")(max_length=7)
    examples = [
        {"text": "a b", "text_pair": "c", "label": "not_entailment"},
        {"text": "a b c d e", "text_pair": "d f", "index": "0"},
    ]
    whole, cut = task.encode(examples, tokenizer, training=True)
    assert read_ids(tokenizer, whole["input_ids"]) == "[CLS] a b [SEP] c [SEP]"
    assert whole["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert (whole["labels"], whole["example"]) == (1, 0)
    assert read_ids(tokenizer, cut["input_ids"]) == "[CLS] a b [SEP] d f [SEP]"
    assert cut.keys() == {"input_ids", "token_type_ids", "example"}


@pytest.mark.parametrize(("name", "label", "target"), [("mrpc", "1", 1), ("stsb", 3.8, 3.8 / 5)])
def test_unordered_pairs_are_learned_both_ways(name: str, label: Any, target: float) -> None:
    tokenizer = word_tokenizer("a b c")
    examples = [{"text": "a", "text_pair": "b c", "label": label}, {"text": "c", "text_pair": "a", "label": label}]
    ways = ["[CLS] a [SEP] b c [SEP]", "[CLS] b c [SEP] a [SEP]", "[CLS] c [SEP] a [SEP]", "[CLS] a [SEP] c [SEP]"]

    def encoded(*, training: bool, **options: bool) -> list[tuple[int, str]]:
        features = task_class(name)(**options).encode(examples, tokenizer, training=training)
        assert [feature["labels"] for feature in features] == pytest.approx([target] * len(features))
        return [(feature["example"], read_ids(tokenizer, feature["input_ids"])) for feature in features]

    assert encoded(training=True) == list(zip([0, 0, 1, 1], ways, strict=True))
    once = [(0, ways[0]), (1, ways[2])]
    assert encoded(training=True, double_unordered=False) == encoded(training=False) == once


def test_scores() -> None:
    examples = [{"label": label} for label in "1110"]
    predictions = [{"label": label} for label in "1101"]
    wanted = {
        "cola": {"matthews_correlation": 100 * (2 * 0 - 1 * 1) / (3 * 3 * 1 * 1) ** 0.5, "accuracy": 50},
        "sst2": {"accuracy": 50},
        "mrpc": {"accuracy": 50, "f1": 100 * 4 / 6},
        "qqp": {"accuracy": 50, "f1": 100 * 4 / 6},
        "wnli": {"accuracy": 50},
    }
    for name, metrics in wanted.items():
        assert task_class(name)().score(examples, predictions) == pytest.approx(metrics, abs=1e-9), name
    sts = task_class("stsb")()
    examples = [{"label": float(number)} for number in (1, 2, 3, 4, 5)]
    predictions = [{"score": number} for number in (2, 1, 4, 3, 5)]
    assert sts.score(examples, predictions) == pytest.approx({"pearson": 80, "spearman": 80}, abs=1e-9)


@pytest.mark.parametrize("name", [*FILES, "stsb"])
def test_the_metric_is_among_the_scores(name: str) -> None:
    task = task_class(name)()
    labels = task.labels or [1.0, 4.0]
    predictions = [{"label": label, "score": label} for label in labels]
    scores = task.score([{"label": label} for label in labels], predictions)
    assert scores[task.metric] == pytest.approx(100)


def test_the_papers_epochs() -> None:
    assert {name: task_class(name).epochs for name in FILES} == dict.fromkeys(FILES, 3) | {"rte": 10, "stsb": 10}


@pytest.mark.parametrize(
    ("name", "split", "file", "words"),
    [
        ("cola", "test", "CoLA.tsv", ["0", "1"]),
        ("sst2", "test", "SST-2.tsv", ["0", "1"]),
        ("mrpc", "test", "MRPC.tsv", ["0", "1"]),
        ("qqp", "test", "QQP.tsv", ["0", "1"]),
        ("mnli", "test_matched", "MNLI-m.tsv", ["contradiction", "entailment", "neutral"]),
        ("mnli", "test_mismatched", "MNLI-mm.tsv", ["contradiction", "entailment", "neutral"]),
        ("mnli", "ax", "AX.tsv", ["contradiction", "entailment", "neutral"]),
        ("qnli", "test", "QNLI.tsv", ["entailment", "not_entailment"]),
        ("rte", "test", "RTE.tsv", ["entailment", "not_entailment"]),
        ("wnli", "test", "WNLI.tsv", ["0", "1"]),
    ],
)
def test_the_leaderboards_files(name: str, split: str, file: str, words: list[str]) -> None:
    task = task_class(name)()
    examples = [{"text": "a", "index": str(10 + number)} for number in range(len(words))]
    logits = [np.eye(len(words), dtype=np.float32)[number] for number in range(len(words))]
    predictions = task.decode(examples, [{}] * len(words), logits)
    rows = "".join(f"{10 + number}\t{word}\n" for number, word in enumerate(words))
    assert task.submission(split, predictions) == (file, f"index\tprediction\n{rows}")
    assert task.submission("dev", predictions) is None


def test_the_leaderboards_scores_are_clipped() -> None:
    task = task_class("stsb")()
    examples = [{"text": "a", "text_pair": "b", "index": str(number)} for number in range(3)]
    predictions = task.decode(examples, [{}] * 3, [np.array([value], np.float32) for value in (0.5, 1.1, -0.1)])
    assert [prediction["score"] for prediction in predictions] == pytest.approx([2.5, 5.5, -0.5], abs=1e-6)
    assert task.submission("test", predictions) == ("STS-B.tsv", "index\tprediction\n0\t2.500\n1\t5.000\n2\t0.000\n")


def test_scores_as_they_are() -> None:
    task = task_class("stsb")(low=0, high=1)
    (feature,) = task.encode([{"text": "a", "text_pair": "b", "label": 3.8}], word_tokenizer("a b"), training=False)
    assert feature["labels"] == 3.8
    (prediction,) = task.decode([{}], [feature], [np.array([3.5], np.float32)])
    assert prediction == {"score": 3.5}


@pytest.mark.parametrize(
    ("name", "split", "content", "message"),
    [
        ("cola", "train", "", "FILE holds no row"),
        ("cola", "train", "gj04\t1\tHe .", "FILE, row 1: 3 fields, but 4 columns: source, label, mark, sentence"),
        ("cola", "train", "a\t1\t\tHe .\na\t2\t\tHe .", "FILE, row 2: unknown label '2' (labels: 0, 1)"),
        ("cola", "train", "a\t\t\tHe .", "FILE, row 1: label must be a label; got ''"),
        ("cola", "train", "a\t1\t\t ", "FILE, row 1: sentence is empty"),
        ("sst2", "train", "sentence\tlabel\n", "FILE holds no row"),
        ("sst2", "train", "sentence\tlabels\nx\t1", "FILE, row 2: no column 'label'; did you mean labels? (columns: "),
        ("sst2", "test", "sentence\nx", "FILE, row 2: no column 'index' (columns: sentence)"),
        ("rte", "dev", f"{FIRST}\tlabel\n0\ta\tb\tentail", "FILE, row 2: unknown label 'entail'; did you mean entailm"),
        ("rte", "dev", f"{FIRST}\tlabel\n0\ta\tb", "FILE, row 2: 3 fields, but 4 columns: index, sentence1, sentence2"),
        ("qqp", "dev", "id\tquestion1\tquestion2\tis_duplicate\n0\ta", "FILE, row 2: 2 fields, but 4 columns: id, que"),
        ("qqp", "train", "id\tquestion1\tquestion2\tis_duplicate\n0\ta", "FILE holds no row"),
        ("stsb", "dev", f"{FIRST}\tscore\n0\ta\tb\tnan", "FILE, row 2: score must be a number; got 'nan'"),
        ("stsb", "dev", f"{FIRST}\tscore\n0\ta\tb\tgood", "FILE, row 2: score must be a number; got 'good'"),
        ("stsb", "dev", f"{FIRST}\tscore\n0\ta\tb\t5.1", "FILE, row 2: score must be 0 to 5; got 5.1"),
        ("mnli", "dev_matched", f"{FIRST}\tgold_label\n0\ta\tb\t-", "FILE, row 2: unknown label '-' (labels: contrad"),
    ],
)
def test_mistakes_in_files(tmp_path: Path, name: str, split: str, content: str, message: str) -> None:
    file = tmp_path / "file.tsv"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message.replace("FILE", str(file)))) as caught:
        task_class(name)().read(file, split)
    assert "\n" not in str(caught.value)


def test_mistakes_in_folders_and_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no data of cola: expected train.tsv, dev.tsv, test.tsv in it or in"):
        task_class("cola")().files(tmp_path)
    with pytest.raises(ValueError, match=r"labels of cola are 0, 1; got \['a', 'b'\]"):
        task_class("cola")(labels=["a", "b"])
    with pytest.raises(ValueError, match=r"labels of stsb are numbers; got \['0', '1'\]"):
        task_class("stsb")(labels=["0", "1"])
