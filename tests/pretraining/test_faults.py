"""A run goes on by itself to the same bits, wherever it was killed, lost power, found the disk full or was stopped.

`make test-all` puts a fault at every call of a run that changes a file, in two of five ways, drawn anew, and kills 20
runs at random moments, 5 of them of the installed command. Else: a way drawn anew at two calls of each kind that save a
checkpoint, drawn anew too, and 3 kills.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from electra_fast.pretraining.checkpoint import list_checkpoints
from electra_fast.pretraining.metrics import read_metrics
from tests.pretraining.faults import ROOT, Ended, Machine
from tests.small import folder_bytes, pretrain_arguments, write_small

ALL = bool(os.environ.get("ELECTRA_FAST_TEST_ALL"))
WAYS = ("kill", "power", "torn", "full", "signal")
SETTINGS = {"training.save_every": 2, "training.eval_every": 2, "training.eval_batches": 2, "training.log_every": 1}
SETTINGS |= {"model.hidden_dropout_prob": 0.1, "model.attention_probs_dropout_prob": 0.1}
# Drawing takes three quarters of so short a run.
NO_PICTURE = (
    "from electra_fast.pretraining import train\ntrain.plot_curves = lambda _, path: path.write_bytes(b'a picture')"
)

HAS_FAULTS = sys.platform.startswith("linux") and bool(shutil.which("cc") or shutil.which("gcc"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows forks no process")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"), faults=HAS_FAULTS, setup=NO_PICTURE)
    yield machine
    machine.close()


@pytest.fixture(scope="module")
def made(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and `whole`, a run of 6 steps with checkpoints after 2, 4 and 6."""
    folder = write_small(tmp_path_factory.mktemp("faults"))
    assert machine.run(_arguments(folder, folder / "whole")).code == 0
    return folder


@pytest.fixture(scope="module")
def begun(machine: Machine, made: Path) -> Path:
    """The same run when it was killed while it saved step 6."""
    counted = machine.run(_arguments(made, made / "counted"), below=str(made / "counted"))
    assert counted.code == 0
    at = machine.calls().index("mkdir checkpoints/.step-00000006.partial")
    ended = machine.run(_arguments(made, made / "begun"), below=str(made / "begun"), mode="kill", at=at)
    assert ended.code == -signal.SIGKILL
    names = [path.name for path in list_checkpoints(made / "begun" / "checkpoints")]
    assert names == ["step-00000002", "step-00000004"]
    return made / "begun"


def _arguments(folder: Path, output: Path, *more: str, steps: int = 6) -> list[str]:
    corpus = folder / "corpus"
    return [*pretrain_arguments(corpus, output, steps, **{"data.valid": corpus} | SETTINGS), *more]


def _faults(machine: Machine, made: Path, begun: Path, rng_seed: int) -> Iterator[tuple[Path, str, int, str]]:
    """Copies of `begun`, each to go on with under one fault: (folder, way, number of the call, the call)."""
    g = np.random.default_rng(rng_seed)
    shutil.copytree(begun, made / "resumed")
    assert machine.run(_arguments(made, made / "resumed", "--resume"), below=str(made / "resumed")).code == 0
    calls = machine.calls()
    saved = [i for i, call in enumerate(calls) if " checkpoints" in call]
    kinds: dict[str, list[int]] = {}
    for i in saved:
        kinds.setdefault(calls[i].split()[0], []).append(i)
    assert kinds.keys() == {"mkdir", "open", "write", "fsync", "rename", "unlink"}
    drawn = [i for places in kinds.values() for i in g.choice(places, min(2, len(places)), replace=False).tolist()]
    ways = 1
    if ALL:
        drawn, ways = list(range(len(calls))), 2
    for i in drawn:
        possible = [way for way in WAYS if way != "torn" or calls[i].startswith("write")]
        for way in g.choice(possible, ways, replace=False):
            output = made / f"{way} {i}"
            shutil.copytree(begun, output)
            yield output, way, i, calls[i]
            shutil.rmtree(output)


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not HAS_FAULTS, reason="faults are put into the C library's calls: needs Linux and a C compiler")
def test_a_fault_at_any_write_of_a_run(machine: Machine, made: Path, begun: Path, rng_seed: int) -> None:
    done = 0
    for output, way, at, call in _faults(machine, made, begun, rng_seed):
        ended = machine.run(_arguments(made, output, "--resume"), below=str(output), mode=way, at=at)
        what = f"{way} at call {at}, {call}: {ended}"
        if way == "signal":  # which ends a run at once that has not begun
            assert ended.code == (0 if ended.out else -signal.SIGTERM), what
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


@pytest.mark.timeout(1800)
def test_kill_9_at_random_moments(machine: Machine, made: Path, tmp_path: Path, rng_seed: int) -> None:
    g = np.random.default_rng(rng_seed)
    steps, kills, finished = 60, 0, 0
    whole, output = tmp_path / "whole", tmp_path / "run"
    started = time.monotonic()
    assert machine.run(_arguments(made, whole, steps=steps)).code == 0
    length = time.monotonic() - started
    resumed = _arguments(made, output, "--resume", steps=steps)
    while kills < (20 if ALL else 3):
        # The installed command takes seconds to start, a fork none.
        run = Command(resumed, tmp_path) if ALL and kills < 5 else Fork(machine, resumed)
        run.wait_for_start()
        time.sleep(g.uniform(0, length / 2))
        os.kill(run.pid, signal.SIGKILL)  # no other process: nobody has waited for this one yet
        ended = run.wait()
        assert ended.code in (0, -signal.SIGKILL), ended
        kills += ended.code != 0
        if ended.code == 0:  # it was quicker
            _check_same(whole, output, str(ended))
            shutil.rmtree(output)
            finished += 1
    ended = machine.run(resumed)
    assert ended.code == 0, ended
    _check_same(whole, output, str(ended))
    print(f"{kills} kills; {finished} runs ended before theirs")


