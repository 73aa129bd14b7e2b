"""The command line: what it accepts, what it says about mistakes, and that it ends as it should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

import electra_fast.pretraining.train as train
from electra_fast import cli
from electra_fast.arguments import ArgumentParser, UsageError, given_value, underscored
from electra_fast.cli import COMMANDS, main, users_mistake
from electra_fast.commands import Command, command_parser
from electra_fast.pretraining.config import ConfigError, PretrainConfig, recipe_names
from electra_fast.pretraining.config_file import read_config
from tests.small import SETTINGS as TINY

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("no_pictures")
WORDS = [
    "the",
    "a",
    "quick",
    "lazy",
    "old",
    "fox",
    "dog",
    "cat",
    "bird",
    "jumps",
    "runs",
    "over",
    "under",
    "river",
    "hill",
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text.txt, and the tokenizer and corpus that the commands made of it."""
    folder = tmp_path_factory.mktemp("command line äß")
    sentences = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 9)) for i in range(1, 200)]
    (folder / "text.txt").write_text("\n\n".join(sentences), encoding="utf-8")
    text, tokenizer = str(folder / "text.txt"), str(folder / "tokenizer")
    assert main(["tokenizer", text, "--output", tokenizer, "--vocab-size", "80"]) == 0
    assert main(["prepare", text, "--tokenizer", tokenizer, "--output", str(folder / "corpus")]) == 0
    return folder


def _pretrain_arguments(prepared: Path, output: Path, steps: int, **more: object) -> list[str]:
    settings = TINY | {"data.train": prepared / "corpus", "output": output, "training.steps": steps} | more
    return ["pretrain", "--config", "tiny", *(f"--{key}={value}" for key, value in settings.items())]


def _run(*arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "electra_fast.cli", *arguments], capture_output=True, text=True, cwd=ROOT, **kwargs
    )


def _leaves(config: type = PretrainConfig, prefix: str = "") -> list[str]:
    keys = []
    for field in fields(config):
        hint = get_type_hints(config)[field.name]
        keys += _leaves(hint, f"{prefix}{field.name}.") if is_dataclass(hint) else [prefix + field.name]
    return keys


def test_help_names_every_command_and_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in shown
        assert command.summary in shown
        assert main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert command.summary in text
        assert f"  electra-fast {name}" in text.partition("example")[2]
        assert "ARG:" not in text
        assert "type:" not in text
        assert max(map(len, text.splitlines())) <= 121
    assert main(["pretrain", "--help"]) == 0
    shown = capsys.readouterr().out
    for key in _leaves():
        assert shown.count(f"\n  --{key} ") == 1


