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
    """

    def __init__(self, folder: Path, *, faults: bool = False, setup: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        environment["FAULTS_SETUP"] = setup
        if faults:
            self.library = folder / "faults.so"
            compiler = [shutil.which("cc") or "gcc", "-O1", "-shared", "-fPIC", "-o", self.library, HERE / "faults.c"]
            subprocess.run([*compiler, "-ldl"], check=True)
            environment |= {"LD_PRELOAD": str(self.library), "FAULTS_LIBRARY": str(self.library)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, arguments: list[str], **options: Any) -> int:
        """Start a command line; returns its process id. Options as in `run`."""
        for name in ("out", "err"):  # there also for a run that is killed before it opens them
            (self.folder / name).write_bytes(b"")
        self._send({"arguments": arguments, "folder": str(self.folder), **options})
        return int(self._receive())

    def wait(self) -> Ended:
        """Wait for the run that `start` started."""
        self._send("wait")
        code = int(self._receive())
        return Ended(code, *((self.folder / name).read_text(errors="replace") for name in ("out", "err")))

    def run(self, arguments: list[str], **options: Any) -> Ended:
        """`start` and `wait`.

        Args:
            arguments: after `electra-fast`.
            options: `below`, `mode` (one of MODES) and `at`: the fault, at call number `at` (from 0) that changes
                something below that folder; `setup`: Python code that this run's process runs first.
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
        return self._process.stdout.readline()


def _serve() -> None:
    """The process of `Machine`: a line of JSON in, a line out."""
    import torch

    from electra_fast.cli import main

    for name in ("electra_fast.pretraining.config_file", "electra_fast.pretraining.train", "matplotlib.figure"):
        importlib.import_module(name)

    torch.set_num_threads(1)  # a pool of threads would not be there after a fork
    child = 0
    for line in sys.stdin:
        message = json.loads(line)
        if message == "wait":
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        elif child := os.fork():
            print(child, flush=True)
        else:
            _become(message)
            os._exit(_exit_code(main, message["arguments"]))


def _become(message: dict[str, Any]) -> None:
    os.chdir(message["folder"])
    for number, name in ((0, os.devnull), (1, "out"), (2, "err")):
        flags = os.O_RDWR | (os.O_CREAT if number else 0)
        os.dup2(os.open(os.path.join(message["folder"], name), flags, 0o600), number)
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
