"""The service on a real socket: replies, limits, and everything that clients do wrong."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

import electra_fast.serving.server
from electra_fast import __version__
from electra_fast.finetuning.task import Example
from electra_fast.serving.app import Limits
from electra_fast.serving.server import TimedHead
from tests.serving.small import PATIENCE, Echo, Running, read_all, request_bytes, served, wait_until

MAX_BODY = 3000


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    limits = Limits(max_body_bytes=MAX_BODY, max_examples=4, timeout=PATIENCE)
    with served([Echo()], limits=limits) as server:
        yield server


def test_many_clients_get_their_own_replies(running: Running, rng_seed: int) -> None:
    """Each on one connection, one request after the other, all at once."""
    failures: list[object] = []
    right: list[int] = []

    def client(number: int) -> None:
        rng = random.Random(rng_seed + number)
        with running.connect() as connection, connection.makefile("rb") as replies:
            for turn in range(10):
                texts = [f"{number} {turn} " + "x" * rng.randrange(200) for _ in range(rng.randint(0, 3))]
                connection.sendall(request_bytes("/echo", {"texts": texts}))
                status, found = _read_reply(replies)
                if (status, found) != (200, {"echoes": [{"read": [text]} for text in texts]}):
                    failures.append((status, found))
                else:
                    right.append(number)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    assert len(right) == 300


def _read_reply(replies) -> tuple[int, object]:
    status = int(replies.readline().split()[1])
    length = 0
    while (line := replies.readline().strip().lower()) != b"":
        name, _, value = line.partition(b":")
        length = int(value) if name == b"content-length" else length
    return status, json.loads(replies.read(length))


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "broken JSON: Expecting value at character 1"),
        (b'{"texts": ["a"', 400, "broken JSON: Expecting ',' delimiter at character 15"),
        (b'{"texts": ["a"]} x', 400, "broken JSON: Extra data"),
        (b'{"texts": [NaN]}', 400, "NaN is no number"),
        (b'{"texts": [-Infinity]}', 400, "-Infinity is no number"),
        (b'{"texts": ["a"], "texts": ["b"]}', 400, "the key 'texts' stands twice"),
        (b"[" * 2900, 400, "nested too deeply|Expecting value"),
        (b'{"texts": [' + b"9" * 2900 + b"]}", 422, "text 1: expected text"),
        (b'{"texts": ["\xff"]}', 400, "not UTF-8: invalid start byte at byte 13"),
        (b'{"texts": ["\xed\xa0\x80"]}', 400, "not UTF-8"),
        (rb'{"texts": ["\ud800"]}', 400, "half of a surrogate pair"),
        (rb'{"texts": [{"\udc00\ud800": 1}]}', 400, "half of a surrogate pair"),
        ('{"texts": ["a"]}'.encode("utf-16"), 400, "not UTF-8"),
        (b'\xef\xbb\xbf{"texts": []}', 400, "BOM"),
        (b"null", 422, 'expected an object {"texts": [...]}; got None'),
        (b"[]", 422, "expected an object"),
        (b"{}", 422, "texts must be a list; got nothing"),
        (b'{"text": ["a"]}', 422, "unknown key 'text'; did you mean texts?"),
        (b'{"texts": ["a"], "more": 1}', 422, "unknown key 'more'"),
        (b'{"texts": "a"}', 422, "texts must be a list; got 'a'"),
        (b'{"texts": ["a", 1]}', 422, "text 2: expected text"),
        (b'{"texts": ["a","a","a","a","a"]}', 413, "5 texts: a request may have 4"),
    ],
    ids=range(22),
)
def test_a_bad_body_gets_one_clear_line(running: Running, body: bytes, status: int, message: str) -> None:
    found, reply = running.post("/echo", body)
    assert found == status
    assert list(reply) == ["error"]
    assert "\n" not in reply["error"]
    assert re.search(message if "|" in message else re.escape(message), reply["error"])
    assert running.post("/echo", {"texts": ["fine"]}) == (200, {"echoes": [{"read": ["fine"]}]})


def test_text_of_every_kind_comes_back(running: Running) -> None:
    texts = ["漢字 😀 é", "\x00\x01\u2028\ufffe", "\U0010ffff"]
    assert running.post("/echo", {"texts": texts}) == (200, {"echoes": [{"read": [text]} for text in texts]})
    escaped = rb'{"texts": ["\ud83d\ude00 \u00e9"]}'  # a whole pair
    assert running.post("/echo", escaped) == (200, {"echoes": [{"read": ["😀 é"]}]})
    assert running.post("/echo", {"texts": []}) == (200, {"echoes": []})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
    ids=["none", "text", "form", "charset", "gzip"],
)
def test_only_plain_json_is_read(running: Running, headers: dict[str, str]) -> None:
    status, _, reply = running.ask("POST", "/echo", b'{"texts": ["a"]}', headers)
    assert (status, list(json.loads(reply))) == (415, ["error"])


def test_charset_utf8_is_plain_json(running: Running) -> None:
    headers = {"content-type": "Application/JSON; charset=UTF-8"}
    assert running.ask("POST", "/echo", b'{"texts": ["a"]}', headers)[0] == 200


def test_other_paths_and_methods(running: Running) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/echo", 405), ("POST", "/health", 405)):
        found, headers, reply = running.ask(method, path)
        assert (found, list(json.loads(reply))) == (status, ["error"])
        assert headers["x-content-type-options"] == "nosniff"
    assert running.ask("GET", "/docs")[0] == 404  # FastAPI's pages load scripts from elsewhere


def test_a_body_that_is_too_long(running: Running) -> None:
    # By what its head says: nothing of it has been sent.
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for length in (b"3001", b"999999999999", b"9" * 18):
        with running.connect() as connection:
            connection.sendall(head + b"Content-Length: " + length + b"\r\n\r\n")
            reply = read_all(connection)
            assert reply.startswith(b"HTTP/1.1 413 ")
            assert b"more than 3,000 bytes" in reply
    with running.connect() as connection:  # by its length, of a sender who does not say it
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"bb9\r\n" + b"x" * 0xBB9 + b"\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")


def test_nonsense_instead_of_http(running: Running) -> None:
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET\r\n\r\n", b"HELLO WORLD\r\n\r\n"):
        with running.connect() as connection:
            connection.sendall(nonsense)
            reply = read_all(connection)
            assert reply == b"" or reply.startswith(b"HTTP/1.1 400 ")
    with running.connect() as connection:  # a length that is none
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")
    assert running.ask("GET", "/health")[0] == 200


def test_a_head_without_end(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        try:
            for _ in range(1000):
                connection.sendall(b"X-Filler: " + b"y" * 1000 + b"\r\n")
            rest = read_all(connection)
        except ConnectionError:
            rest = b""
        assert b"200" not in rest
    assert running.ask("GET", "/health")[0] == 200


def test_a_client_that_does_not_read() -> None:
    class Long(Echo):
        def decode(self, examples: Any, *_: object) -> list[Any]:
            return ["x" * 2**26 for _ in examples]  # more than the system keeps for a connection

    echo = Long()
    with served([echo]) as running:
        echo.go.clear()
        with running.connect() as connection:
            connection.sendall(request_bytes("/echo", {"texts": ["a"]}))
            assert echo.entered.wait(PATIENCE)
            running.server.config.http_protocol_class.head_timeout = 0.1
            echo.go.set()
            wait_until(lambda: not running.server.server_state.connections)
            assert len(read_all(connection)) < 2**26


def test_a_client_that_reads_slowly() -> None:
    """It may take as many timeouts as it likes, but 64 KiB in each."""
    timers: list[Callable[[], None]] = []
    left, aborted = [300_000], []

    class Protocol:
        cycle = None

        def pause_writing(self) -> None: ...
        def resume_writing(self) -> None: ...

    class Timed(TimedHead, Protocol):
        head_timeout = 1.0
        transport = SimpleNamespace(get_write_buffer_size=lambda: left[-1], abort=lambda: aborted.append(left[-1]))
        loop = SimpleNamespace(call_later=lambda _, run, *with_: timers.append(lambda: run(*with_)) or Mock())

    timed = Timed()
    timed.pause_writing()
    for size in (200_000, 130_000, 60_000):
        left.append(size)
        timers.pop()()
        assert len(timers) == 1
    timer = timed._write_timer
    left.append(1)
    timers.pop()()
    assert (timers, aborted) == ([], [1])
    timed.resume_writing()
    timer.cancel.assert_called_once_with()


def test_all_that_a_client_does_not_read_counts() -> None:
    """Also little: a connection that waits to be closed for it would never be."""
    with served([Echo()]) as running, running.connect() as connection:
        wait_until(lambda: running.server.server_state.connections)
        (protocol,) = running.server.server_state.connections
        assert protocol.transport.get_write_buffer_limits() == (0, 0)
        assert connection.fileno() > 0


def test_long_replies_are_whole(rng_seed: int) -> None:
    class Long(Echo):
        def decode(self, examples: Sequence[Example], *_: object) -> list[Any]:
            return [{"text": each["text"], "numbers": [n / 7 for n in range(len(each["text"]))]} for each in examples]

    rng, echo = random.Random(rng_seed), Long()
    texts = ["é" * rng.choice((1, 10, 2000)) for _ in range(20)]
    with served([echo]) as running:
        assert running.post("/echo", {"texts": texts}) == (200, {"echoes": echo.decode([{"text": t} for t in texts])})


@pytest.mark.parametrize("parser", ["httptools", "h11"])
def test_both_parsers(parser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if parser == "h11":
        monkeypatch.setattr(electra_fast.serving.server, "_parser", lambda: H11Protocol)
    limits = Limits(max_body_bytes=100, timeout=PATIENCE)
    with served([Echo()], limits=limits) as running:
        with running.connect() as connection, connection.makefile("rb") as replies:
            for text in ("a", "b"):  # the second with the first: pipelined
                connection.sendall(request_bytes("/echo", {"texts": [text]}))
            for text in ("a", "b"):
                assert _read_reply(replies) == (200, {"echoes": [{"read": [text]}]})
        assert running.post("/echo", {"texts": ["a" * 100]})[0] == 413
        with running.connect() as connection:
            connection.sendall(b"NONSENSE\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 400 ")
        running.server.config.http_protocol_class.head_timeout = 0.1
        with running.connect() as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET /health HTTP/1.1\r\n")
            assert read_all(connection) == b""


def test_a_body_that_does_not_come() -> None:
    with served([Echo()], limits=Limits(timeout=0.1)) as running, running.connect() as connection:
        connection.sendall(request_bytes("/echo", {"texts": ["a"]})[:-3])
        reply = read_all(connection)
        assert reply.startswith(b"HTTP/1.1 408 ")
        assert b"the body did not arrive within 0.1 s" in reply


def test_a_head_that_does_not_come() -> None:
    with served([Echo()], timeout=0.1) as running:
        for start in (b"", b"GET /health HT", b"POST /echo HTTP/1.1\r\nHost: x\r\n"):
            with running.connect() as connection:
                with contextlib.suppress(ConnectionError):  # a slow machine may come too late for that
                    connection.sendall(start)
                assert read_all(connection) == b""
    # The second one on a connection.
    with served([Echo()]) as running, running.connect() as connection, connection.makefile("rb") as replies:
        connection.sendall(request_bytes("/echo", {"texts": ["a"]}))
        assert _read_reply(replies)[0] == 200
        running.server.config.http_protocol_class.head_timeout = 0.1
        connection.sendall(b"GET /hea")
        assert replies.read() == b""


def test_a_client_that_hangs_up() -> None:
    echo = Echo()
    with served([echo]) as running:
        echo.go.clear()
        with running.connect() as first, running.connect() as second:
            first.sendall(request_bytes("/echo", {"texts": ["first"]}))
            assert echo.entered.wait(PATIENCE)
            second.sendall(request_bytes("/echo", {"texts": ["second"]}))
            wait_until(lambda: running.batcher.waiting == 2)
            second.close()
            wait_until(lambda: running.batcher.waiting == 1)
            first.close()  # this one is at work
            wait_until(lambda: running.batcher.waiting == 0)
        echo.go.set()
        assert running.post("/echo", {"texts": ["third"]})[0] == 200
        assert echo.batches == [["first"], ["third"]]
        wait_until(lambda: b'hangups_total{route="/echo"} 2.0' in running.ask("GET", "/metrics")[2])
        with running.connect() as connection:  # in the middle of its body
            connection.sendall(request_bytes("/echo", {"texts": ["fourth"]})[:-2])
        wait_until(lambda: b'hangups_total{route="/echo"} 3.0' in running.ask("GET", "/metrics")[2])


def test_a_full_queue() -> None:
    echo = Echo()
    with served([echo], max_queue=2) as running:
        echo.go.clear()
        with running.connect() as first, running.connect() as second:
            first.sendall(request_bytes("/echo", {"texts": ["first"]}))
            assert echo.entered.wait(PATIENCE)
            second.sendall(request_bytes("/echo", {"texts": ["second"]}))
            wait_until(lambda: running.batcher.waiting == 2)
            body = json.dumps({"texts": ["third"]}).encode()
            status, headers, reply = running.ask("POST", "/echo", body, {"content-type": "application/json"})
            assert (status, headers["retry-after"]) == (429, "1")
            assert json.loads(reply) == {"error": "2 examples are waiting already: try again later"}
            assert running.ask("GET", "/health")[0] == 200
            echo.go.set()
            with first.makefile("rb") as replies:
                assert _read_reply(replies) == (200, {"echoes": [{"read": ["first"]}]})
            with second.makefile("rb") as replies:
                assert _read_reply(replies) == (200, {"echoes": [{"read": ["second"]}]})


def test_an_error_of_the_model(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "electra_fast.serving"):
        status, reply = running.post("/echo", {"texts": ["bad"]})
    assert (status, sorted(reply)) == (500, ["error", "id"])
    assert "broke" not in reply["error"]
    assert f"error {reply['id']} in /echo" in caplog.text
    assert "the model broke" in caplog.text
    assert running.post("/echo", {"texts": ["fine"]})[0] == 200


def test_health_and_metrics_say_what_happened() -> None:
    with served([Echo()], limits=Limits(timeout=PATIENCE)) as running:
        status, _, reply = running.ask("GET", "/health")
        about = {"model": "a <model>", "routes": ["/echo"], "version": __version__}
        assert (status, json.loads(reply)) == (200, {"status": "ready"} | about)
        assert running.ask("HEAD", "/health")[0::2] == (200, b"")
        for texts in (["abc", "de"], ["f"]):
            assert running.post("/echo", {"texts": texts})[0] == 200
        for body in (b"x", b"[]", b"y"):
            running.post("/echo", body)
        for number in range(3):
            running.ask("GET", f"/unknown/{number}")
        _, headers, reply = running.ask("GET", "/metrics")
        assert headers["content-type"].startswith("text/plain")
        figures = dict(line.rsplit(" ", 1) for line in reply.decode().splitlines() if not line.startswith("#"))
        for name, value in {
            'requests_total{route="/echo",status="200"}': 2,
            'requests_total{route="/echo",status="400"}': 2,
            'requests_total{route="/echo",status="422"}': 1,
            'requests_total{route="/health",status="200"}': 2,
            'requests_total{route="other",status="404"}': 3,
            'request_seconds_count{route="/echo"}': 5,
            "texts_total": 3,
            "tokens_total": 6,
            "batch_texts_count": 2,
            "batch_texts_sum": 3,
            'batch_tokens_bucket{le="16.0"}': 2,
            "queue_examples": 0,
        }.items():
            assert float(figures[f"electra_fast_{name}"]) == value, name
        running.server.config.app.state.stopping = True
        status, _, reply = running.ask("GET", "/health")
        assert (status, json.loads(reply)["status"]) == (503, "stopping")


def test_the_description_for_programs(running: Running) -> None:
    status, _, reply = running.ask("GET", "/openapi.json")
    paths = json.loads(reply)["paths"]
    assert (status, sorted(paths)) == (200, ["/", "/echo", "/health", "/metrics"])
    schema = paths["/echo"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["texts"] == {"type": "array", "items": {"type": "string"}, "maxItems": 4}