def test_help_and_mistakes_load_no_torch() -> None:
    code = (
        "import sys; from electra_fast.cli import main\n"
        "for line in ('--help', 'pretrain --help', 'prepare --help', 'pretrain --config nope'): main(line.split())\n"
        "loaded = {'torch', 'transformers', 'triton'} & set(sys.modules); sys.exit(str(loaded) if loaded else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


MISTAKES = {
    "unknown command": (["pretrian"], "did you mean pretrain?"),
    "unknown option": (["pretrain", "--config", "tiny", "--optimizer.lrr", "3"], "did you mean --optimizer.lr?"),
    "abbreviated option": (["prepare", "x", "--tok", "y", "--output", "z"], "--tok"),
    "no value": (["pretrain", "--config", "tiny", "--optimizer.lr"], "--optimizer.lr"),
    "wrong type": (
        ["pretrain", "--config", "tiny", "--optimizer.lr", "fast"],
        "optimizer.lr must be a number; got fast",
    ),
    "fraction for a count": (
        ["pretrain", "--config", "tiny", "--training.steps", "2.5"],
        "must be a whole number; got 2.5",
    ),
    "out of range": (["pretrain", "--config", "tiny", "--optimizer.lr=-1"], "optimizer.lr must be positive; got -1"),
    "missing arguments": (["prepare"], "missing: INPUT, --tokenizer, --output"),
    "no config": (["pretrain"], "small"),
    "unknown recipe": (["pretrain", "--config", "smal"], "recipes: base"),
    "resume and overwrite": (["pretrain", "--config", "tiny", "--resume", "--overwrite"], "give one of them"),
    "no corpus given": (["pretrain", "--config", "tiny"], "data.train"),
    "corpus not there": (["pretrain", "--config", "tiny", "--data.train", "no such corpus"], "no such corpus"),
    "text not there": (["tokenizer", "no such text", "--output", "x"], "no such text"),
    "model not there": (["inspect", "no such model", "hi"], "no such model"),
    "choice": (["prepare", "x", "--tokenizer", "y", "--output", "z", "--format", "xml"], "xml"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_short_message_and_code_2(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, expected = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert expected in captured.err
    assert captured.err.count("\n") <= 5
    assert "usage:" not in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> int:
        return int("not a number")  # a ValueError that nobody raised on purpose

    monkeypatch.setitem(cli.COMMANDS, "info", cli.COMMANDS["info"]._replace(run=broken))
    assert main(["info"]) == 1
    captured = capsys.readouterr().err
    assert "Traceback" in captured
    assert "please report" in captured


def test_users_mistakes_are_what_the_package_raises() -> None:
    with pytest.raises(ConfigError) as ours:
        read_config("nope")
    assert users_mistake(ours.value) == str(ours.value)
    with pytest.raises(ValueError, match="Expecting") as of_a_library:
        json.loads("{")
    assert users_mistake(of_a_library.value) is None
    with pytest.raises(FileNotFoundError) as missing:
        Path("no such file").read_bytes()
    assert users_mistake(missing.value) == "no such file: No such file or directory"


def test_option_names_take_dashes_for_underscores() -> None:
    given = ["--vocab-size", "8-0", "--text-field=a-b", "--model.hidden-size", "3", "a-b", "--", "--as-it-is"]
    assert underscored(given) == [
        "--vocab_size", "8-0", "--text_field=a-b", "--model.hidden_size", "3", "a-b", "--", "--as-it-is",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("--task a --lr 3", "a"),
        ("--task=a --task b", "b"),
        ("--task b --task=", ""),
        ("x --tasks a -- --task b", None),
        ("--task", None),
    ],
)
def test_the_value_of_an_option_is_found_before_there_is_a_parser(words: str, value: str | None) -> None:
    assert given_value(words.split(), "--task") == value


def test_a_command_may_have_options_that_depend_on_what_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def add_those_of_the_task(parser: ArgumentParser, given: list[str]) -> None:
        task = given_value(given, "--task")
        if task not in (None, "span"):
            raise UsageError(f"no task {task!r}")
        if task == "span":
            parser.add_argument("--max_answer", type=int, default=30, help="of an answer")

    def parser() -> ArgumentParser:
        made = command_parser("try", "Try", "--task NAME", "--task span")
        made.add_argument("--task", type=str, metavar="NAME", help="what to try")
        return made

    command = Command("Try", parser, lambda args, given: seen.append((args.max_answer, given)) or 0)
    monkeypatch.setitem(cli.COMMANDS, "try", command._replace(more_options=add_those_of_the_task))
    assert main(["try", "--task", "span", "--max-answer", "7"]) == 0
    assert seen == [(7, ["--task", "span", "--max-answer", "7"])]
    assert main(["try", "--task=span", "--help"]) == 0
    assert "--max_answer INT" in capsys.readouterr().out
    assert main(["try", "--max_answer", "7"]) == 2
    assert "unknown option --max_answer" in capsys.readouterr().err
    assert main(["try", "--task", "spam"]) == 2
    assert capsys.readouterr().err == "error: no task 'spam'\nOptions: electra-fast try --help\n"


def test_command_line_comes_before_file_before_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stop(config: PretrainConfig, **_: object) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "pretrain", stop)
    file = tmp_path / "my config.yaml"
    file.write_text("optimizer: {lr: 2e-4, beta1: 0.5}\ndata: {valid: somewhere}\nmodel:\n")
    options = ["--optimizer.lr", "3e-4", "--data.valid", "null", "--model.glorot", "false", "--data.train", "1234"]
    assert main(["pretrain", *options, "--config", str(file)]) == 130
    assert main(["pretrain", "--config", str(file), *options]) == 130
    for config in seen:
        assert (config.optimizer.lr, config.optimizer.beta1, config.optimizer.beta2) == (3e-4, 0.5, 0.999)
        assert (config.data.valid, config.model.glorot, config.data.train) == (None, False, "1234")


@pytest.mark.parametrize("recipe", ["tiny", "small", "small++", "base", "large"])
def test_recipes_are_found_by_name(recipe: str) -> None:
    assert recipe in recipe_names()
    assert read_config(recipe).output == f"runs/{recipe}"


BAD_FILES = {
    "optimizer: {lrr: 3}": "unknown config key optimizer.lrr; did you mean optimizer.lr?",
    "optimzer: {lr: 3}": "unknown config key optimzer; did you mean optimizer?",
    "optimizer: {lr: fast}": "optimizer.lr must be a number; got fast",
    "training: {steps: 2.5}": "training.steps must be a whole number; got 2.5",
    "training: {steps: true}": "training.steps must be a whole number; got True",
    "training: {steps: --- 3}": "training.steps must be a whole number; got --- 3",
    "training: {steps: [1, 2]}": "training.steps must be a whole number",
    "objective: {max_per_sequence: x}": "objective.max_per_sequence must be a whole number or null; got x",
    "output:": "output must not be null",
    "model: 3": "model is a section and takes keys",
    "model: [1, 2]": "model is a section and takes keys",
    "3": "expected keys and values",
    "a: [": "not YAML",
}


@pytest.mark.parametrize("content", BAD_FILES)
def test_config_files_are_read_strictly(content: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_config(file)
    assert str(error.value).startswith(f"{file}: {BAD_FILES[content]}")


def test_overrides_are_checked_like_files() -> None:
    assert read_config("tiny", {"training.steps": 7, "data.valid": None}).training.steps == 7
    for key, value, message in (
        ("training.stepz", 7, "did you mean training.steps"),
        ("training", 7, "section"),
        ("training.steps", "x", "whole number"),
        ("training.steps", None, "null"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_config("tiny", {key: value})


def test_config_written_by_a_run_reads_back_equal(tmp_path: Path) -> None:
    config = read_config("small++", {"optimizer.lr": 1e-7, "data.train": "a: b", "objective.max_per_sequence": 9})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert read_config(tmp_path / "config.yaml") == config


def test_pretrain_writes_models_and_says_where(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "a run"
    assert main(_pretrain_arguments(prepared, run, 3)) == 0
    shown = capsys.readouterr().out
    assert str(run / "discriminator") in shown
    assert {"discriminator", "generator", "metrics.jsonl", "config.yaml"} <= {path.name for path in run.iterdir()}
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(_pretrain_arguments(prepared, run, 3)) == 2
    assert "--resume" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signals_save_and_say_how_to_go_on(
    number: int,
    code: int,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add = train.Window.add

    def signalled(self: train.Window, *args: object, **kwargs: object) -> None:
        add(self, *args, **kwargs)
        if self.steps == 2:
            signal.raise_signal(number)

    monkeypatch.setattr(train.Window, "add", signalled)
    assert main(_pretrain_arguments(prepared, tmp_path / "run", 10**6)) == code
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    _check_says_how_to_go_on(capsys.readouterr().out, number)


def _check_says_how_to_go_on(out: str, number: int) -> None:
    assert f"Stopped by {signal.Signals(number).name}" in out
    assert "Go on with: electra-fast pretrain --config tiny" in out
    assert out.rstrip().endswith("--resume")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no POSIX signals")
def test_a_signal_from_outside_does_the_same(prepared: Path, tmp_path: Path) -> None:
    arguments = _pretrain_arguments(prepared, tmp_path / "run", 10**6, **{"training.log_every": 1})
    process = subprocess.Popen(
        [sys.executable, "-m", "electra_fast.cli", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 180
    while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=110)
    assert process.returncode == 130, err
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
    _check_says_how_to_go_on(out, signal.SIGINT)


def test_tokenizer_refuses_to_replace_what_is_no_tokenizer(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    arguments = ["tokenizer", str(prepared / "text.txt"), "--vocab_size", "80", "--output"]
    for more in ([], ["--overwrite"]):
        assert main([*arguments, str(tmp_path / "mine"), *more]) == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert main([*arguments, str(tmp_path / "new")]) == 0
    assert main([*arguments, str(tmp_path / "new")]) == 2
    assert main([*arguments, str(tmp_path / "new"), "--overwrite"]) == 0


def test_a_bad_byte_is_a_users_mistake_with_any_number_of_workers(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin1.txt").write_bytes("gut\n\nschön\n".encode("latin-1"))
    for workers in ("1", "2"):
        arguments = ["prepare", str(tmp_path / "latin1.txt"), "--tokenizer", str(prepared / "tokenizer")]
        assert main([*arguments, "--output", str(tmp_path / "corpus"), "--workers", workers]) == 2
        error = capsys.readouterr().err
        assert "latin1.txt, line 3: byte 0xf6 at offset 8 is not UTF-8" in error
        assert "Traceback" not in error
        assert not (tmp_path / "corpus").exists()


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{sys.executable} -m electra_fast.cli pretrain --help | head -1"
    result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout.startswith("usage: electra-fast pretrain")
