"""Starts and stops the service: uvicorn with limits on slow clients, signals, and one line when it is ready."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

MAX_HEAD_BYTES = 2**16
_LEAST_READ = 2**16  # bytes of a reply that a client must have taken before each timeout


class TimedHead:
    """Added to a protocol of uvicorn's, which waits for a request's head, and for a reader, for ever.

    A connection is closed when a head is not complete within `head_timeout` seconds of its first byte, or of the
    connection; when a head is longer than 64 KiB; and when its client reads less than 64 KiB of a reply, or of what is
    left of it, in as long.
    """

    head_timeout: float
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` tells of all that the system does not take
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # type: ignore[misc]
        if self._is_answering():
            self._head_is_complete()
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.transport.close()
        elif self._head_timer is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_complete()
        self.resume_writing()
        super().connection_lost(exc)  # type: ignore[misc]

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[misc]
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[misc]
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _await_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self.head_timeout, self._look_at_reader, left)

    def _look_at_reader(self, before: int) -> None:
        if self.transport.get_write_buffer_size() > before - _LEAST_READ:
            self.transport.abort()
        else:
            self._await_reader()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._is_answering():
            self.transport.close()

    def _head_is_complete(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _protocol(timeout: float) -> type[asyncio.Protocol]:
    return type("TimedProtocol", (TimedHead, _parser()), {"head_timeout": timeout})


def _parser() -> type[asyncio.Protocol]:
    """uvicorn's protocol by httptools where that is installed, else by h11, which is slower."""
    if importlib.util.find_spec("httptools") is not None:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        return HttpToolsProtocol
    from uvicorn.protocols.http.h11_impl import H11Protocol

    return H11Protocol


class Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready and when it is told to stop.

    Args:
        app: as `create_app` makes it.
        timeout: seconds for a request's head, for a silent connection, and for a client to read.
        grace: seconds in which accepted requests are answered after SIGTERM or ctrl-C.
        max_connections: more get 503.
        on_ready: is called when requests are taken.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        timeout: float = 10.0,
        grace: float = 30.0,
        max_connections: int = 512,
        on_ready: Callable[[], object] = lambda: None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=_protocol(timeout),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=max_connections,
            timeout_keep_alive=max(1, round(timeout)),
            timeout_graceful_shutdown=max(1, round(grace)),
        )
        super().__init__(config)
        self._app = app
        self._on_ready = on_ready

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on sockets as `listen` makes them, until a signal or `stop`."""
        with self._signals():
            super().run(sockets)

    def stop(self) -> None:
        """As SIGTERM, for another thread."""
        self._app.state.stopping = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._app.state.stopping = True
        super().handle_exit(sig, frame)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals stop the server before uvicorn listens to them too; when it has stopped it raises them once more."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 is any that is free.

    Raises:
        ValueError: the address is not this machine's, or in use.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ValueError(f"can't listen at {host}, port {port}: {error}") from error


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
