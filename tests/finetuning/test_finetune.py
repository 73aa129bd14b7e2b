"""`electra-fast finetune`, `evaluate` and `predict`: what a run leaves, that it goes on exactly, and bad data."""

from __future__ import annotations

import io
import json
import os
import signal
import statistics
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from electra_fast.cli import main
from electra_fast.finetuning.config import FinetuneConfig, resolve, size_of
from electra_fast.finetuning.model import find_pretrained
from electra_fast.finetuning.task import load_task, task_class
from electra_fast.finetuning.train import Interrupted, finetune
from electra_fast.finetuning.trainer import FinetuneTrainer
from tests.finetuning.small import write_checkpoint, write_texts

COUNTS = {"train": 40, "dev": 20, "test": 6}
BATCH = 8  # 5 updates an epoch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("finetune"))


def _arguments(checkpoint: Path, data: Path, output: Path, *more: str) -> list[str]:
    given = {"--task": "classification", "--model": checkpoint, "--data": data, "--output": output}
    words = [str(word) for pair in given.items() for word in pair]
    return ["finetune", *words, "--batch_size", str(BATCH), "--device", "cpu", *more]


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_run_and_what_it_leaves(
    checkpoint: Path, tmp_path: Path, rng_seed: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = write_texts(tmp_path / "data", rng_seed, **COUNTS), tmp_path / "run"
    assert main(_arguments(checkpoint, data, output, "--seeds", "3", "--seed", "5", "--epochs", "1")) == 0
    shown = capsys.readouterr()
    assert "seed 7  step 5/5" in shown.out
    assert "\nmax_length 32 instead of 128: the model has no more positions\n" in shown.out
    assert shown.err == ""

    result = json.loads((output / "results.json").read_text(encoding="utf-8"))
    gold = [line.split("\t")[1] for line in (data / "dev.tsv").read_text().splitlines()[1:]]
    accuracies = []
    for seed in result["seeds"]:
        predicted = _lines(output / "seeds" / f"seed-{seed['seed']}" / "predictions" / "dev.jsonl")
        accuracies.append(100 * sum(row["label"] == label for row, label in zip(predicted, gold, strict=True)) / 20)
        assert seed["metrics"]["dev"]["accuracy"] == pytest.approx(accuracies[-1], abs=1e-9)
        assert (seed["steps"], len(seed["evaluations"])) == (5, 1)
    assert [seed["seed"] for seed in result["seeds"]] == [5, 6, 7]
    summary = result["summary"]["dev"]["accuracy"]
    assert summary["median"] == pytest.approx(statistics.median(accuracies))
    assert (summary["min"], summary["max"]) == pytest.approx((min(accuracies), max(accuracies)))
    assert summary["std"] == pytest.approx(statistics.stdev(accuracies))
    assert result["best_seed"] == 5 + accuracies.index(max(accuracies))
    assert result["sources"]["learning_rate"] == "the paper's for small models"
    assert result["sources"]["epochs"] == "given"
    assert result["examples"] == COUNTS
    assert f"| dev | accuracy | {summary['median']:.2f} |" in (output / "results.md").read_text(encoding="utf-8")
    assert not list(output.glob("seeds/*/checkpoints"))
    assert not list(output.glob("seeds/*/model"))

    # The model of the run is the best seed's, by our commands and in stock transformers.
    assert find_pretrained(str(output)) == output / "model"  # `--model` takes the run too
    best = output / "seeds" / f"seed-{result['best_seed']}" / "predictions" / "test.jsonl"
    assert (output / "predictions" / "test.jsonl").read_bytes() == best.read_bytes()
    assert main(["evaluate", "--model", str(output), "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dev"]["accuracy"] == pytest.approx(max(accuracies))
    assert (
        main(["predict", "--model", str(output), "--input", str(data / "test.tsv"), "--output", str(tmp_path / "p")])
        == 0
    )
    assert "texts/s" in capsys.readouterr().out
    assert _lines(tmp_path / "p") == _lines(output / "predictions" / "test.jsonl")
    texts = [{"text": line.split("\t")[0]} for line in (data / "test.tsv").read_text().splitlines()[1:]]
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert main(["predict", "--model", str(output), "--input", "-", "--output", "-"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == _lines(tmp_path / "p")

    stock = transformers.AutoModelForSequenceClassification.from_pretrained(output / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(output / "model")
    for text, row in zip(texts, _lines(tmp_path / "p"), strict=True):
        with torch.inference_mode():
            probabilities = stock(**tokenizer(text["text"], return_tensors="pt")).logits.softmax(-1)[0]
        assert list(row["probabilities"]) == list(stock.config.label2id) == ["no", "yes"]
        assert list(row["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-4)


class _Crash(Exception):
    pass


@pytest.mark.parametrize("kind", ["crash", "signal"])
def test_a_run_that_was_cut_short_ends_with_the_same_weights(
    kind: str, checkpoint: Path, tmp_path: Path, rng_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of 5 updates, a checkpoint every 3, dropout on: cut within the second epoch of the second seed."""
    data = write_texts(tmp_path / "data", rng_seed, **COUNTS)
    config = FinetuneConfig(batch_size=BATCH, epochs=2, seeds=2, save_every=3, dropout=0.2, device="cpu")

    def run(output: Path, **how: bool) -> dict:
        task = task_class("classification")()
        return finetune(task, str(checkpoint), data, output, config, progress=False, **how)

    run(tmp_path / "whole")
    step, done = FinetuneTrainer.training_step, []

    def cut(self: FinetuneTrainer, *arguments: object) -> torch.Tensor:
        done.append(None)
        if len(done) == 10 + 8:  # of the second seed the eighth: its newest checkpoint is of the sixth
            if kind == "crash":
                raise _Crash
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTrainer, "training_step", cut)
        with pytest.raises(_Crash if kind == "crash" else Interrupted):
            run(tmp_path / "cut")
    checkpoints = tmp_path / "cut" / "seeds" / "seed-1" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == [f"checkpoint-{6 if kind == 'crash' else 8}"]
    (checkpoints / "checkpoint-9").mkdir()  # one that was cut short itself
    first = (tmp_path / "cut" / "seeds" / "seed-0" / "result.json").read_bytes()
    with pytest.raises(ValueError, match="--resume goes on with it, --overwrite deletes it"):
        run(tmp_path / "cut")
    resumed = run(tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / "seeds" / "seed-0" / "result.json").read_bytes() == first
    assert [seed["resumed"] for seed in resumed["seeds"]] == [False, True]

    whole = json.loads((tmp_path / "whole" / "results.json").read_text(encoding="utf-8"))
    for ours, theirs in zip(resumed["seeds"], whole["seeds"], strict=True):
        assert (ours["metrics"], ours["evaluations"]) == (theirs["metrics"], theirs["evaluations"])
    models = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut")]
    assert models[0].keys() == models[1].keys()
    assert [name for name in models[0] if not torch.equal(models[0][name], models[1][name])] == []
    for split in ("dev", "test"):
        files = [tmp_path / name / "seeds" / "seed-1" / "predictions" / f"{split}.jsonl" for name in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_one_file_is_split_and_more_examples_contain_fewer(checkpoint: Path, tmp_path: Path, rng_seed: int) -> None:
    from electra_fast.finetuning.data import read_splits

    file = write_texts(tmp_path, rng_seed, train=50) / "train.tsv"
    rows = [{"text": text, "label": label} for text, label in _rows(file)]
    for i, row in enumerate(rows):  # told apart
        row["text"] = f"{i} {row['text']}"
    file.write_text("text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows), encoding="utf-8")

    def splits(**settings: object) -> tuple[list[str], list[str]]:
        read = read_splits(task_class("classification")(), file, FinetuneConfig(**settings))
        return [row["text"] for row in read.train], [row["text"] for row in read.scored["dev"]]

    train, dev = splits(dev_examples=10)
    assert (len(train), len(dev)) == (40, 10)
    assert sorted(train + dev) == sorted(row["text"] for row in rows)
    few, same_dev = splits(dev_examples=10, train_examples=7, seed=3)
    more, _ = splits(dev_examples=10, train_examples=20)
    assert same_dev == dev
    assert (len(few), len(more)) == (7, 20)
    assert set(few) < set(more) < set(train)
    assert [len(part) for part in splits(dev_fraction=0.2)] == [40, 10]
    with pytest.raises(ValueError, match="train_examples is 41, and there are 40"):
        splits(dev_examples=10, train_examples=41)


def _rows(file: Path) -> list[list[str]]:
    return [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]


def test_defaults_by_size() -> None:
    task = task_class("classification")()
    sizes = {width: size_of(width).name for width in (64, 256, 384, 768, 1024, 2048)}
    assert list(sizes.values()) == ["small", "small", "small", "base", "large", "large"]
    found = {}
    for width in (256, 768, 1024):
        config, sources = resolve(FinetuneConfig(), width, task)
        found[width] = (config.learning_rate, config.layer_decay, config.epochs)
        assert "paper" in sources["learning_rate"]
    assert found == {256: (3e-4, 0.8, 3), 768: (1e-4, 0.8, 3), 1024: (5e-5, 0.9, 3)}  # the paper's table 7
    config, sources = resolve(FinetuneConfig(learning_rate=1e-3, epochs=0.5), 768, task)
    assert (config.learning_rate, config.epochs, config.layer_decay) == (1e-3, 0.5, 0.8)
    assert (sources["learning_rate"], sources["batch_size"]) == ("given", "default")


def test_the_originals_head(checkpoint: Path, tmp_path: Path, rng_seed: int) -> None:
    data, output = write_texts(tmp_path / "data", rng_seed, train=16, dev=8), tmp_path / "run"
    assert main(_arguments(checkpoint, data, output, "--head", "original", "--max_steps", "1")) == 0
    assert load_task(output / "model").head == "sequence/original"
    weights = load_file(output / "model" / "model.safetensors")
    heads = {name: weight for name, weight in weights.items() if name.startswith("classifier.")}
    assert {name: tuple(weight.shape) for name, weight in heads.items()} == {
        "classifier.out_proj.weight": (2, 16),
        "classifier.out_proj.bias": (2,),
    }
    stock = transformers.ElectraModel.from_pretrained(output / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(output / "model")
    for (text, _), row in zip(_rows(data / "dev.tsv"), _lines(output / "predictions" / "dev.jsonl"), strict=True):
        with torch.inference_mode():
            first = stock(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0]
        logits = heads["classifier.out_proj.weight"] @ first + heads["classifier.out_proj.bias"]
        assert list(row["probabilities"].values()) == pytest.approx(logits.softmax(-1).tolist(), abs=1e-4)


def test_search(checkpoint: Path, tmp_path: Path, rng_seed: int) -> None:
    data, output = write_texts(tmp_path / "data", rng_seed, train=16, dev=8), tmp_path / "run"
    arguments = _arguments(
        checkpoint, data, output, "--search", "2", "--max_steps", "2", "--seed", str(rng_seed % 1000)
    )
    assert main(arguments) == 0
    found = json.loads((output / "search.json").read_text(encoding="utf-8"))
    assert [row["state"] for row in found["trials"]] == ["complete", "complete"]
    for row in found["trials"]:
        assert row["settings"].keys() == {"learning_rate", "layer_decay"}  # the others are given
        assert 1e-4 <= row["settings"]["learning_rate"] <= 9e-4
    best = max(found["trials"], key=lambda row: row["score"])
    assert found["best"] == best["settings"]
    result = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert result["settings"]["learning_rate"] == best["settings"]["learning_rate"]
    assert result["sources"]["layer_decay"] == "the best of the search"
    # The same seed, settings and steps: the run's model is that of the best trial.
    assert result["summary"]["dev"]["accuracy"]["median"] == pytest.approx(best["score"])
    assert (output / "search.md").read_text(encoding="utf-8").count("\n| ") == 4


BAD = {
    "unknown label": ("text\tlabel\na\tno\nb\tperhaps\n", "dev.tsv, row 3: unknown label 'perhaps'"),
    "missing column": ("words\tlabel\na\tno\n", "dev.tsv, row 2: no column 'text'"),
    "missing field": ("text\tlabel\na\tno\nb\n", "dev.tsv, row 3: 1 fields, but 2 columns"),
    "empty text": ("text\tlabel\na\tno\n \tyes\n", "dev.tsv, row 3: text is empty"),
    "header only": ("text\tlabel\n", "dev.tsv holds no row"),
    "empty file": ("", "dev.tsv holds no row"),
    "not UTF-8": (b"text\tlabel\n\xff\tno\n", "not UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_one_line(name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, expected = BAD[name]
    data = write_texts(tmp_path / "data", 0, train=8)
    (data / "dev.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
    _fails(_arguments(checkpoint, data, tmp_path / "run"), expected, capsys)
    assert not (tmp_path / "run").exists()


def _fails(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert expected in captured.err
    assert captured.err.count("\n") <= 2
    assert "Traceback" not in captured.err


def test_other_mistakes_are_one_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = write_texts(tmp_path / "data", 0, train=8, dev=4), tmp_path / "run"
    ok = _arguments(checkpoint, data, output)
    _fails(["finetune", "--task", "clasification"], "did you mean classification?", capsys)
    _fails(["finetune", "--task", "classification"], "missing: --model, --data, --output", capsys)
    _fails([*ok, "--txt", "x"], "unknown option --txt; did you mean --text?", capsys)
    _fails([*ok, "--learning_rate", "-1"], "learning_rate must be positive; got -1", capsys)
    _fails([*ok, "--accumulation", "3"], "accumulation must be a divisor of batch_size; got 3", capsys)
    _fails([*ok, "--resume", "--overwrite"], "give one of them", capsys)
    _fails([*ok, "--dev_examples", "3"], "has a file of dev examples", capsys)
    _fails(_arguments(tmp_path / "none", data, output), "is no folder", capsys)
    _fails(_arguments(checkpoint, tmp_path / "none", output), "none", capsys)
    _fails(["evaluate", "--model", str(checkpoint), "--data", str(data)], "holds no task.json", capsys)
    (data / "broken.jsonl").write_text('{"text": "a", "label": "no"}\n{"text": \n')
    _fails(_arguments(checkpoint, data / "broken.jsonl", output), "broken.jsonl, row 2: broken JSON", capsys)
    (data / "one.tsv").write_text("text\tlabel\n" + "a\tno\n" * 9)
    _fails(_arguments(checkpoint, data / "one.tsv", output), "nothing to learn", capsys)
    assert not output.exists()
    output.mkdir()
    (output / "settings.json").write_text("{")
    _fails(ok, "--resume goes on with it", capsys)
    _fails([*ok, "--resume"], "settings.json is damaged", capsys)


def test_a_loss_that_is_not_finite_stops(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_texts(tmp_path / "data", 0, train=8, dev=4)
    _fails(
        _arguments(checkpoint, data, tmp_path / "run", "--learning_rate", "1e38", "--epochs", "12"),
        "the loss is",
        capsys,
    )
