"""A service that tests can hold and break, a server on a real socket in a thread, and a plain client."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from electra_fast.finetuning.task import Example, Feature, Output
from electra_fast.serving.app import Limits, create_app
from electra_fast.serving.batcher import Batcher
from electra_fast.serving.metrics import Metrics
from electra_fast.serving.server import Server, listen

if TYPE_CHECKING:
    from electra_fast.serving.services import Service

PATIENCE = 600  # seconds in which the slowest machine does anything that is asked here


class Echo:
    """Says of each text what it was; one token a character. "bad" breaks the batch that it is in."""

    route, asks, answers, about = "echo", "texts", "echoes", "Echo."

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.entered = threading.Event()  # a batch has begun
        self.go = threading.Event()  # clear: batches wait in the model
        self.go.set()

    def read(self, values: Sequence[Any]) -> list[Example]:
        for number, value in enumerate(values, start=1):
            if not isinstance(value, str):
                raise ValueError(f"text {number}: expected text")
        return [{"text": value} for value in values]

    def encode(self, examples: Sequence[Example]) -> list[Feature]:
        if any(example["text"] == "unreadable" for example in examples):
            raise RuntimeError("unreadable")
        return [
            {"input_ids": [ord(letter) for letter in example["text"]], "example": number}
            for number, example in enumerate(examples)
            if example["text"]
        ]

    def infer(self, features: Sequence[Feature]) -> list[Output]:
        texts = ["".join(map(chr, feature["input_ids"])) for feature in features]
        self.batches.append(texts)
        self.entered.set()
        assert self.go.wait(PATIENCE)
        if "bad" in texts:
            raise RuntimeError("the model broke")
        return texts

    def encode_again(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Feature]:
        """A text that begins with "again" is read once more, in capitals."""
        return [
            {"input_ids": [ord(letter) for letter in output.upper()], "example": feature["example"]}
            for feature, output in zip(features, outputs, strict=True)
            if output.startswith("again")
        ]

    def decode(
        self, examples: Sequence[Example], features: Sequence[Feature], outputs: Sequence[Output]
    ) -> list[Mapping[str, Any]]:
        found: list[list[str]] = [[] for _ in examples]
        for feature, output in zip(features, outputs, strict=True):
            found[feature["example"]].append(output)
        return [{"read": texts} for texts in found]


class Running(NamedTuple):
    """A server that runs."""

    host: str
    port: int
    server: Server
    batcher: Batcher

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers (small letters) and body of one request on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, dict(headers or {}))
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def post(self, path: str, value: Any) -> tuple[int, Any]:
        """Status and parsed reply of a JSON request; `value` bytes: sent as they are."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        status, _, reply = self.ask("POST", path, body, {"content-type": "application/json"})
        return status, json.loads(reply)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=PATIENCE)


@contextmanager
def served(
    services: Sequence[Service],
    *,
    limits: Limits = Limits(timeout=PATIENCE),  # noqa: B008  frozen
    timeout: float = PATIENCE,
    **batching: Any,
) -> Iterator[Running]:
    """A server for the block. Timeouts are for the block to set: on a slow machine nothing else may be late."""
    metrics, ready = Metrics(), threading.Event()
    batcher = Batcher(on_batch=metrics.batch, **batching)
    app = create_app(services, batcher, metrics, name="a <model>", limits=limits)
    listener = listen("127.0.0.1", 0)
    server = Server(app, timeout=timeout, on_ready=ready.set)
    thread = threading.Thread(target=server.run, args=([listener],))
    host, port = listener.getsockname()
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield Running(host, port, server, batcher)
    finally:
        for service in services:
            if isinstance(service, Echo):
                service.go.set()
        server.stop()
        thread.join(PATIENCE)
        assert batcher.stop(PATIENCE)


def wait_until(holds: Callable[[], bool]) -> None:
    """Look again and again until something holds that must come."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


def request_bytes(path: str, value: Any) -> bytes:
    body = json.dumps(value).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes, in whatever way."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(2**16):
            parts.append(part)
    return b"".join(parts)
