"""Starting and stopping: the command, signals under load, a port that is taken."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import uvicorn

from electra_fast.cli import main
from electra_fast.commands import serve as command
from electra_fast.serving.app import Limits, create_app
from electra_fast.serving.batcher import Batcher
from electra_fast.serving.metrics import Metrics
from electra_fast.serving.server import Server, listen, url_of
from tests.finetuning.small import write_checkpoint
from tests.serving.small import PATIENCE, read_all, request_bytes, wait_until

ROOT = Path(__file__).parents[2]
CLIENTS = 6

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")


def _start(*command: str) -> tuple[subprocess.Popen, str, int]:
    """A process that prints its URL when it is ready: (process, host, port)."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:  # there may be a library's warnings first
        lines.append(line)
        if "http://" in line:
            break
    else:
        pytest.fail("".join(lines))
    host, _, port = line.partition("http://")[2].split()[0].partition(":")
    return process, host, int(port)


def _refuses(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except ConnectionError:  # it was in the queue of a listener that has just closed
        return False
    return False


def _waiting(host: str, port: int) -> float:
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("electra_fast_queue_examples "))


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_under_load(number: signal.Signals) -> None:
    """What was accepted is answered, nothing else is accepted, and the process ends with 0."""
    process, host, port = _start("-m", "tests.serving.held_service", str(PATIENCE))
    connections = [socket.create_connection((host, port), timeout=PATIENCE) for _ in range(CLIENTS)]
    for name, connection in enumerate(connections):
        connection.sendall(request_bytes("/echo", {"texts": [f"text {name}"]}))
    wait_until(lambda: _waiting(host, port) == CLIENTS)
    process.send_signal(number)
    wait_until(lambda: _refuses(host, port))
    output, _ = process.communicate("go\n", timeout=PATIENCE)
    for name, connection in enumerate(connections):
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert json.loads(body) == {"echoes": [{"read": [f"text {name}"]}]}
        connection.close()
    assert (process.returncode, output[-11:]) == (0, "ended True\n")


def test_a_signal_before_it_listens_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    run = uvicorn.Server.run
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda self, sockets: signal.raise_signal(signal.SIGTERM) or run(self, sockets)
    )
    batcher = Batcher()
    before = signal.getsignal(signal.SIGTERM)
    Server(create_app([], batcher, Metrics(), name="model", limits=Limits())).run([listen("127.0.0.1", 0)])
    assert signal.getsignal(signal.SIGTERM) is before
    assert batcher.stop(PATIENCE)


@posix
def test_grace_has_an_end() -> None:
    """A model that never comes back does not keep the process: its clients see the connection close, or 500."""
    process, host, port = _start("-m", "tests.serving.held_service", "1", "stuck")
    with socket.create_connection((host, port), timeout=PATIENCE) as connection:
        connection.sendall(request_bytes("/echo", {"texts": ["text"]}))
        wait_until(lambda: _waiting(host, port) == 1)
        process.send_signal(signal.SIGTERM)
        assert b"HTTP/1.1 200" not in read_all(connection)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert output.endswith("ended False\n")


@posix
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, whose first thread must wait: another asks, and sends the signal."""
    model = write_checkpoint(tmp_path / "mes données 漢字 (1) 'x' & ñ")
    said: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(command, "print", lambda line, **_: said.put(line), raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    replies = []

    def ask() -> None:
        host, _, port = said.get(timeout=PATIENCE).partition("http://")[2].split()[0].partition(":")
        try:
            connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
            body = json.dumps({"texts": ["the fox"]})
            connection.request("POST", "/inspect", body, {"Content-Type": "application/json"})
            replies.append(json.loads(connection.getresponse().read()))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # while a connection is open, without a request
        said.put(str(connection.sock.recv(1)))
        connection.close()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    threads, before = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    try:
        assert main(["serve", str(model), "--port", "0", "--threads", "1", "--device", "cpu"]) == 0
    finally:
        torch.set_num_threads(threads)
    thread.join(PATIENCE)
    assert signal.getsignal(signal.SIGTERM) is before
    assert sorted([said.get(), said.get()]) == ["b''", "ended"]
    ((found,),) = (reply["inspections"] for reply in replies)
    assert [token["token"] for token in found["tokens"]] == ["the", "f", "##ox"]


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_checkpoint(tmp_path)
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert url_of(taken) == f"http://127.0.0.1:{port}"
        assert main(["serve", str(model), "--port", str(port)]) == 2
        assert f"error: can't listen at 127.0.0.1, port {port}: " in capsys.readouterr().err
    assert main(["serve", str(model), "--port", "70000"]) == 2
    assert "--port must be 0 to 65535; got 70000" in capsys.readouterr().err
