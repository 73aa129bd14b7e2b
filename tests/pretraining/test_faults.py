"""A run that is killed, loses power or finds the disk full at any of its writes goes on by itself to the same bits.

`make test-all` goes through every call of a run that changes a file, in five ways (about 3 minutes on two quiet cores);
else through the calls that save a checkpoint, each in a way drawn anew.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from electra_fast.pretraining.checkpoint import list_checkpoints
from electra_fast.pretraining.metrics import read_metrics
from tests.pretraining.faults import Machine
from tests.small import folder_bytes, pretrain_arguments, write_small

ALL = bool(os.environ.get("ELECTRA_FAST_TEST_ALL"))
WAYS = ("kill", "power", "torn", "full", "signal")
SETTINGS = {"training.save_every": 2, "training.eval_every": 2, "training.eval_batches": 2, "training.log_every": 1}
SETTINGS |= {"model.hidden_dropout_prob": 0.1, "model.attention_probs_dropout_prob": 0.1}
# Drawing takes three quarters of so short a run.
NO_PICTURE = (
    "from electra_fast.pretraining import train\ntrain.plot_curves = lambda _, path: path.write_bytes(b'a picture')"
)

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not (shutil.which("cc") or shutil.which("gcc")),
    reason="faults are put into the C library's calls: needs Linux and a C compiler",
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"), faults=True, setup=NO_PICTURE)
    yield machine
    machine.close()


@pytest.fixture(scope="module")
def made(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus; `whole`, a run of 6 steps; `begun`, the same run when it had saved steps 2 and 4, and was killed."""
    folder = write_small(tmp_path_factory.mktemp("faults"))
    assert machine.run(_arguments(folder, folder / "whole"), below=str(folder / "whole")).code == 0
    at = machine.calls().index("mkdir checkpoints/.step-00000006.partial")
    ended = machine.run(_arguments(folder, folder / "begun"), below=str(folder / "begun"), mode="kill", at=at)
    assert ended.code == -signal.SIGKILL
    names = [path.name for path in list_checkpoints(folder / "begun" / "checkpoints")]
    assert names == ["step-00000002", "step-00000004"]
    return folder


def _arguments(folder: Path, output: Path, *more: str) -> list[str]:
    corpus = folder / "corpus"
    return [*pretrain_arguments(corpus, output, 6, **{"data.valid": corpus} | SETTINGS), *more]


def _faults(machine: Machine, made: Path, rng_seed: int) -> Iterator[tuple[Path, str, int, str]]:
    """Copies of `begun`, each to go on with under one fault: (folder, way, number of the call, the call)."""
    g = np.random.default_rng(rng_seed)
    counted = made / "counted"
    shutil.copytree(made / "begun", counted)
    assert machine.run(_arguments(made, counted, "--resume"), below=str(counted)).code == 0
    calls = machine.calls()
    shutil.rmtree(counted)
    saved = [i for i, call in enumerate(calls) if " checkpoints" in call]
    assert {calls[i].split()[0] for i in saved} == {"mkdir", "open", "write", "fsync", "rename", "unlink"}
    cases = [(way, i) for i in range(len(calls)) for way in WAYS] if ALL else [(g.choice(WAYS), i) for i in saved]
    for way, i in cases:
        if way == "torn" and not calls[i].startswith("write"):
            continue
        output = made / f"{way} {i}"
        shutil.copytree(made / "begun", output)
        yield output, way, i, calls[i]
        shutil.rmtree(output)


def test_a_fault_at_any_write_of_a_run(machine: Machine, made: Path, rng_seed: int) -> None:
    done = 0
    for output, way, at, call in _faults(machine, made, rng_seed):
        ended = machine.run(_arguments(made, output, "--resume"), below=str(output), mode=way, at=at)
        what = f"{way} at call {at}, {call}: {ended}"
        if way == "signal":
            assert ended.code == 0, what
        elif way == "full":
            assert ended.code == 2, what
            assert "No space left on device: free some space, or choose a folder on another disk" in ended.err, what
            assert ended.err.count("\n") == 1, what
        else:
            assert ended.code == -signal.SIGKILL, what
        ended = machine.run(_arguments(made, output, "--resume"))
        assert ended.code == 0, f"{what}; then {ended}"
        assert "Traceback" not in ended.err
        _check_same(made / "whole", output, what)
        done += 1
    print(f"{done} faults")
    assert done > 0


def _check_same(whole: Path, output: Path, what: str) -> None:
    """The last checkpoint, the models and the evaluations are those of the undisturbed run, and no file is missing.

    A run that is killed after its last save leaves what it could not tidy up: hidden files, an older checkpoint.
    """
    missing_or_more = folder_bytes(whole).keys() ^ folder_bytes(output).keys()
    assert [name for name in missing_or_more if not re.search(r"(^|/)\.|step-00000002", name)] == [], what
    last = "checkpoints/step-00000006"
    for file in (f"{last}/model", f"{last}/optimizer", "generator/model", "discriminator/model"):
        expected, found = (load_file(folder / f"{file}.safetensors") for folder in (whole, output))
        assert expected.keys() == found.keys(), what
        assert all(torch.equal(expected[name], found[name]) for name in expected), what
    rows, again = (read_metrics(folder / "metrics.jsonl") for folder in (whole, output))
    assert [(row["kind"], row["step"]) for row in rows] == [(row["kind"], row["step"]) for row in again], what
    assert [row for row in rows if row["kind"] == "eval"] == [row for row in again if row["kind"] == "eval"], what
