"""Runs of `electra-fast` that fail where a test says, as forks of one process that has imported everything.

`Machine` is that process. Faults come from a library (faults.c) that is preloaded into it and sees every call of a run
that changes a file, whether Python, C++ or Rust makes it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODES = {"nothing": 0, "kill": 1, "power": 2, "torn": 3, "full": 4, "signal": 5}


@dataclass
class Ended:
    """How a run ended: its exit code, negative for a signal as in subprocess, and what it printed."""

    code: int
    out: str
    err: str


class Machine:
    """Starts runs; each is a process of its own that can be killed.

    Args:
        folder: for what the runs print and the compiled library.
        faults: compile and preload the library.
        setup: Python code that each run's process runs first.
        imports: modules to import before the first run, beside those that every run needs.
    """

    def __init__(self, folder: Path, *, faults: bool = False, setup: str = "", imports: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        environment |= {"FAULTS_SETUP": setup, "FAULTS_IMPORTS": " ".join(imports)}
        if faults:
            self.library = folder / "faults.so"
            compiler = [shutil.which("cc") or "gcc", "-O1", "-shared", "-fPIC", "-o", self.library, HERE / "faults.c"]
            subprocess.run([*compiler, "-ldl"], check=True)
            environment |= {"LD_PRELOAD": str(self.library), "FAULTS_LIBRARY": str(self.library)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, arguments: list[str], name: str = "", **options: Any) -> int:
        """Start a command line; returns its process id. Options as in `run`; what it prints goes by `name`."""
        for stream in ("out", "err"):  # there also for a run that is killed before it opens them
            (self.folder / f"{stream}{name}").write_bytes(b"")
        self._send({"arguments": arguments, "folder": str(self.folder), "name": name, **options})
        self._started = int(self._receive()), name
        return self._started[0]

    def wait(self, pid: int | None = None, name: str = "", seconds: float = 240) -> Ended:
        """Wait for a run that `start` started, by default the last.

        Raises:
            TimeoutError: it took longer than `seconds`, and was killed.
        """
        pid, name = self._started if pid is None else (pid, name)
        self._send({"wait": pid, "seconds": seconds})
        code = self._receive()
        ended = [(self.folder / f"{stream}{name}").read_text(errors="replace") for stream in ("out", "err")]
        if code == "late":
            raise TimeoutError(f"a run took more than {seconds} s: {ended}")
        return Ended(int(code), *ended)

    def run(self, arguments: list[str], **options: Any) -> Ended:
        """`start` and `wait`.

        Args:
            arguments: after `electra-fast`.
            options: `below`, `mode` (one of MODES) and `at`: the fault, at call number `at` (from 0) that changes
                something below that folder; `setup`: Python code that this run's process runs first;
                `environment`: variables of its own.
        """
        self.start(arguments, **options)
        return self.wait()

    def calls(self) -> list[str]:
        """The calls of the last run below `below`, e.g. "write checkpoints/.step-00000002.partial/state.json"."""
        return (self.folder / "calls").read_text().splitlines()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")


def _serve() -> None:
    """The process of `Machine`: a line of JSON in, a line out."""
    import torch

    from electra_fast.cli import main
    from electra_fast.pretraining.config_file import read_config

    always = ("electra_fast.pretraining.train", "matplotlib.figure", "transformers.models.auto.tokenization_auto")
    for name in (*always, *os.environ["FAULTS_IMPORTS"].split()):
        importlib.import_module(name)
    read_config("tiny")  # makes the parser of config files, which every run needs

    torch.set_num_threads(1)  # a pool of threads would not be there after a fork
    running: set[int] = set()
    for line in sys.stdin:
        message = json.loads(line)
        if "wait" in message:
            code = _wait(message["wait"], message["seconds"])
            running.discard(message["wait"])
            print(code, flush=True)
        elif child := os.fork():
            running.add(child)
            print(child, flush=True)
        else:
            _become(message)
            os._exit(_exit_code(main, message["arguments"]))
    for child in running:  # whoever asked for them is gone
        os.kill(child, signal.SIGKILL)
    os._exit(0)  # at once, without taking everything down that was imported


def _wait(child: int, seconds: float) -> int | str:
    """The exit code; "late" where it had to be killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "late"


def _become(message: dict[str, Any]) -> None:
    os.chdir(message["folder"])
    for number, name in ((0, os.devnull), (1, f"out{message['name']}"), (2, f"err{message['name']}")):
        flags = os.O_RDWR | (os.O_CREAT if number else 0)
        os.dup2(os.open(os.path.join(message["folder"], name), flags, 0o600), number)
    os.environ.update(message.get("environment", {}))
    for code in (os.environ["FAULTS_SETUP"], message.get("setup", "")):
        exec(code, {})
    if "below" in message:
        log = os.path.join(message["folder"], "calls")
        if os.path.exists(log):
            os.unlink(log)
        library = ctypes.CDLL(os.environ["FAULTS_LIBRARY"])
        mode, at = MODES[message.get("mode", "nothing")], ctypes.c_long(message.get("at", 0))
        library.arm_fault(message["below"].encode(), mode, at, log.encode())


def _exit_code(main: Any, arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    _serve()