class Fork:
    """A run of `machine`, which is under way as soon as it is there."""

    def __init__(self, machine: Machine, arguments: list[str]) -> None:
        self.pid, self.wait = machine.start(arguments), machine.wait

    def wait_for_start(self) -> None:
        """Nothing to wait for."""


class Command:
    """A run of the command in a process of its own."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.out = folder / "out"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "electra_fast", *arguments]
        with self.out.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        self.pid = self._process.pid

    def wait_for_start(self) -> None:
        """Until it has imported everything, which takes longer than all it does then."""
        deadline = time.monotonic() + 240
        while not self.out.stat().st_size and time.monotonic() < deadline:
            time.sleep(0.01)

    def wait(self) -> Ended:
        return Ended(self._process.wait(), self.out.read_text(), "")


# What sends SIGTERM in the middle of a part of the run, once.
MOMENTS = {
    "a step": "from electra_fast.pretraining.window import Window as place; name = 'add'",
    "an evaluation": "from electra_fast.models import ElectraForJointPreTraining as place; name = 'discriminate'",
    "saving": "from electra_fast.pretraining import checkpoint as place; name = 'file_sha256'",
}
SEND = """
import os, signal
real, calls = getattr(place, name), []
def sent(*args, **kwargs):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return real(*args, **kwargs)
setattr(place, name, sent)
"""


@pytest.mark.parametrize("moment", MOMENTS)
def test_sigterm_saves_within_the_step_and_says_how_to_go_on(
    moment: str, machine: Machine, made: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a run"
    ended = machine.run(_arguments(made, output), setup=MOMENTS[moment] + SEND)
    assert ended.code == 0, ended
    (stopped,) = re.findall(r"^Stopped by SIGTERM after step (\d+); saved in (.*)$", ended.out, re.MULTILINE)
    assert stopped == ("2", str(output / "checkpoints"))  # all three come in step 2
    assert list_checkpoints(output / "checkpoints")[-1].name == "step-00000002"
    (command,) = re.findall(r"^Go on with: (.*)$", ended.out, re.MULTILINE)
    prog, *arguments = shlex.split(command)
    assert prog == "electra-fast"
    ended = machine.run(arguments)
    assert ended.code == 0, ended
    _check_same(made / "whole", output, str(ended))


BREAK = """
import torch
from electra_fast.pretraining.window import Window
real = Window.add
def broken(self, *args, **kwargs):
    global calls
    calls = globals().get("calls", 0) + 1
    if calls == 3:
        (weight,) = [p for name, p in model.named_parameters() if name.endswith(NAME)]
        with torch.no_grad():
            weight.view(-1)[5] = float("inf")
    return real(self, *args, **kwargs)
Window.add = broken
from electra_fast.pretraining import train
build = train.build_model
def built(*args, **kwargs):
    global model
    model = build(*args, **kwargs)
    return model
train.build_model = built
"""


@pytest.mark.parametrize("tower", ["generator", "discriminator"])
def test_a_weight_made_infinite_stops_the_run_before_the_update(
    tower: str, machine: Machine, made: Path, tmp_path: Path
) -> None:
    """It becomes so after step 3, with checkpoints after 2 and 4: the update of step 4 is not made."""
    name = "encoder.layer.0.attention.self.query.weight"
    output = tmp_path / "run"
    ended = machine.run(_arguments(made, output), setup=f"NAME = '{tower}.electra.{name}'\n{BREAK}")
    assert ended.code == 2, ended
    assert ended.err.startswith("error: step 4 "), ended.err
    assert f"{tower}.electra.{name}" in ended.err
    assert "Traceback" not in ended.err
    assert [path.name for path in list_checkpoints(output / "checkpoints")] == ["step-00000002"]
    ended = machine.run(_arguments(made, output, "--resume"))
    assert ended.code == 0, ended
    _check_same(made / "whole", output, str(ended))


def _check_same(whole: Path, output: Path, what: str) -> None:
    """The last checkpoint, the models and the evaluations are those of the undisturbed run, and no file is missing.

    A run that is killed after its last save leaves what it could not tidy up: hidden files, an older checkpoint. One
    that is told to end saves the step it has come to, which takes the place of the oldest checkpoint that is kept.
    """
    expected, found = set(folder_bytes(whole)), set(folder_bytes(output))
    kept, left = ([path.name for path in list_checkpoints(folder / "checkpoints")] for folder in (whole, output))
    displaced = tuple(f"checkpoints/{name}/" for name in kept[: len(set(left) - set(kept))])
    assert len(left) >= len(kept), what
    assert [name for name in expected - found if not f"{name}/".startswith(displaced)] == [], what
    assert [name for name in found - expected if not re.search(r"(^|/)\.|checkpoints/", name)] == [], what
    last = list_checkpoints(whole / "checkpoints")[-1].relative_to(whole)
    for file in (f"{last}/model", f"{last}/optimizer", "generator/model", "discriminator/model"):
        expected, found = (load_file(folder / f"{file}.safetensors") for folder in (whole, output))
        assert expected.keys() == found.keys(), what
        assert all(torch.equal(expected[name], found[name]) for name in expected), what
    rows, again = (read_metrics(folder / "metrics.jsonl") for folder in (whole, output))
    assert [(row["kind"], row["step"]) for row in rows] == [(row["kind"], row["step"]) for row in again], what
    assert [row for row in rows if row["kind"] == "eval"] == [row for row in again if row["kind"] == "eval"], what
