"""Events: triggers first, then the arguments of each; scores are those of ACE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertTokenizer

from electra_fast.data.collator import IGNORED_LABEL
from electra_fast.finetuning.metrics.tagging import event_scores
from electra_fast.finetuning.tasks.events import Events

TOKENS = ["Ann", "met", "Bob", "and", "Carl", "left", "Rome"]
MEET = {
    "type": "Meet",
    "trigger": {"start": 1, "end": 2},
    "arguments": [{"role": "Who", "start": 0, "end": 1}, {"role": "Who", "start": 2, "end": 3}],
}
LEAVE = {
    "type": "Leave",
    "trigger": [5, 6],
    "arguments": [{"role": "Who", "pos": [4, 5]}, {"role": "From", "start": 6, "end": 7}],
}
ROW = {"tokens": TOKENS, "events": [MEET, LEAVE]}


def make_tokenizer() -> BertTokenizer:
    words = ["ann", "met", "bob", "and", "carl", "left", "rome", "meet", "leave", "@", "北", "京"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, do_lower_case=True)


def read(folder: Path, *rows: Any, split: str = "train", task: Events | None = None) -> list[dict[str, Any]]:
    file = folder / "train.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return (task or Events()).read(file, split)


def event(kind: str, trigger: tuple[int, int], *arguments: tuple[str, int, int]) -> dict[str, Any]:
    return {
        "type": kind,
        "trigger": {"start": trigger[0], "end": trigger[1]},
        "arguments": [{"role": role, "start": start, "end": end} for role, start, end in arguments],
    }


def test_training_reads_a_sentence_once_for_triggers_and_once_for_each_event(tmp_path: Path) -> None:
    task, tokenizer = Events(), make_tokenizer()
    examples = read(tmp_path, ROW, {"tokens": [], "events": []})
    task.fit(examples)
    kinds = ("trigger:Leave", "trigger:Meet", "argument:From", "argument:Who")
    assert task.labels == ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
    features = task.encode(examples, tokenizer, training=True)
    texts = [" ".join(tokenizer.convert_ids_to_tokens(feature["input_ids"])) for feature in features]
    assert texts == [
        "[CLS] ann met bob and carl left rome [SEP]",
        "[CLS] ann @ met @ bob and carl left rome [SEP] meet @ met @ [SEP]",
        "[CLS] ann met bob and carl @ left @ rome [SEP] leave @ left @ [SEP]",
    ]

    def tags(feature: dict[str, Any]) -> dict[str, str]:
        names = tokenizer.convert_ids_to_tokens(feature["input_ids"])
        return {
            name: task.labels[label]
            for name, label in zip(names, feature["labels"], strict=True)
            if label not in (0, IGNORED_LABEL)
        }

    assert [tags(feature) for feature in features] == [
        {"met": "B-trigger:Meet", "left": "B-trigger:Leave"},
        {"ann": "B-argument:Who", "bob": "B-argument:Who"},
        {"carl": "B-argument:Who", "rome": "B-argument:From"},
    ]
    assert all(sum(label >= 0 for label in feature["labels"]) == 7 for feature in features)  # each word, no marker


def outputs_of(task: Events, features: list[dict[str, Any]], tags: list[dict[int, str]]) -> list[np.ndarray]:
    """Logits that say `tags` of a feature's words, and O of all others; louder, tags of the other reading."""
    outputs = []
    for feature, wanted in zip(features, tags, strict=True):
        logits = np.zeros((len(feature["input_ids"]), len(task.labels)))
        other = "trigger:" if "trigger" in feature else "argument:"
        logits[:, [other in label for label in task.labels]] = 9
        logits[:, 0] = 1
        for word, position in zip(feature["words"], feature["positions"], strict=True):
            if word in wanted:
                logits[position, task.labels.index(wanted[word])] = 2
        outputs.append(logits)
    return outputs


