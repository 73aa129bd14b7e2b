"""Tags of words: files of every kind are read, every word gets a prediction, and scores are those of conlleval."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer

from electra_fast.data.tokenizer import load_tokenizer
from electra_fast.finetuning import load_task
from electra_fast.finetuning.metrics.tagging import entity_scores, tag_accuracy
from electra_fast.finetuning.tasks.tagging import Tagging

CONLL = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC

Peter NNP I-NP I-PER
Ann NNP B-NP B-PER
"""


def write(folder: Path, name: str, content: str) -> Path:
    file = folder / name
    file.write_text(content, encoding="utf-8", newline="")
    return file


def read(folder: Path, content: str, name: str = "train.conll", split: str = "train", **options: object) -> list[dict]:
    return Tagging(**options).read(write(folder, name, content), split)


def make_tokenizer() -> BertTokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "北"]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, do_lower_case=True)


def test_conll_2003(tmp_path: Path) -> None:
    """Four columns parted by blanks, IOB1, document marks."""
    assert read(tmp_path, CONLL) == [
        {"words": ["EU", "rejects", "German"], "label": ["B-ORG", "O", "B-MISC"]},
        {"words": ["Peter", "Ann"], "label": ["B-PER", "B-PER"]},
    ]


@pytest.mark.parametrize("tag", ["3", "-2"])
def test_another_column(tmp_path: Path, tag: str) -> None:
    assert [example["label"] for example in read(tmp_path, CONLL, tag=tag)] == [["B-NP", "B-VP", "B-NP"], ["B-NP"] * 2]


def test_plain_tags_stay(tmp_path: Path) -> None:
    assert [example["label"] for example in read(tmp_path, CONLL, tag="2")] == [["NNP", "VBZ", "JJ"], ["NNP", "NNP"]]
    assert read(tmp_path, CONLL, plain=True)[0]["label"] == ["I-ORG", "O", "I-MISC"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a\tO\n\nb\tB-X\n", [["a"], ["b"]]),
        ("\ufeffa\tO\r\n\t\r\nb\tB-X\r\n\r\n\r\n", [["a"], ["b"]]),  # marks, CR LF, a tab between sentences
        ("a\tO\nb\tO\n\ufeff\n", [["a", "b"]]),  # as WNUT 17's dev file ends
        ("New York\tB-X\n \u3000x\tO\n", [["New York", "\u3000x"]]),  # blanks within a word
        ("\u00a0\tO\nb\tO", [["\u00a0", "b"]]),
        ("a   O\nb O \n", [["a", "b"]]),
        ("#\tO\n😂\tO\n-DOCSTART-\tO\n北\tO\n", [["#", "😂"], ["北"]]),
    ],
)
def test_ways_to_write_a_file(tmp_path: Path, content: str, expected: list[list[str]]) -> None:
    assert [example["words"] for example in read(tmp_path, content)] == expected


def test_named_columns(tmp_path: Path) -> None:
    content = "id\tform\tner\n1\ta\tB-X\n2\tb\tO\n"
    assert read(tmp_path, content, word="form", tag="ner") == [{"words": ["a", "b"], "label": ["B-X", "O"]}]
    without = "id\tform\n1\ta\n"
    assert read(tmp_path, without, split="test", word="form", tag="ner") == [{"words": ["a"]}]


