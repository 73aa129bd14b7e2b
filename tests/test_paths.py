"""Every command on names with spaces and letters of other scripts: absolute, relative, from elsewhere, into a pipe."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import electra_fast.demo as demo
from electra_fast.cli import COMMANDS, main
from electra_fast.data import demo_corpus
from tests.small import TEXT, folder_bytes, pretrain_arguments

ROOT = Path(__file__).parents[1]
NAME = "mes données 漢字 (1) 'x' & ñ"


def _commands(place: Path | str) -> Iterator[list[str]]:
    """A whole session below `place`, one command after the other."""
    place = str(place)
    text, tokenizer, corpus, run = (os.path.join(place, f"{name} é") for name in ("texte", "tok", "corpus", "run"))
    yield ["tokenizer", text, "--output", tokenizer, "--vocab-size", "80"]
    yield ["prepare", text, "--tokenizer", tokenizer, "--output", corpus]
    yield ["estimate", "--config", "tiny", "--data.train", corpus, "--output", os.path.join(place, "plan é")]
    yield ["data", "stats", corpus, "--png", os.path.join(place, "longueurs é.png")]
    yield pretrain_arguments(corpus, run, 2, **{"data.valid": corpus, "training.save_every": 1})
    yield [*pretrain_arguments(corpus, run, 3, **{"data.valid": corpus, "training.save_every": 1}), "--resume"]
    yield ["runs", "list", place]
    yield pretrain_arguments(corpus, f"{run} 2", 1)
    yield ["runs", "compare", run, f"{run} 2", "--png", os.path.join(place, "curves é.png")]
    yield ["export", run, "--step", "2", "--output", os.path.join(place, "modèles é")]
    yield ["inspect", run, "the lazy zoë 漢字"]
    yield ["inspect", run, "--file", text, "--html", os.path.join(place, "page é.html")]
    yield ["verify", run, "--batches", "1", "--max_length", "8", "--seed", "1"]
    yield ["bench", run, "--rounds", "1", "--batches", "1", "--batch_size", "2"]
    yield ["features", run, "--input", text, "--output", os.path.join(place, "vecteurs é.npy")]
    data, tuned = os.path.join(place, "données é.tsv"), os.path.join(place, "affiné é")
    finetune = ["finetune", "--task", "classification", "--model", run, "--data", data, "--output", tuned]
    yield [*finetune, "--max_steps", "1", "--dev_fraction", "0.5"]
    yield ["evaluate", "--model", tuned, "--data", data]
    yield ["predict", "--model", tuned, "--input", data, "--output", os.path.join(place, "prédit é.jsonl")]
    yield ["explain", tuned, "the lazy zoë 漢字"]
    yield ["info"]


def _new(place: Path) -> Path:
    place.mkdir(parents=True)
    (place / "texte é").write_text(TEXT, encoding="utf-8")
    (place / "données é.tsv").write_text("text\tlabel\n" + "the fox\toui\na dog\tnon é\n" * 4, encoding="utf-8")
    return place


def _session(place: Path | str, read: Callable[[], tuple[str, str]]) -> list[str]:
    """What a session shows; `read` gives what was written since it was last called, to standard output and error."""
    shown = []
    for arguments in _commands(place):
        assert main(arguments) == 0, (arguments, read())
        out, err = read()
        assert out
        assert "Traceback" not in err
        shown.append(out)
    return shown


@contextmanager
def _ascii_pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], tuple[str, str]]]:
    """Standard output and error as of a process with PYTHONIOENCODING=ascii; gives what reads them."""
    pipes = [io.BytesIO(), io.BytesIO()]
    streams = [
        io.TextIOWrapper(pipe, "ascii", how) for pipe, how in zip(pipes, ("strict", "backslashreplace"), strict=True)
    ]

    def read() -> tuple[str, str]:
        for stream in streams:
            stream.flush()
        written = [pipe.getvalue().decode("ascii") for pipe in pipes]
        for pipe in pipes:
            pipe.seek(0)
            pipe.truncate()
        return written[0], written[1]

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        yield read


@pytest.mark.usefixtures("no_pictures")
def test_absolute_and_relative_from_anywhere_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absolute, beside = (_new(tmp_path / name / NAME) for name in ("a", "b"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert NAME in "".join(_session(absolute, capsys.readouterr))
    with _ascii_pipe(monkeypatch) as read:
        _session(os.path.join("..", "b", NAME), read)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    wanted = (
        "tok é/tokenizer.json",
        "corpus é/meta.json",
        "corpus é/tokens-00000.bin",
        "run é/generator/model.safetensors",
    )
    made = [folder_bytes(folder) for folder in (absolute, beside)]
    for file in wanted:
        assert made[0][file] == made[1][file], file
    assert made[0].keys() == made[1].keys()


def test_a_config_file_and_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(folder: Path) -> demo_corpus.DemoCorpus:
        folder.mkdir(parents=True)
        for part in ("train", "valid"):
            (folder / f"{part}.txt").write_text(TEXT, encoding="utf-8")
        return demo_corpus.DemoCorpus(folder / "train.txt", folder / "valid.txt", 79, 79, len(TEXT), len(TEXT))

    monkeypatch.setattr(demo_corpus, "write_demo_corpus", write)
    monkeypatch.setattr(demo, "VOCAB_SIZE", 80)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--output", NAME, "--steps", "1"]) == 0
    assert f"{NAME}{os.sep}discriminator" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [NAME]

    config = tmp_path / f"{NAME}.yaml"
    corpus = f"{NAME}/corpus/train"
    config.write_text((tmp_path / NAME / "config.yaml").read_text("utf-8"), "utf-8")
    assert (
        main(["pretrain", "--config", config.name, "--output", "été", "--data.train", corpus, "--data.valid", corpus])
        == 0
    )
    assert (tmp_path / "été" / "discriminator" / "config.json").is_file()


def test_the_commands_are_all_here() -> None:
    # Two have such names in conversion/test_tensorflow.py, which needs TensorFlow, and in serving/test_server.py.
    elsewhere = {"demo", "convert", "serve"}
    assert {arguments[0] for arguments in _commands("x")} | elsewhere == set(COMMANDS)


def test_into_a_pipe_that_can_hold_ascii_only(tmp_path: Path) -> None:
    """As on Windows, where a pipe has an old code page: names are escaped rather than a reason to stop.

    In a process of its own: the first commands, and all under ELECTRA_FAST_TEST_ALL=1.
    """
    place = _new(tmp_path / NAME)
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # One process for all: PyTorch is imported once.
    code = "import json, sys; from electra_fast.cli import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"
    commands = list(_commands(NAME))[: None if os.environ.get("ELECTRA_FAST_TEST_ALL") else 2]
    given = [sys.executable, "-c", code, json.dumps(commands)]
    result = subprocess.run(given, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    shown = result.stdout.decode("ascii")
    assert "mes donn\\xe9es \\u6f22" in shown
    assert "\x1b" not in shown  # no colours
    made = ("tok é", "corpus é", "run é/discriminator")[: len(commands)]
    assert all((place / name).is_dir() for name in made)