def test_arguments_are_sought_for_the_triggers_that_were_found(tmp_path: Path) -> None:
    """Also where the first reading is wrong: the second follows it."""
    task, tokenizer = Events(), make_tokenizer()
    examples = read(tmp_path, ROW, {"tokens": ["Ann"], "events": []})
    task.fit(examples)
    features = task.encode(examples, tokenizer, training=False)
    assert len(features) == 2
    outputs = outputs_of(task, features, [{1: "B-trigger:Meet", 3: "I-trigger:Leave", 4: "I-trigger:Leave"}, {}])
    again = task.encode_again(examples, features, outputs, tokenizer)
    texts = [" ".join(tokenizer.convert_ids_to_tokens(feature["input_ids"])) for feature in again]
    assert texts == [
        "[CLS] ann @ met @ bob and carl left rome [SEP] meet @ met @ [SEP]",
        "[CLS] ann met bob @ and carl @ left rome [SEP] leave @ and carl @ [SEP]",
    ]
    outputs += outputs_of(task, again, [{0: "B-argument:Who"}, {5: "B-argument:From", 6: "I-argument:From"}])
    predictions = task.decode(examples, [*features, *again], outputs)
    assert predictions == [
        {
            "tokens": TOKENS,
            "events": [
                {
                    "type": "Meet",
                    "trigger": {"start": 1, "end": 2, "text": "met"},
                    "arguments": [{"role": "Who", "start": 0, "end": 1, "text": "Ann"}],
                },
                {
                    "type": "Leave",
                    "trigger": {"start": 3, "end": 5, "text": "and Carl"},
                    "arguments": [{"role": "From", "start": 5, "end": 7, "text": "left Rome"}],
                },
            ],
        },
        {"tokens": ["Ann"], "events": []},
    ]
    scores = task.score(examples, predictions)
    assert scores["trigger_f1"] == pytest.approx(50)
    assert scores["argument_precision"] == pytest.approx(50)
    assert scores["argument_recall"] == pytest.approx(25)
    assert read(tmp_path, *predictions, task=task)[0]["label"][0]["trigger"] == {"start": 1, "end": 2}  # reads its own


def test_long_sentences_are_read_whole(tmp_path: Path) -> None:
    """An argument far from its trigger is in a feature too, with the trigger as second text."""
    task, tokenizer = Events(max_length=16), make_tokenizer()
    row = {"tokens": ["Ann", "met", *["and"] * 60, "Rome"], "events": [event("Meet", (1, 2), ("Where", 62, 63))]}
    examples = read(tmp_path, row)
    task.fit(examples)
    features = task.encode(examples, tokenizer, training=True)
    assert all(len(feature["input_ids"]) <= 16 for feature in features)
    second = [feature for feature in features if sum(feature["token_type_ids"])]
    assert sorted(word for feature in second for word in feature["words"]) == list(range(63))
    labels = [task.labels[label] for feature in second for label in feature["labels"] if label > 0]
    assert labels == ["B-argument:Where"]


def test_texts_have_spans_in_characters(tmp_path: Path) -> None:
    text = "Ann met 北京!"
    examples = read(tmp_path, {"text": text, "events": [event("Meet", (4, 7), ("Where", 8, 10))]})
    task, tokenizer = Events(), make_tokenizer()
    task.fit(examples)
    features = task.encode(examples, tokenizer, training=False)
    outputs = outputs_of(task, features, [{1: "B-trigger:Meet"}])
    again = task.encode_again(examples, features, outputs, tokenizer)
    outputs += outputs_of(task, again, [{2: "B-argument:Where", 3: "I-argument:Where"}])
    (prediction,) = task.decode(examples, [*features, *again], outputs)
    assert prediction["text"] == text
    assert prediction["events"][0]["arguments"] == [{"role": "Where", "start": 8, "end": 10, "text": "北京"}]
    assert task.score(examples, [prediction])["f1"] == 100


def test_of_overlapping_spans_the_first_is_learned_and_all_are_scored(tmp_path: Path) -> None:
    both = [event("Meet", (1, 2), ("Who", 0, 3), ("Where", 2, 3)), event("Leave", (1, 2))]
    task = Events()
    examples = read(tmp_path, {"tokens": TOKENS, "events": both})
    task.fit(examples)
    first, second, _ = task.encode(examples, make_tokenizer(), training=True)
    assert [task.labels[label] for label in first["labels"] if label > 0] == ["B-trigger:Meet"]
    tags = [task.labels[label] for label in second["labels"] if label > 0]
    assert tags == ["B-argument:Who", "I-argument:Who", "I-argument:Who"]
    scores = task.score(examples, [{"events": [event("Meet", (1, 2), ("Who", 0, 3))]}])
    assert scores["trigger_recall"] == scores["argument_recall"] == 50


