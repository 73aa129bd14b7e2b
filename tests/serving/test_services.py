"""Replies are what `predict`, `inspect` and `features` say, for every kind of task; no JSON makes a service fail."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from electra_fast import FeatureExtractor
from electra_fast.cli import main
from electra_fast.finetuning.model import load_with_head, save_finetuned
from electra_fast.finetuning.task import load_task, task_class
from electra_fast.inspection import inspect_text
from electra_fast.serving.services import open_services
from tests.finetuning.small import write_checkpoint
from tests.serving.small import Running, served
from tests.small import WORDS

# Weights and texts are fixed: a tag that is as likely as another would be either, depending on the batch's rounding.
TEXTS = [" ".join(random.Random(number).choices(WORDS, k=1 + 3 * number)) for number in range(1, 9)]
TAGS = ["O", "B-animal", "I-animal", "B-place", "I-place"]
EVENTS = ["O", "B-trigger:run", "I-trigger:run", "B-argument:who", "I-argument:who"]
TASKS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "classification": ({"labels": ["no", "yes", "so so"]}, [{"text": text} for text in TEXTS]),
    "mrpc": ({}, [{"#1 String": one, "#2 String": other} for one, other in zip(TEXTS, TEXTS[::-1], strict=True)]),
    "regression": ({"low": 1.0, "high": 5.0}, [{"text": text, "other": None} for text in TEXTS]),
    "tagging": ({"labels": TAGS, "max_length": 16}, [{"text": text} for text in TEXTS] + [{"tokens": WORDS[:3]}]),
    "qa": (
        {"max_length": 30, "query_length": 8, "doc_stride": 4, "no_answer": True, "n_best": 3},
        [{"question": "the old fox", "context": text} for text in TEXTS],
    ),
    "choice": ({}, [{"question": text, "choices": ["the fox", "a dog runs", "cat"]} for text in TEXTS]),
    "relation": (
        {"labels": ["of", "in"], "markers": ["the", "a"]},
        [{"tokens": text.split(), "head": [0, 1], "tail": [2, 3]} for text in TEXTS],
    ),
    "events": ({"labels": EVENTS, "markers": ["the"]}, [{"text": text} for text in TEXTS]),
    "seq2seq": ({"max_target_length": 4}, [{"source": text} for text in TEXTS]),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("serving"), layers=2)


def _fine_tuned(name: str, checkpoint: Path, folder: Path) -> Path:
    """As `finetune` leaves a model, but with random weights in its head."""
    task = task_class(name)(**TASKS[name][0])
    task.max_length = min(task.max_length, 32)
    model = load_with_head(checkpoint, task, seed=3)
    torch.manual_seed(7)
    for parameter in model.parameters():
        if parameter.shape[0] == len(task.labels or [0]) and parameter.dim() == 2:
            torch.nn.init.normal_(parameter)  # a head's, so that texts get different answers
    from transformers import AutoTokenizer

    folder.mkdir()
    save_finetuned(model, AutoTokenizer.from_pretrained(checkpoint), task, folder)
    return folder


@pytest.fixture(scope="module")
def service(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Running]]:
    folder = _fine_tuned(request.param, checkpoint, tmp_path_factory.mktemp(request.param) / "model")
    with served(open_services(str(folder), device="cpu"), batch_tokens=64) as running:
        yield folder, running


def _assert_alike(found: Any, wanted: Any) -> None:
    """Equal, numbers within 2e-5: both are rounded, and sums depend a little on the batch."""
    assert type(found) is type(wanted), (found, wanted)
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key, value in wanted.items():
            _assert_alike(found[key], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for pair in zip(found, wanted, strict=True):
            _assert_alike(*pair)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=2e-5)
    else:
        assert found == wanted


@pytest.mark.parametrize("service", TASKS, indirect=True, ids=TASKS)
def test_replies_are_those_of_predict(
    service: tuple[Path, Running],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, running = service
    examples = TASKS[request.node.callspec.params["service"]][1]
    lines = "".join(json.dumps(example) + "\n" for example in examples)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert main(["predict", "--model", str(folder), "--input", "-", "--output", "-"]) == 0
    wanted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({json.dumps(value) for value in wanted}) > 1

    status, together = running.post("/predict", {"examples": examples})
    assert status == 200
    _assert_alike(together["predictions"], wanted)
    for example, prediction in zip(examples, wanted, strict=True):
        status, alone = running.post("/predict", {"examples": [example]})
        assert status == 200
        if "id" in prediction:  # by default the number of the question in its file
            prediction["id"] = "1"
        _assert_alike(alone["predictions"], [prediction])

    assert running.post("/predict", {"examples": []}) == (200, {"predictions": []})
    status, reply = running.post("/predict", {"examples": [examples[0], examples[1], {"nonsense": 1}]})
    assert status == 422
    assert reply["error"].startswith("example 3: ")
    assert running.post("/predict", {"examples": [examples[0], "text"]})[1] == {
        "error": "example 2: expected a JSON object; got 'text'"
    }


_STRANGE = [
    None,
    True,
    0,
    -1,
    10**30,
    1e308,
    "",
    " ",
    "\x00",
    "the fox",
    "漢字 😀",
    [],
    [[]],
    ["the"],
    {},
    {"text": "the"},
]


@pytest.mark.parametrize("service", TASKS, indirect=True, ids=TASKS)
def test_no_json_makes_it_fail(service: tuple[Path, Running], request: pytest.FixtureRequest, rng_seed: int) -> None:
    # What one example in a million would do is for longer runs to find.
    rng = random.Random(rng_seed if os.environ.get("ELECTRA_FAST_TEST_ALL") == "1" else request.node.name)
    _, running = service
    good = TASKS[request.node.callspec.params["service"]][1]
    keys = ["label", "tags", "answers", "is_impossible", "id", "index", "head", "tail", "type", "start", "end", "pos"]
    answered = 0
    for _ in range(60):
        example: Any = dict(rng.choice(good))
        for _ in range(rng.randint(1, 3)):
            key = rng.choice([*example, *keys])
            example[key] = rng.choice([*_STRANGE, [rng.choice(_STRANGE)] * 2, {rng.choice(keys): rng.choice(_STRANGE)}])
        status, reply = running.post("/predict", {"examples": [example]})
        assert status in (200, 422), (example, reply)
        if status == 422:
            assert reply["error"].startswith("example 1"), (example, reply)
        answered += 1
    assert answered == 60


def test_choices_of_other_numbers_in_one_batch(checkpoint: Path, tmp_path: Path) -> None:
    folder = _fine_tuned("choice", checkpoint, tmp_path / "model")
    (service,) = open_services(str(folder), device="cpu")
    requests = [[{"question": "the fox", "choices": list("abcde")[: 2 + n % 3]}] for n in range(6)]
    with served([service]) as running:
        futures = [running.batcher.submit(service, service.read(examples)) for examples in requests]
        for n, future in enumerate(futures):
            assert len(future.result(600)[0]["probabilities"]) == 2 + n % 3


def test_a_task_that_reads_files_only(checkpoint: Path, tmp_path: Path) -> None:
    """One of a user's own, whose `read` is all that it has."""
    (tmp_path / "own.py").write_text(
        "from electra_fast.finetuning.tasks.classification import Classification\n"
        "from electra_fast.finetuning.tables import read_rows\n"
        "class Own(Classification):\n"
        "    name = 'own'\n"
        "    def read(self, file, split):\n"
        "        return [{'text': row.text('words')} for row in read_rows(file)]\n",
        encoding="utf-8",
    )
    task = task_class(f"{tmp_path / 'own.py'}:Own")(labels=["a", "b"])
    assert task.from_objects([{"words": "the fox"}, {"words": "漢字\n"}]) == [{"text": "the fox"}, {"text": "漢字"}]
    with pytest.raises(ValueError, match=r"^example 2: no column 'words'"):
        task.from_objects([{"words": "the fox"}, {"text": "a dog"}])
    assert task.from_objects([{"words": "x\ny"}]) == [{"text": "x\ny"}]
    assert task.from_objects([]) == []
    save_finetuned(load_with_head(checkpoint, task, seed=0), _tokenizer(checkpoint), task, tmp_path)
    assert type(load_task(tmp_path)).__name__ == "Own"


