"""Classification, regression and multiple choice: files, features, predictions, scores, and mistakes in files."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from electra_fast.finetuning.task import Task, task_class
from tests.finetuning.words import read_ids, word_tokenizer


def _read(folder: Path, task: Task, name: str, content: str, split: str = "train") -> list[dict[str, Any]]:
    file = folder / name
    file.write_text(content, encoding="utf-8")
    return task.read(file, split)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", 'text,n,label\n"Good, ""very"" good",1,yes\n bad ,2, no \n'),
        ("x.tsv", 'text\tn\tlabel\nGood, "very" good\t1\tyes\nbad\t2\tno'),
        ("x.jsonl", '{"text": "Good, \\"very\\" good", "label": "yes"}\n\n{"n": 2, "text": "bad", "label": "no"}\n'),
    ],
)
def test_the_three_kinds_of_files(tmp_path: Path, name: str, content: str) -> None:
    task = task_class("classification")()
    examples = _read(tmp_path, task, name, content)
    assert examples == [{"text": 'Good, "very" good', "label": "yes"}, {"text": "bad", "label": "no"}]
    task.fit(examples)
    assert task.labels == ["no", "yes"]


def test_columns_are_options_and_labels_may_be_absent(tmp_path: Path) -> None:
    task = task_class("classification")(text="a", text_pair="b", label="c", labels=["0", "1", "true"])
    content = '{"a": "x", "b": "y", "c": 1}\n{"a": "x", "b": "z", "c": true}\n'
    labelled = [{"text": "x", "text_pair": "y", "label": "1"}, {"text": "x", "text_pair": "z", "label": "true"}]
    assert _read(tmp_path, task, "x.jsonl", content) == labelled
    assert _read(tmp_path, task, "y.csv", "a,b,c\nx,y,\nx,z,0\n", "predict") == [
        {"text": "x", "text_pair": "y"},
        {"text": "x", "text_pair": "z", "label": "0"},
    ]


def test_a_class_and_its_probability() -> None:
    task = task_class("classification")(labels=["a", "b", "c"])
    (prediction,) = task.decode([{}], [{}], [np.log(np.array([1, 2, 5], np.float32))])
    assert prediction == {"label": "c", "probabilities": pytest.approx({"a": 0.125, "b": 0.25, "c": 0.625}, abs=1e-6)}
    (sure,) = task.decode([{}], [{}], [np.array([-1e4, 0, 1e4], np.float32)])
    assert sure["probabilities"] == {"a": 0, "b": 0, "c": 1}


def test_numbers_are_learned_between_the_smallest_and_the_largest(tmp_path: Path) -> None:
    task = task_class("regression")()
    examples = _read(tmp_path, task, "x.csv", "text,score\na,-10\nb,30\na b,1e1\n")
    task.fit(examples)
    assert (task.low, task.high) == (-10, 30)
    features = task.encode(examples, word_tokenizer("a b"), training=True)
    assert [feature["labels"] for feature in features] == [0.0, 1.0, 0.5]
    predictions = task.decode(examples, features, [np.array([value], np.float32) for value in (0, 1, 0.25)])
    assert predictions == [{"score": -10.0}, {"score": 30.0}, {"score": 0.0}]
    scores = task.score(examples, predictions)
    pearson = _pearson([-10, 30, 10], [-10, 30, 0])
    assert scores == pytest.approx({"pearson": 100 * pearson, "spearman": 100, "mean_squared_error": 100 / 3}, abs=1e-9)
    with pytest.raises(ValueError, match="low = 3 must be below high = 3: do all texts have one number"):
        task_class("regression")().fit([{"label": 3.0}, {"label": 3.0}])


def _pearson(x: list[float], y: list[float]) -> float:
    dx, dy = ([value - sum(values) / len(values) for value in values] for values in (x, y))
    products = [sum(a * b for a, b in zip(*pair, strict=True)) for pair in ((dx, dy), (dx, dx), (dy, dy))]
    return products[0] / math.sqrt(products[1] * products[2])


def test_choices(tmp_path: Path) -> None:
    task = task_class("choice")(max_length=9)
    rows = [
        {"context": "a b", "question": "c", "choices": ["d", "e f"], "label": 1},
        {"question": "c", "choices": ["d", "e"], "label": "A"},
        {"context": "a b", "question": "", "choices": ["d", "e"], "label": " b "},
        {"context": "a b c d e f", "question": "a", "choices": ["b", "c"], "label": "0"},
    ]
    examples = _read(tmp_path, task, "x.jsonl", "\n".join(map(json.dumps, rows)))
    assert [example["label"] for example in examples] == [1, 0, 1, 0]
    tokenizer = word_tokenizer("a b c d e f")
    features = task.encode(examples, tokenizer, training=True)
    assert [[read_ids(tokenizer, ids) for ids in feature["input_ids"]] for feature in features] == [
        ["[CLS] a b [SEP] c d [SEP]", "[CLS] a b [SEP] c e f [SEP]"],
        ["[CLS] c [SEP] d [SEP]", "[CLS] c [SEP] e [SEP]"],
        ["[CLS] a b [SEP] d [SEP]", "[CLS] a b [SEP] e [SEP]"],
        ["[CLS] a b c d [SEP] a b [SEP]", "[CLS] a b c d [SEP] a c [SEP]"],
    ]
    assert [(feature["labels"], feature["example"]) for feature in features] == [(1, 0), (0, 1), (1, 2), (0, 3)]
    outputs = [np.log(np.array(odds, np.float32)) for odds in ([1, 3], [1, 3], [3, 1], [3, 1])]
    predictions = task.decode(examples, features, outputs)
    assert predictions[0] == {"label": 1, "choice": "e f", "probabilities": pytest.approx([0.25, 0.75], abs=1e-6)}
    assert task.score(examples, predictions) == {"accuracy": 50.0}


CHOICE = '{"question": "q", "choices": ["a", "b"], "label": 0}\n'


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("classification", "x.txt", "", "FILE: expected a file whose name ends in .csv, .tsv, .jsonl"),
        ("classification", "x.csv", "", "FILE holds no row"),
        ("classification", "x.csv", "text,label\n", "FILE holds no row"),
        ("classification", "x.csv", "text,label\na,b,c\n", "FILE, row 2: 3 fields, but 2 columns: text, label"),
        (
            "classification",
            "x.csv",
            "txt,label\na,b\n",
            "FILE, row 2: no column 'text'; did you mean txt? (columns: tx",
        ),
        ("classification", "x.csv", "text\na\n", "FILE, row 2: no column 'label' (columns: text)"),
        ("classification", "x.csv", "text,label\na,\n", "FILE, row 2: label must be a label; got ''"),
        ("classification", "x.csv", 'text,label\na,b\n"a"x,b\n', "FILE, after row 2: ',' expected after '\"'"),
        ("classification", "x.tsv", "text\tlabel\na\tb\n \tb\n", "FILE, row 3: text is empty"),
        ("classification", "x.jsonl", '{"text": "a", "label": "b"}\n{"text"\n', "FILE, row 2: broken JSON: Expecting"),
        ("classification", "x.jsonl", "[1]\n", "FILE, row 1: expected a JSON object; got [1]"),
        ("classification", "x.jsonl", '{"text": 3, "label": "b"}', "FILE, row 1: text must be text; got 3"),
        ("classification", "x.jsonl", '{"text": "a", "label": null}', "FILE, row 1: label must be a label; got None"),
        ("classification", "x.jsonl", '{"text": "a", "label": 0.5}', "FILE, row 1: label must be a label; got 0.5"),
        ("classification", "x.jsonl", '{"label": "b"}', "FILE, row 1: no column 'text' (columns: label)"),
        ("regression", "x.csv", "text,score\na,1\nb,nan\n", "FILE, row 3: score must be a number; got 'nan'"),
        ("regression", "x.csv", "text,score\na,inf\n", "FILE, row 2: score must be a number; got 'inf'"),
        ("regression", "x.csv", "text,score\na,\n", "FILE, row 2: score must be a number; got ''"),
        ("regression", "x.jsonl", '{"text": "a", "score": NaN}', "FILE, row 1: score must be a number; got nan"),
        ("regression", "x.jsonl", '{"text": "a", "score": true}', "FILE, row 1: score must be a number; got True"),
        ("regression", "x.jsonl", '{"text": "a"}', "FILE, row 1: no column 'score' (columns: text)"),
        ("choice", "x.jsonl", "", "FILE holds no row"),
        ("choice", "x.jsonl", '{"choices": ["a", "b"]}', "FILE, row 1: neither context nor question: expected one"),
        ("choice", "x.jsonl", '{"question": "q"}', "FILE, row 1: no column 'choices' (columns: question)"),
        ("choice", "x.jsonl", '{"question": "q", "choices": "ab"}', "FILE, row 1: choices must be a list of two texts"),
        ("choice", "x.jsonl", '{"question": "q", "choices": ["a"]}', "FILE, row 1: choices must be a list of two text"),
        ("choice", "x.jsonl", '{"question": "q", "choices": ["a", ""]}', "FILE, row 1: choices must be texts that are"),
        ("choice", "x.jsonl", CHOICE.replace("0", "2"), "FILE, row 1: label must be the index of a choice, 0 to 1, or"),
        ("choice", "x.jsonl", CHOICE.replace("0", '"C"'), "FILE, row 1: label must be the index of a choice, 0 to 1,"),
        ("choice", "x.jsonl", CHOICE.replace("0", "true"), "FILE, row 1: label must be the index of a choice, 0 to 1"),
        (
            "choice",
            "x.jsonl",
            CHOICE.replace(', "label": 0', ""),
            "FILE, row 1: no column 'label' (columns: question, ",
        ),
        ("choice", "x.jsonl", CHOICE + CHOICE.replace('"a", ', '"a", "c", '), "FILE, row 2: 3 choices, but 2 in the r"),
    ],
)
def test_mistakes_in_files(tmp_path: Path, task: str, name: str, content: str, message: str) -> None:
    expected = re.escape(message.replace("FILE", str(tmp_path / name)))
    with pytest.raises(ValueError, match=f"^{expected}") as caught:
        _read(tmp_path, task_class(task)(), name, content)
    assert "\n" not in str(caught.value)


def test_labels_that_training_did_not_have(tmp_path: Path) -> None:
    task = task_class("classification")()
    task.fit([{"label": "good"}, {"label": "bad"}])
    with pytest.raises(ValueError, match=r"row 2: unknown label 'godo'; did you mean good\? \(labels: bad, good\)"):
        _read(tmp_path, task, "x.csv", "text,label\na,godo\n", "dev")
    with pytest.raises(ValueError, match="all training texts have the label 'good': nothing to learn"):
        task_class("classification")().fit([{"label": "good"}, {"label": "good"}])