def test_files_without_tags(tmp_path: Path) -> None:
    assert read(tmp_path, "a\nb\n\nc\n", split="test") == [{"words": ["a", "b"]}, {"words": ["c"]}]
    known = Tagging(labels=["O", "B-X", "I-X"])
    assert known.read(write(tmp_path, "new.txt", "a NN\nb VB\n"), "predict") == [{"words": ["a", "b"]}]


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["I-X", "I-X"]}, {"tokens": [], "tags": []}]
    content = "\n".join(map(json.dumps, rows))
    assert read(tmp_path, content, "train.jsonl") == [
        {"words": ["a", "b"], "label": ["B-X", "I-X"]},
        {"words": [], "label": []},
    ]
    (example,) = read(tmp_path, '{"text": "Ann, 北京"}', "new.jsonl", "predict")
    assert example["words"] == ["Ann", ",", "北", "京"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "train.conll holds no sentence"),
        ("\n\n \n", "train.conll holds no sentence"),
        ("-DOCSTART- O\n", "train.conll holds no sentence"),
        ("a\nb\n", "train.conll, row 1: 1 column: expected a word and its tag, parted by a tab or blank"),
        ("a\tO\nb\n", "train.conll, row 2: 1 column, but row 1 has 2"),
        ("a\tO\n\nb\tNN\tO\n", "train.conll, row 3: 3 columns, but row 1 has 2"),
        ("a\tB-X\nb\t\n", "train.conll, row 2: 1 column, but row 1 has 2"),
        ("a\tB-X\nb\tX-X\n", "train.conll, row 2: unknown tag 'X-X': expected O, or B-, I-, E- or S- and a type"),
        ("a\tO\nb\tB-\nc\tB-X", "train.conll, row 2: unknown tag 'B-'"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        read(tmp_path, content)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tag": "5"}, "row 1: 4 columns, and so no column 5"),
        ({"tag": "0"}, "row 1: 4 columns, and so no column 0"),
        ({"word": "w"}, "row 1: no column 'w' (columns: a, NN, B, O)"),
        ({"word": "a", "tag": "2"}, "word is 'a' and tag '2': give both columns by number, or both by name"),
        ({"labels": ["O", "B-LOC", "I-LOC"], "tag": "4"}, "row 2: unknown tag 'B-LCO'; did you mean B-LOC?"),
        ({"labels": ["NN", "VB"], "tag": "2"}, "row 2: unknown tag 'JJ' (tags: NN, VB)"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        read(tmp_path, "a NN B O\nb JJ I I-LCO\n", **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{\n", "row 1: broken JSON"),
        ("", "holds no row"),
        ('{"tags": []}', "row 1: no column 'tokens'"),
        ('{"tokens": ["a", 1], "tags": []}', "row 1: tokens must be a list of texts; got ['a', 1]"),
        ('{"text": 3}', "row 1: text must be text; got 3"),
        ('{"tokens": ["a"]}', "row 1: no column 'tags'"),
        ('{"tokens": ["a"], "tags": "O"}', "row 1: tags must be a list of texts; got 'O'"),
        ('{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["a", "b"], "tags": ["O"]}', "row 2: 1 tags of 2 tokens"),
    ],
)
def test_bad_json_lines(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        read(tmp_path, content, "train.jsonl")
    assert message in str(error.value)


def test_not_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "train.conll"
    file.write_bytes(b"a\tO\n\xff\xfe\tO\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        Tagging().read(file, "train")


def test_labels_are_learned(tmp_path: Path) -> None:
    """Both tags of every type: dev may begin what training only has inside. Of plain tags the most frequent first."""
    task = Tagging()
    task.fit(task.read(write(tmp_path, "train.conll", CONLL), "train"))
    assert task.labels == ["O", *(f"{p}-{kind}" for kind in ("MISC", "ORG", "PER") for p in "BI")]
    assert (task.metric, task.plain) == ("f1", False)
    task.save(tmp_path)
    assert load_task(tmp_path).labels == task.labels

    plain = Tagging(tag="2")
    plain.fit(plain.read(tmp_path / "train.conll", "train"))
    assert plain.labels == ["NNP", "JJ", "VBZ"]
    assert (plain.metric, plain.plain) == ("accuracy", True)
    plain.save(tmp_path)
    assert load_task(tmp_path).metric == "accuracy"
    with pytest.raises(ValueError, match="all training words have the tag 'O': nothing to learn"):
        Tagging().fit([{"words": ["a"], "label": ["O"]}])


def test_every_word_gets_a_tag() -> None:
    """However long the sentence; a word that the tokenizer makes nothing of is outside. Outputs here are the labels."""
    task = Tagging(max_length=8, labels=["O", "B-X", "I-X"])
    tokenizer = make_tokenizer()
    words = ["bbbbbbbbbb", "\u200b", "a", "北北", *["a", "b", "\x00"] * 20]
    labels = ["B-X", "O", "O", "B-X", *["I-X", "B-X", "O"] * 20]
    examples = [{"words": words, "label": labels}, {"words": [], "label": []}, {"words": ["\x01"], "label": ["O"]}]
    features = task.encode(examples, tokenizer, training=False)
    assert all(len(feature["input_ids"]) <= 8 for feature in features)
    outputs = [np.eye(3)[np.maximum(feature["labels"], 0)] for feature in features]
    predictions = task.decode(examples, features, outputs)
    expected = [*labels[:4], *["I-X", "B-X", "O"], *["B-X", "B-X", "O"] * 19]  # I-X begins a span after O: IOB2
    assert predictions[0]["tags"] == expected
    assert predictions[1] == {"tokens": [], "tags": [], "entities": []}
    assert predictions[2]["tags"] == ["O"]
    assert task.score(examples, predictions)["accuracy"] == pytest.approx(100 * (1 - 19 / 65))

    training = task.encode(examples, tokenizer, training=True)
    assert {feature["example"] for feature in training} == {0}  # the others hold nothing to learn from
    assert sum(label >= 0 for feature in training for label in feature["labels"]) == 43  # words with tokens


def test_entities_of_texts_have_their_characters(tmp_path: Path) -> None:
    task = Tagging(labels=["O", "B-X", "I-X"])
    examples = task.read(write(tmp_path, "new.jsonl", '{"text": "ab, 北京 a"}'), "predict")
    features = task.encode(examples, make_tokenizer(), training=False)
    output = np.zeros((len(features[0]["input_ids"]), 3))
    output[:, 0] = 1
    for word, label in ((2, 1), (3, 2)):
        output[features[0]["positions"][word], label] = 2
    (prediction,) = task.decode(examples, features, [output])
    assert prediction["tags"] == ["O", "O", "B-X", "I-X", "O"]
    assert prediction["entities"] == [{"type": "X", "start": 4, "end": 6, "text": "北京"}]


@pytest.mark.parametrize(
    ("gold", "found", "precision", "recall", "f1"),
    [
        # One right; one of the wrong type; one that ends a word early: 1 of 3 and 1 of 3.
        ("B-P I-P O B-L O B-G I-G", "B-P I-P O B-G O B-G O", 1 / 3, 1 / 3, 1 / 3),
        ("B-P I-P O B-L", "B-P O B-P B-L", 1 / 3, 1 / 2, 2 / 5),
        ("B-P B-P", "B-P I-P", 0, 0, 0),  # two people are not one
        ("B-P I-P", "B-P B-P", 0, 0, 0),
        ("B-P O", "O O", 0, 0, 0),
        ("O O", "B-P O", 0, 0, 0),
        ("O O", "O O", 0, 0, 0),
        ("B-a-b O B-a", "B-a-b O B-a", 1, 1, 1),
    ],
)
def test_entity_scores_by_hand(gold: str, found: str, precision: float, recall: float, f1: float) -> None:
    scores = entity_scores([gold.split(), ["O"]], [found.split(), ["O"]])
    assert scores["precision"] == pytest.approx(100 * precision, abs=1e-6)
    assert scores["recall"] == pytest.approx(100 * recall, abs=1e-6)
    assert scores["f1"] == pytest.approx(100 * f1, abs=1e-6)


def test_entity_scores_by_type() -> None:
    gold = [["B-P", "I-P", "O", "B-L"], ["B-L", "O"]]
    found = [["B-P", "I-P", "O", "O"], ["B-L", "B-G"]]
    scores = entity_scores(gold, found)
    assert scores["f1_P"] == pytest.approx(100)
    assert scores["f1_L"] == pytest.approx(200 / 3)  # precision 1, recall 1/2
    assert scores["f1_G"] == 0
    assert scores["f1"] == pytest.approx(200 / 3)  # 2 right of 3 and 3
    assert tag_accuracy(gold, found) == pytest.approx(400 / 6)


def test_wnut17(shared_data) -> None:
    """Counts of sentences and entities (Derczynski et al. 2017). A dev entity begins with I, as in conlleval it may."""
    folder = shared_data("ner/wnut17")
    task = Tagging()
    files = task.files(folder)
    train = task.read(files["train"], "train")
    task.fit(train)
    splits = {"train": train, "dev": task.read(files["dev"], "dev"), "test": task.read(files["test"], "test")}
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 3394, "dev": 1009, "test": 1287}
    entities = {
        split: sum(tag.startswith("B-") for example in examples for tag in example["label"])
        for split, examples in splits.items()
    }
    assert entities == {"train": 1975, "dev": 836, "test": 1079}
    kinds = ("corporation", "creative-work", "group", "location", "person", "product")
    assert task.labels == ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]


def test_wnut17_is_predicted_without_gaps(shared_data) -> None:
    """With the labels themselves as outputs, F1 is 100: no word is lost on the way."""
    task = Tagging(max_length=16)
    dev = task.read(shared_data("ner/wnut17/emerging.dev.conll"), "dev")[:200]
    task.fit(dev)
    tokenizer = load_tokenizer(shared_data("vocab/bert-base-uncased.vocab.txt"))
    features = task.encode(dev, tokenizer, training=False)
    outputs = [np.eye(len(task.labels))[np.maximum(feature["labels"], 0)] for feature in features]
    assert task.score(dev, task.decode(dev, features, outputs))["f1"] == 100