def _tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_inspections_are_those_of_inspect(checkpoint: Path) -> None:
    texts = [*TEXTS, "", "  ", " ".join(TEXTS), "The FOX, unquick😀 jumps!"]
    wanted = inspect_text(checkpoint, texts)
    assert wanted[-2].cuts
    (service,) = open_services(str(checkpoint), device="cpu")
    with served([service], batch_tokens=50) as running:
        status, reply = running.post("/inspect", {"texts": texts})
        assert status == 200
        for found, item in zip(reply["inspections"], wanted, strict=True):
            assert found["text"] == item.text
            assert [token["token"] for token in found["tokens"]] == item.tokens
            assert [(token["start"], token["end"]) for token in found["tokens"]] == item.offsets
            assert [token["probability"] for token in found["tokens"]] == pytest.approx(item.probabilities, abs=2e-5)
            assert [tuple(span) for span in found["words"]] == list(item.word_spans())
            assert tuple(found["cuts"]) == item.cuts
        assert running.post("/inspect", {"texts": ["a", 1]})[1] == {"error": "text 2: expected text; got 1"}


@pytest.mark.parametrize("pooling", ["mean", "cls", "tokens"])
def test_vectors_are_those_of_the_extractor(checkpoint: Path, pooling: str) -> None:
    options = {"layers": [1, -1], "pooling": pooling}
    extractor = FeatureExtractor(checkpoint, **options)
    inspections, vectors = open_services(str(checkpoint), device="cpu", features=True, **options)
    assert (inspections.route, vectors.route) == ("inspect", "features")
    texts = [*TEXTS, "", " ".join(TEXTS)]
    with served([inspections, vectors], batch_tokens=64) as running:
        status, reply = running.post("/features", {"texts": texts})
    assert status == 200
    for text, found in zip(texts, reply["features"], strict=True):
        wanted = extractor([text])[0]
        if pooling == "tokens":
            assert len(found["tokens"]) == len(found["vectors"])
            assert torch.tensor(found["vectors"]) == pytest.approx(wanted, abs=2e-5)
        else:
            assert torch.tensor(found["vector"]) == pytest.approx(wanted, abs=2e-5)


def test_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path / "nothing")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--max_queue", "0"]) == 2
    assert "--max_queue must be 1 or more; got 0" in capsys.readouterr().err
