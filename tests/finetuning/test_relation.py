"""Relations: both spans stay and are marked, however the row says them, and F1 is TACRED's."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import BertTokenizer

from electra_fast.finetuning.markers import find_markers
from electra_fast.finetuning.metrics.relation import relation_scores
from electra_fast.finetuning.tasks.relation import Relation

ROW = {"text": "Ada was born in London .", "head": [0, 3], "tail": [16, 22], "label": "born_in"}
TOKENS = {"tokens": ["Ada", "was", "born", "in", "New", "York", "."], "head": [0, 1], "tail": [4, 6], "label": "x"}


def make_tokenizer(*more: str) -> BertTokenizer:
    words = ["ada", "was", "born", "in", "london", ".", "new", "york", "person", "city", "of", "w", "##w", *more]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, do_lower_case=True)


def read(folder: Path, *rows: Any, split: str = "train", **options: Any) -> list[dict[str, Any]]:
    file = folder / "train.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return Relation(**options).read(file, split)


def marked(folder: Path, row: dict[str, Any], **options: Any) -> str:
    """The tokens of the row's feature."""
    tokenizer = make_tokenizer("@", "#")
    task = Relation(labels=["born_in", "x"], **options)
    (feature,) = task.encode(read(folder, row), tokenizer, training=True)
    return " ".join(tokenizer.convert_ids_to_tokens(feature["input_ids"]))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ROW, "@ ada @ was born in # london # ."),
        (ROW | {"head": {"start": 16, "end": 22}, "tail": {"pos": [0, 3]}}, "# ada # was born in @ london @ ."),
        (
            ROW | {"head": {"start": 0, "end": 3, "type": "person"}, "tail": {"pos": [16, 22], "type": "city"}},
            "@ person @ ada @ was born in # city # london # .",
        ),
        (TOKENS, "@ ada @ was born in # new york # ."),
        (TOKENS | {"head": [4, 6], "tail": [5, 6]}, "ada was born in @ new # york # @ ."),  # one within the other
        (TOKENS | {"head": [4, 5], "tail": [4, 6]}, "ada was born in # @ new @ york # ."),
        (TOKENS | {"head": [4, 5], "tail": [5, 6]}, "ada was born in @ new @ # york # ."),
        ({"text": "  Ada 😂北 ", "head": [2, 5], "tail": [7, 8], "label": "x"}, "@ ada @ [UNK] # [UNK] #"),
        ({"tokens": ["head", "Ada"], "head": [0, 1], "tail": [1, 2], "label": "x"}, "@ [UNK] @ # ada #"),
    ],
)
def test_spans_stand_between_markers(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    assert marked(tmp_path, row) == f"[CLS] {expected} [SEP]"


def test_names_of_other_data(tmp_path: Path) -> None:
    """OpenNRE's."""
    row = {"token": ["Ada", "in", "London"], "h": {"pos": [0, 1]}, "t": {"pos": [2, 3]}, "relation": "x"}
    options = {"tokens": "token", "head_span": "h", "tail_span": "t", "label": "relation"}
    assert read(tmp_path, row, **options) == [{"text": "Ada in London", "head": [0, 3], "tail": [7, 13], "label": "x"}]


def test_of_long_texts_what_is_near_the_markers_is_kept(rng_seed: int, tmp_path: Path) -> None:
    draw = random.Random(rng_seed)
    tokenizer = make_tokenizer("@", "#")
    task = Relation(labels=["x", "y"], max_length=16)
    for _ in range(50):
        tokens = ["w" * draw.randrange(1, 4) for _ in range(60)]
        head, tail = sorted(draw.sample(range(60), 2))
        tokens[head], tokens[tail] = "ada", "london"
        rows = [{"tokens": tokens, "head": [head, head + 1], "tail": [tail, tail + 1], "label": "x"}]
        (feature,) = task.encode(read(tmp_path, *rows), tokenizer, training=True)
        kept = tokenizer.convert_ids_to_tokens(feature["input_ids"])
        assert len(kept) == 16
        assert "@ ada @" in " ".join(kept)
        assert "# london #" in " ".join(kept)


def test_markers_are_tokens_that_the_tokenizer_knows() -> None:
    tokenizer = make_tokenizer("$", "#")
    assert find_markers(tokenizer, 2) == [[19], [18]]  # of @ # $ ... the first that are there
    assert find_markers(tokenizer, 1, ["city"]) == [[14]]
    with pytest.raises(ValueError, match=r"knows too few of @ # .* to mark with: give 3 of its own words"):
        find_markers(make_tokenizer("#"), 3)  # it knows . too
    with pytest.raises(ValueError, match="marker '@' is unknown to the tokenizer or the same as another to it"):
        find_markers(tokenizer, 2, ["@", "#"])
    with pytest.raises(ValueError, match="marker 'CITY' is unknown to the tokenizer or the same as another to it"):
        find_markers(tokenizer, 2, ["city", "CITY"])
    with pytest.raises(ValueError, match="markers are # #: expected 2, all different"):
        find_markers(tokenizer, 2, ["#", "#"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "row 1: broken JSON"),
        ("", "holds no row"),
        ("[1]", "row 1: expected a JSON object"),
        ({"head": [0, 1]}, "row 1: no column 'text'"),
        (ROW | {"text": " "}, "row 1: text is empty"),
        ({"tokens": "Ada"}, "row 1: tokens must be a list of texts; got 'Ada'"),
        ({"text": "Ada", "tail": [0, 1]}, "row 1: no column 'head'"),
        (ROW | {"head": None}, 'row 1: head must be {"start": 3, "end": 5} or [3, 5], end exclusive; got None'),
        (ROW | {"head": {"start": 3}}, 'row 1: head must be {"start": 3, "end": 5}'),
        (ROW | {"head": [0, "3"]}, 'row 1: head must be {"start": 3, "end": 5}'),
        (ROW | {"head": [True, 3]}, 'row 1: head must be {"start": 3, "end": 5}'),
        (ROW | {"tail": [16, 25]}, "row 1: tail is [16, 25), which is no part of the 24 characters"),
        (ROW | {"tail": [-1, 2]}, "row 1: tail is [-1, 2), which is no part"),
        (ROW | {"tail": [16, 16]}, "row 1: tail is [16, 16), which is no part"),
        (TOKENS | {"tail": [4, 8]}, "row 1: tail is [4, 8), which is no part of the 7 tokens"),
        (ROW | {"tail": [1, 5]}, "row 1: head and tail overlap"),
        (ROW | {"tail": [0, 3]}, "row 1: head and tail overlap"),
        (ROW | {"head": {"start": 0, "end": 3, "type": 4}}, "row 1: type of head must be text; got 4"),
        ({name: ROW[name] for name in ("text", "head", "tail")}, "row 1: no column 'label'"),
        (ROW | {"label": ""}, "row 1: label must be a label; got ''"),
    ],
)
def test_bad_rows(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        read(tmp_path, row)
    assert message in str(error.value)


def test_unknown_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 2: unknown label 'born_on'; did you mean born_in\?"):
        read(tmp_path, ROW, ROW | {"label": "born_on"}, labels=["born_in", "no_relation"])
    assert "label" not in read(tmp_path, ROW | {"label": "born_on"}, split="predict", labels=["born_in", "x"])[0]
    with pytest.raises(ValueError, match=r"expected a file whose name ends in \.jsonl"):
        Relation().read(tmp_path / "train.csv", "train")
    with pytest.raises(ValueError, match="all training texts have the label 'x': nothing to learn"):
        Relation().fit([{"label": "x"}])


@pytest.mark.parametrize(
    ("gold", "found", "precision", "recall", "f1", "accuracy"),
    [
        # a: right, wrong, missed; none: right, taken for b. Right 1, found 3, there 3.
        ("a a a - -", "a b - - b", 1 / 3, 1 / 3, 1 / 3, 2 / 5),
        ("a b - -", "a b - -", 1, 1, 1, 1),
        ("a b -", "- - -", 0, 0, 0, 1 / 3),
        ("- -", "a -", 0, 0, 0, 1 / 2),
        ("a b b -", "a b - -", 1, 2 / 3, 4 / 5, 3 / 4),
    ],
)
def test_scores_by_hand(gold: str, found: str, precision: float, recall: float, f1: float, accuracy: float) -> None:
    scores = relation_scores(gold.split(), found.split(), ["a", "b"])
    expected = {"precision": precision, "recall": recall, "f1": f1, "accuracy": accuracy}
    assert scores == pytest.approx({name: 100 * value for name, value in expected.items()}, abs=1e-6)


def test_the_label_for_no_relation_can_be_another() -> None:
    examples = [{"label": label} for label in ("a", "Other", "Other")]
    predictions = [{"label": label} for label in ("a", "a", "Other")]
    task = Relation(labels=["Other", "a"], no_relation="Other")
    assert task.score(examples, predictions)["f1"] == pytest.approx(200 / 3)
    assert Relation(labels=["Other", "a"]).score(examples, predictions)["f1"] == pytest.approx(200 / 3)
    examples, predictions = [{"label": "Other"}, {"label": "a"}], [{"label": "Other"}, {"label": "Other"}]
    assert task.score(examples, predictions)["f1"] == 0
    assert Relation(labels=["Other", "a"]).score(examples, predictions)["f1"] == 50  # all labels count
