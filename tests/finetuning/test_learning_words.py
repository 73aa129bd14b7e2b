"""Runs of tagging, relations and events learn: made-up sentences of which every label follows from the words."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import ElectraConfig, ElectraForPreTraining

from electra_fast.data.tokenizer import train_wordpiece
from electra_fast.finetuning.config import FinetuneConfig
from electra_fast.finetuning.predict import evaluate, open_finetuned, predict_examples
from electra_fast.finetuning.task import task_class
from electra_fast.finetuning.train import finetune

PEOPLE, PLACES = ["anna", "bob", "carl", "dora"], ["paris", "rome", "oslo", "bern"]
VERBS = {"met": "peer", "visited": "guest", "left": "no_relation"}


def sentences(draw: random.Random, count: int) -> list[list[str]]:
    """Someone meets, visits or leaves another somewhere."""
    return [
        [*draw.sample(PEOPLE, 1), draw.choice([*VERBS]), *draw.sample(PEOPLE, 1), "in", draw.choice(PLACES), "."]
        for _ in range(count)
    ]


def write_data(folder: Path, name: str, tokens: list[list[str]], split: str) -> None:
    if name == "tagging":
        kinds = {**dict.fromkeys(PEOPLE, "B-PER"), **dict.fromkeys(PLACES, "B-LOC")}
        lines = ["".join(f"{word}\t{kinds.get(word, 'O')}\n" for word in words) for words in tokens]
        (folder / f"{split}.conll").write_text("\n".join(lines), encoding="utf-8")
        return
    rows: list[dict] = []
    for words in tokens:
        relation = {"head": [0, 1], "tail": [2, 3], "label": VERBS[words[1]]}
        arguments = [{"role": "who", "start": 0, "end": 1}, {"role": "where", "start": 4, "end": 5}]
        event = {"type": words[1], "trigger": [1, 2], "arguments": arguments}
        rows.append({"tokens": words, **(relation if name == "relation" else {"events": [event]})})
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(("name", "epochs"), [("tagging", 8), ("relation", 12), ("events", 8)])
def test_a_run_learns(tmp_path: Path, name: str, epochs: int) -> None:
    """Always the same data and weights; six other draws of the weights gave relations an F1 of 100 too."""
    draw = random.Random(0)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(words) + " @ #" for words in sentences(draw, 200)), encoding="utf-8")
    tokenizer = train_wordpiece([text], tmp_path / "model", vocab_size=120)
    torch.manual_seed(0)
    ElectraForPreTraining(
        ElectraConfig(
            vocab_size=len(tokenizer),
            embedding_size=32,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    ).save_pretrained(tmp_path / "model")
    for split, count in (("train", 200), ("dev", 50)):
        write_data(tmp_path, name, sentences(draw, count), split)

    task = task_class(name)(max_length=64)
    config = FinetuneConfig(
        epochs=epochs, learning_rate=3e-3, layer_decay=1.0, batch_size=16, dropout=0.0, device="cpu"
    )
    result = finetune(task, str(tmp_path / "model"), tmp_path, tmp_path / "run", config, progress=False)
    learned = result["summary"]["dev"]["f1"]["median"]
    assert learned > 90

    finetuned = open_finetuned(tmp_path / "run", "cpu")
    again = evaluate(finetuned, tmp_path)["dev"].metrics
    assert again["f1"] == pytest.approx(learned)
    file = next(path for path in tmp_path.iterdir() if path.name.startswith("dev."))
    predicted = predict_examples(finetuned, finetuned.task.read(file, "predict"))
    assert len(predicted.predictions) == 50