def test_words_of_nothing_are_no_trigger(tmp_path: Path) -> None:
    """The tokenizer makes nothing of them; in training one may be named as a trigger or an argument."""
    row = {"tokens": ["\x00", "Ann", "\u200b"], "events": [event("Meet", (0, 1), ("Who", 2, 3), ("Who", 1, 2))]}
    task, tokenizer = Events(), make_tokenizer()
    examples = read(tmp_path, row, {"tokens": ["\x00"], "events": []})
    task.fit(examples)
    features = task.encode(examples, tokenizer, training=True)
    assert all(max(feature["positions"]) < len(feature["input_ids"]) for feature in features)
    features = task.encode(examples, tokenizer, training=False)
    outputs = outputs_of(task, features, [{}, {}])
    assert task.encode_again(examples, features, outputs, tokenizer) == []
    assert [prediction["events"] for prediction in task.decode(examples, features, outputs)] == [[], []]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "row 1: broken JSON"),
        ("", "holds no row"),
        ({"events": []}, "row 1: no column 'tokens'"),
        ({"tokens": TOKENS}, "row 1: no column 'events'"),
        ({"tokens": TOKENS, "events": {}}, "row 1: events must be a list of objects; got {}"),
        ({"tokens": TOKENS, "events": [3]}, "row 1: events must be a list of objects; got [3]"),
        ({"tokens": TOKENS, "events": [{"trigger": [0, 1]}]}, "row 1: type must be text; got None"),
        ({"tokens": TOKENS, "events": [{"type": "Meet"}]}, "row 1: an event has no trigger"),
        ({"tokens": TOKENS, "events": [{"type": "Meet", "trigger": 3}]}, 'row 1: trigger must be {"start": 3'),
        ({"tokens": TOKENS, "events": [event("Meet", (6, 8))]}, "row 1: trigger is [6, 8), which is no part of the 7"),
        ({"tokens": TOKENS, "events": [event("Meet", (1, 2), ("", 0, 1))]}, "row 1: role must be text; got ''"),
        ({"tokens": TOKENS, "events": [event("Meet", (1, 2), ("Who", 3, 3))]}, "row 1: an argument is [3, 3)"),
        ({"tokens": TOKENS, "events": [MEET | {"arguments": 3}]}, "row 1: arguments must be a list of objects; got 3"),
        ({"text": "a  b", "events": [event("Meet", (1, 3))]}, "row 1: trigger is [1, 3), where no word stands"),
    ],
)
def test_bad_rows(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        read(tmp_path, row)
    assert message in str(error.value)


def test_unknown_types_and_roles(tmp_path: Path) -> None:
    task = Events()
    task.fit(read(tmp_path, ROW))
    with pytest.raises(ValueError, match=r"row 2: unknown type 'Meat'; did you mean Meet\? \(types: Leave, Meet\)"):
        read(tmp_path, ROW, {"tokens": TOKENS, "events": [event("Meat", (0, 1))]}, task=task)
    with pytest.raises(ValueError, match=r"row 1: unknown role 'Whom'; did you mean Who\? \(roles: From, Who\)"):
        read(tmp_path, {"tokens": TOKENS, "events": [event("Meet", (0, 1), ("Whom", 0, 1))]}, task=task)
    assert read(tmp_path, {"tokens": ["a"], "events": 3}, split="predict", task=task) == [{"words": ["a"]}]
    with pytest.raises(ValueError, match="the training texts hold no event: nothing to learn"):
        Events().fit([{"words": ["a"], "label": []}])
    with pytest.raises(ValueError, match=r"expected a file whose name ends in \.jsonl"):
        Events().read(tmp_path / "train.csv", "train")


GOLD = [event("A", (0, 1), ("r", 2, 3), ("s", 4, 5)), event("B", (6, 7))]


@pytest.mark.parametrize(
    ("found", "expected"),  # F1 of: triggers identified, classified; arguments identified, classified; all
    [
        (GOLD, (1, 1, 1, 1, 1)),
        ([], (0, 0, 0, 0, 0)),
        # A trigger of the wrong type takes its arguments with it; one that is too long is no trigger.
        ([event("B", (0, 1), ("r", 2, 3)), event("B", (6, 8))], (1 / 2, 0, 0, 0, 0)),
        # Of two arguments one has the wrong role, a third is too many.
        (
            [event("A", (0, 1), ("r", 2, 3), ("t", 4, 5), ("r", 5, 6)), event("B", (6, 7))],
            (1, 1, 4 / 5, 2 / 5, 6 / 9),
        ),
        # Which trigger of the type an argument belongs to does not matter; what is there twice counts once.
        (
            [event("A", (0, 1), ("r", 2, 3)), event("A", (6, 7), ("s", 4, 5)), event("A", (0, 1), ("r", 2, 3))],
            (1, 1 / 2, 1, 1, 6 / 8),
        ),
    ],
)
def test_scores_by_hand(found: list[dict[str, Any]], expected: tuple[float, ...]) -> None:
    scores = event_scores([GOLD, []], [found, []])
    names = ("trigger_identification_f1", "trigger_f1", "argument_identification_f1", "argument_f1", "f1")
    assert [scores[name] for name in names] == pytest.approx([100 * value for value in expected], abs=1e-6)


def test_a_fact_of_one_text_is_none_of_another() -> None:
    scores = event_scores([GOLD, []], [[], GOLD])
    assert set(scores.values()) == {0.0}
