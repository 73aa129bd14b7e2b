"""Each mistake a user can make: one message on standard error that says what, what was expected and what to do; exit
code 2; and every folder as it was."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from electra_fast import cli
from electra_fast.cli import main
from electra_fast.data.tokenizer import train_wordpiece
from tests.pretraining.faults import Machine
from tests.small import WORDS, folder_bytes, pretrain_arguments, write_small

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`write_small`, two other corpora, and `run`, of 4 steps with checkpoints after 2 and 4."""
    folder = write_small(tmp_path_factory.mktemp("errors"))
    (folder / "other.txt").write_text("\n\n".join(" ".join(reversed(WORDS)) + " zebra" for _ in range(20)))
    train_wordpiece([folder / "other.txt"], folder / "other_tokenizer", vocab_size=90)
    for corpus, tokenizer in (("other_corpus", "tokenizer"), ("other_tokens", "other_tokenizer")):
        given = [str(folder / "other.txt"), "--tokenizer", str(folder / tokenizer), "--output", str(folder / corpus)]
        assert main(["prepare", *given]) == 0
    assert main(_run(folder, folder / "run")) == 0
    return folder


@pytest.fixture
def space(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made` that a test may damage, and the working directory."""
    shutil.copytree(made, tmp_path / "space")
    monkeypatch.chdir(tmp_path / "space")
    return tmp_path / "space"


@pytest.fixture
def refused(space: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command line that must be refused; returns the message."""

    def check(arguments: list[str], *expected: str) -> str:
        before = folder_bytes(space)
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, message = capsys.readouterr()
        assert code == 2, message
        assert out == ""
        assert message.startswith(("error: ", "warning: "))
        assert message.count("\n") <= 5
        assert max(map(len, message.splitlines())) <= 400
        assert "usage:" not in message
        assert "Traceback" not in message
        for part in expected:
            assert part in message
        assert folder_bytes(space) == before
        return message

    return check


def _run(folder: Path, output: Path | str, steps: int = 4, **more: object) -> list[str]:
    return pretrain_arguments(folder / "corpus", output, steps, **{"training.save_every": 2} | more)


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_missing_files(refused, space: Path) -> None:
    there = f"seen from {space}"
    refused(["tokenizer", "no.txt", "--output", "new"], "input no.txt is not there", there)
    refused(["prepare", "no.txt", "--tokenizer", "tokenizer", "--output", "new"], "input no.txt is not there", there)
    refused(["prepare", "run", "--tokenizer", "tokenizer", "--output", "new"], "run is a folder: name the files in it")
    refused(["prepare", "text.txt", "--tokenizer", "no", "--output", "new"], "tokenizer no: expected a folder with")
    refused(["pretrain", "--config", "no.yaml"], "no config file 'no.yaml'", "recipes: base, continue, large, small")
    refused(["pretrain", "--config", "smal"], "did you mean small?")
    refused(pretrain_arguments("no", "new", 2), "no is no prepared corpus", "electra-fast prepare makes one")
    refused(["inspect", "no", "a fox"], "model no is no folder: give a discriminator's folder")


def test_empty_input(refused, space: Path) -> None:
    (space / "blank.txt").write_text(" \n\n\t\n")
    refused(["tokenizer", "blank.txt", "--output", "new"], "no text to train on in blank.txt")
    refused(
        ["prepare", "blank.txt", "--tokenizer", "tokenizer", "--output", "new"], "no document with a token in blank.txt"
    )


def test_text_that_is_not_utf8(refused, space: Path) -> None:
    (space / "latin1.txt").write_bytes("gut\n\nschön\n".encode("latin-1"))
    where = "latin1.txt, line 3: byte 0xf6 at offset 8 is not UTF-8"
    refused(["tokenizer", "latin1.txt", "--output", "new"], where, "convert the file to UTF-8")
    for workers in ("1", "2"):
        prepare = ["prepare", "text.txt", "latin1.txt", "--tokenizer", "tokenizer", "--output", "new"]
        refused([*prepare, "--workers", workers], where, "convert the file to UTF-8")
    (space / "latin1.yaml").write_bytes("output: schön\n".encode("latin-1"))
    refused(["pretrain", "--config", "latin1.yaml"], "latin1.yaml: not UTF-8 at byte 11: save it as UTF-8")


def test_json_lines(refused, space: Path) -> None:
    prepare = ["prepare", "a.jsonl", "--tokenizer", "tokenizer", "--output", "new"]
    for line, expected in (
        ("{", "not JSON"),
        ('{"body": "a fox"}', "string field 'text'"),
        ("[" * 100_000, "not JSON"),
        ('{"text": ' + "9" * 5000 + "}", "not JSON"),
        (r'{"text": "\ud800"}', "lone surrogate"),
    ):
        (space / "a.jsonl").write_text('{"text": "the fox"}\n' + line + "\n")
        refused(prepare, "a.jsonl, line 2: ", expected)


def test_inputs_of_other_formats(refused, space: Path) -> None:
    prepare = ["prepare", "--tokenizer", "tokenizer", "--output", "new"]
    (space / "a.txt.gz").write_bytes(gzip.compress(b"the fox\n" * 1000)[:-9])
    for workers in ("1", "2"):
        refused([*prepare, "text.txt", "a.txt.gz", "--workers", workers], "a.txt.gz is damaged", "get the file again")
    refused(["tokenizer", "a.txt.gz", "--output", "new"], "a.txt.gz is damaged")
    (space / "b.parquet").write_bytes(b"PAR1")
    refused([*prepare, "b.parquet"], "b.parquet is damaged, or no Parquet file")
    (space / "dump.xml").write_text("<mediawiki><page>")
    refused([*prepare, "dump.xml"], "dump.xml is damaged, or no dump of a wiki")
    refused([*prepare, "hf://a/b/c/d"], "expected hf://NAME")
    refused([*prepare, "text.txt", "--format", "csv"], "format")
    refused(["tokenizer", "text.txt", "--output", "new", "--type", "bpe", "--vocab_size", "80"], "vocab_size=80 cannot")
    refused(["data", "stats", "no"], "no is no prepared corpus")


def test_a_corpus_of_another_tokenizer(refused, space: Path) -> None:
    arguments = _run(space, "new", **{"data.valid": "other_tokens"})
    refused(arguments, "other_tokens was prepared with another tokenizer", "prepare it again with --tokenizer")
    for other in ("other_tokens", "other_corpus"):
        refused([*_run(space, "run", 6, **{"data.train": other}), "--resume"], other, "run/checkpoints/step-00000004")


def test_a_vocabulary_larger_than_the_models(refused, space: Path) -> None:
    for file in (space / "other_tokenizer").iterdir():
        shutil.copy(file, space / "run" / "discriminator")
    refused(["inspect", "run", "a zebra"], "run/discriminator", "entries and the model 80", "put the tokenizer there")


def test_a_sequence_longer_than_the_position_table(refused, space: Path) -> None:
    refused(_run(space, "new", **{"data.max_length": 129}), "data.max_length must be at most", "(128); got 129")


CONFIGS = {
    "optimizer: {lrr: 3}": "unknown config key optimizer.lrr; did you mean optimizer.lr?",
    "lr: 3": "unknown config key lr; did you mean optimizer.lr?",
    "training: {hidden_size: 3}": "unknown config key training.hidden_size; did you mean model.hidden_size?",
    "objektive: {mask_prob: 0.2}": "unknown config key objektive; did you mean objective?",
    "optimizer: {lr: fast}": "optimizer.lr must be a number; got fast",
    "training: {steps: 2.5}": "training.steps must be a whole number; got 2.5",
    "objective: {max_per_sequence: [1, 2]}": "objective.max_per_sequence must be a whole number or null; got [1, 2]",
    "optimizer: {lr: -1}": "optimizer.lr must be positive; got -1.0",
    "optimizer: {lr: .nan}": "optimizer.lr must be positive; got nan",
    "objective: {mask_prob: 1.5}": "objective.mask_prob must be between 0 and 1; got 1.5",
    "training: {steps: 0}": "training.steps must be between 1 and 2**31 - 1; got 0",
    "model: {hidden_size: 99999999999999999999}": (
        "model.hidden_size must be between 1 and 2**31 - 1, or null; got 99999"
    ),
    "data: {batch_size: 999999999}": "data.batch_size must be less than 2**31 / max_length (128)",
    "training: {device: gpu}": "training.device must be auto, cpu or cuda, or one GPU as cuda:1; got 'gpu'",
    "output: ''": "output must be the folder of the run; got ''",
    'output: "a\\0b"': "output must be a path",
    'data: {train: "\\uD800"}': "data.train must be a path",
    "optimizer: {lr: 1}\noptimizer: {beta1: 0.5}": "optimizer is given twice",
    "optimizer: {lr: 1}\noptimizer.lr: 2": "optimizer.lr is given twice",
    "model: [": "not YAML: ",
    "[" * 5000: "it is nested too deeply",
    "training: {steps: !!python/object:os.system 1}": "not YAML: ",
    "a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b]\noutput: [*c, *c, *c, *c]": "unknown config key a",
}


@pytest.mark.parametrize("content", CONFIGS, ids=range(len(CONFIGS)))
def test_configs(content: str, refused, space: Path) -> None:
    (space / "my.yaml").write_text(content)
    refused(["pretrain", "--config", "my.yaml"], CONFIGS[content])


def test_a_value_of_many_aliases_is_not_written_out(refused, space: Path) -> None:
    lines = ["training:", "  steps:", "  - &x0 [y, y, y, y, y, y, y, y, y]"]
    lines += [f"  - &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 12)]  # 9**12 items if written out
    (space / "my.yaml").write_text("\n".join(lines))
    refused(["pretrain", "--config", "my.yaml"], "training.steps must be a whole number; got [[")


def test_an_output_that_holds_something_else(refused, space: Path) -> None:
    refused(_run(space, "run"), "run holds a run already", "--resume goes on with it, --overwrite deletes it")
    refused(
        [*_run(space, "run", **{"optimizer.lr": 1}), "--resume"], "can't resume: optimizer.lr is 1.0 now and was 0.001"
    )
    refused([*_run(space, "run", 3), "--resume"], "run/checkpoints/step-00000004 is past training.steps (3)")
    refused(_run(space, "text.txt"), "output text.txt is a file: give a folder")
    prepare = ["prepare", "text.txt", "--tokenizer", "tokenizer", "--output"]
    refused([*prepare, "other_corpus"], "other_corpus exists; choose another or overwrite it")
    refused([*prepare, "run", "--overwrite"], "run is no prepared corpus")
    refused(["tokenizer", "text.txt", "--output", "other_tokenizer"], "other_tokenizer exists: choose another --output")
    refused(["tokenizer", "text.txt", "--output", "run", "--overwrite"], "run exists: choose another --output")


def test_a_mistake_with_overwrite_costs_no_run(refused, space: Path) -> None:
    refused([*_run(space, "run", **{"model.tie": "all"}), "--overwrite"], "all")
    refused([*_run(space, "run", **{"data.train": "no"}), "--overwrite"], "no is no prepared corpus")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same(
    file: str, space: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = space / "run" / "checkpoints" / "step-00000004" / file
    _flip(damaged, 150)
    assert main([*_run(space, "run", 4), "--resume"]) == 0
    message = capsys.readouterr().err
    assert f"warning: run/checkpoints/step-00000004/{file} " in message
    assert "trying the checkpoint before it" in message
    assert message.count("\n") <= 5
    again = load_file(space / "run" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert main(_run(space, "whole", 4)) == 0
    whole = load_file(space / "whole" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_all_checkpoints_damaged(refused, space: Path) -> None:
    for path in (space / "run" / "checkpoints").iterdir():
        (path / "optimizer.safetensors").write_bytes(b"")
    message = refused(
        [*_run(space, "run", 6), "--resume"], "no checkpoint in run/checkpoints is whole: start anew with --overwrite"
    )
    assert message.count("warning: ") == 2


def test_damaged_settings_of_a_run(refused, space: Path) -> None:
    for content in ("", "a: [", "model: 3", "optimizer: {lr: x}"):
        (space / "run" / "config.yaml").write_text(content)
        refused([*_run(space, "run", 6), "--resume", "--optimizer.lr=0.5"], "run/config.yaml")
    (space / "run" / "config.yaml").unlink()
    refused([*_run(space, "run", 6), "--resume", "--optimizer.lr=0.5"], "run", "config.yaml")


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
@pytest.mark.parametrize("file", ["tokens-00001.bin", "offsets.bin", "meta.json", "tokenizer/tokenizer.json"])
def test_a_damaged_corpus(damage: str, file: str, refused, space: Path) -> None:
    path = space / "corpus" / file
    if damage == "flipped":
        _flip(path, path.stat().st_size // 2)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    named = {"gone": {"meta.json": "corpus is no prepared corpus"}}.get(damage, {}).get(file, file.split("/")[0])
    refused(_run(space, "new"), named)


def test_a_damaged_model(refused, space: Path) -> None:
    model = space / "run" / "discriminator"
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-100])
    refused(["inspect", "run", "a fox"], "can't read the model in run/discriminator")
    (model / "tokenizer.json").write_text("{}")
    refused(["inspect", "run", "a fox"], "tokenizer run/discriminator can't be loaded")
    (model / "config.json").write_text("{")
    refused(["inspect", "run", "a fox"], "run/discriminator/config.json is damaged")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    yield machine
    machine.close()


@pytest.mark.skipif(os.name == "nt", reason="Windows limits no file's size")
@pytest.mark.parametrize("command", ["tokenizer", "prepare", "pretrain"])
def test_no_space_left(command: str, machine: Machine, space: Path) -> None:
    arguments = {
        "tokenizer": ["tokenizer", "text.txt", "--output", "new"],
        "prepare": ["prepare", "big.txt", "--tokenizer", "tokenizer", "--output", "new"],
        "pretrain": [*_run(space, "run", 6), "--resume"],
    }[command]
    (space / "big.txt").write_text((space / "text.txt").read_text() * 10)
    before = folder_bytes(space)
    # A limit of the file size fails in the same calls as a full disk; 3 kB hold settings and metrics, nothing larger.
    limit = f"import os, resource, sys\nsys.dont_write_bytecode = True\nos.chdir({str(space)!r})\n"
    ended = machine.run(arguments, setup=limit + "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))")
    assert ended.code == 2, ended
    assert "File too large: free some space, or choose a folder on another disk" in ended.err
    assert ended.err.count("\n") == 1
    after = folder_bytes(space)
    for log in ("run/metrics.jsonl", "run/config.yaml"):  # a run's own log may have grown
        before.pop(log)
        after.pop(log)
    assert after == before


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_no_space_left_for_the_output() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "electra_fast.cli", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    assert result.returncode == 2
    assert result.stderr.startswith("error: No space left on device: free some space")
    assert result.stderr.count("\n") == 1


def test_not_enough_memory(refused, space: Path) -> None:
    width = 10**7  # its square does not fit any machine
    refused(_run(space, "new", **{"model.hidden_size": width}), "not enough memory: lower data.batch_size")


def test_unknown_commands_and_options(refused) -> None:
    refused(["pretrian"], "unknown command 'pretrian'; did you mean pretrain?", "Commands: demo, info")
    refused(["--verzion"], "unknown option --verzion; did you mean --version?")
    refused(["info", "--jsn"], "unknown option --jsn; did you mean --json?", "Options: electra-fast info --help")
    refused(["info", "now"], "unexpected argument 'now'")
    refused(["prepare", "text.txt"], "missing: --tokenizer, --output")


def test_a_bug_shows_its_traceback_and_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for bug in (
        lambda *_: {}["key"],
        lambda *_: json.loads("{"),
        lambda *_: [][1],
        lambda *_: torch.ones(2) @ torch.ones(3),
    ):
        monkeypatch.setitem(cli.COMMANDS, "info", cli.COMMANDS["info"]._replace(run=bug))
        assert main(["info"]) == 1
        message = capsys.readouterr().err
        assert "Traceback (most recent call last)" in message
        assert "This is a bug in electra-fast" in message
        assert "please report it with the lines above" in message
