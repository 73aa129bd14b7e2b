"""The HTTP side: routes, replies and errors."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from electra_fast import __version__
from electra_fast.serving.batcher import Batcher, QueueFull, Stopped
from electra_fast.serving.bodies import Refused, check_head, listed, parse_json, read_body
from electra_fast.serving.metrics import Metrics
from electra_fast.serving.page import page_of

if TYPE_CHECKING:
    from electra_fast.serving.services import Service

_log = logging.getLogger(__name__)
_RETRY_AFTER = "1"  # seconds
_LONG = 2**14  # bytes of a request, characters of a reply; to read or write longer ones would hold up other clients
_JSON = "application/json"
_WRITER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_LONGEST_MESSAGE = 500  # characters: some quote what was sent


@dataclass(frozen=True)
class Limits:
    """What a request may be.

    Attributes:
        max_body_bytes: of its body.
        max_examples: that it lists.
        timeout: seconds in which its head, and then its body, must have come.
    """

    max_body_bytes: int = 2**20
    max_examples: int = 256
    timeout: float = 10.0


def create_app(
    services: Sequence[Service], batcher: Batcher, metrics: Metrics, *, name: str, limits: Limits
) -> FastAPI:
    """The application: a POST route for each service; `name` is the model's.

    `app.state.stopping` true makes /health say so.
    """
    app = FastAPI(
        title=name,
        version=__version__,
        summary="A model served by electra-fast.",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
    )
    app.state.stopping = False
    metrics.watch_queue(lambda: batcher.waiting)
    about = {"model": name, "routes": [f"/{service.route}" for service in services], "version": __version__}
    about |= next(({"task": s.task.name, "labels": s.task.labels} for s in services if hasattr(s, "task")), {})
    page = page_of(services, name=name)

    for service in services:
        _add_service(app, service, batcher, limits)

    async def show_page() -> Response:
        return Response(page.html, headers=page.headers, media_type="text/html")

    async def health() -> Response:
        if app.state.stopping or not batcher.is_alive:
            return _json({"status": "stopping"} | about, 503)
        return _json({"status": "ready"} | about)

    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)

    for path, function, summary in (
        ("/", show_page, "A page to try the model by hand"),
        ("/health", health, "200 and what is served; 503 while the service ends"),
        ("/metrics", show_metrics, "Counts for Prometheus"),
    ):
        app.add_api_route(path, function, methods=["GET"], summary=summary, operation_id=function.__name__)
        app.add_api_route(path, function, methods=["HEAD"], include_in_schema=False)

    app.add_exception_handler(HTTPException, _unknown)
    known = {"/", "/health", "/metrics", "/openapi.json", *about["routes"]}
    app.add_middleware(_Counted, metrics=metrics, known=known)
    return app


def _add_service(app: FastAPI, service: Service, batcher: Batcher, limits: Limits) -> None:
    async def answer(request: Request) -> Response:
        try:
            check_head(request, limits.max_body_bytes)
            body = await read_body(request, max_bytes=limits.max_body_bytes, timeout=limits.timeout)
            items = listed(parse_json(body), service.asks, limits.max_examples)
            examples = await _read(service, items, len(body))
            results = await _result(batcher.submit(service, examples, len(body)), request) if examples else []
            return await _reply(service.answers, results)
        except Refused as error:
            return _json({"error": str(error)}, error.status, error.headers)
        except QueueFull as error:
            return _json({"error": str(error)}, 429, {"retry-after": _RETRY_AFTER})
        except Stopped as error:
            return _json({"error": str(error)}, 503, {"retry-after": _RETRY_AFTER})
        except ClientDisconnect:
            return Response(status_code=499)  # goes nowhere
        except Exception:
            number = secrets.token_hex(4)
            _log.exception("error %s in /%s", number, service.route)
            return _json({"error": "the service failed; its log says how, under this id", "id": number}, 500)

    schema = {"type": "object", "required": [service.asks], "additionalProperties": False}
    object_ = {"type": "object", "description": "a line of JSON as `electra-fast predict --input -` takes"}
    item = {"type": "string"} if service.asks == "texts" else object_
    schema["properties"] = {service.asks: {"type": "array", "items": item, "maxItems": limits.max_examples}}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    app.add_api_route(
        f"/{service.route}",
        answer,
        methods=["POST"],
        summary=service.about,
        operation_id=service.route,
        openapi_extra={"requestBody": body},
    )


async def _read(service: Service, items: list[Any], size: int) -> list[Any]:
    try:
        if size > _LONG:
            return await anyio.to_thread.run_sync(service.read, items)
        return service.read(items)
    except ValueError as error:
        raise Refused(422, str(error)[:_LONGEST_MESSAGE]) from error
    except RecursionError as error:
        raise Refused(422, "an example is nested too deeply") from error


async def _result(future: Future[list[Any]], request: Request) -> list[Any]:
    """What the batcher makes of a request; cancelled when its client hangs up, which raises ClientDisconnect."""
    result = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait((result, gone), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientDisconnect
        return result.result()
    finally:
        gone.cancel()
        result.cancel()  # of one that is done: nothing


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


async def _reply(key: str, results: list[Any]) -> Response:
    """The results as JSON, each written by itself: those of a long reply in a thread, which lets others in between."""
    left, parts, size = iter(results), [], 0
    for result in left:
        parts.append(_WRITER.encode(result))
        size += len(parts[-1])
        if size > _LONG:
            parts += await anyio.to_thread.run_sync(lambda: list(map(_WRITER.encode, left)))
    content = await anyio.to_thread.run_sync(_joined, key, parts) if size > _LONG else _joined(key, parts)
    return Response(content, media_type=_JSON)


def _joined(key: str, parts: list[str]) -> bytes:
    return f'{{"{key}": [{", ".join(parts)}]}}'.encode()


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_WRITER.encode(value).encode(), status, headers, media_type=_JSON)


async def _unknown(request: Request, error: Exception) -> Response:
    """404 and 405 in the form of the other errors."""
    assert isinstance(error, HTTPException)
    return _json({"error": error.detail}, error.status_code, dict(error.headers or {}))


class _Counted:
    """Counts requests and their time by route, and tells browsers not to guess what a reply is."""

    def __init__(self, app: ASGIApp, metrics: Metrics, known: set[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.known = known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start = time.perf_counter()
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-content-type-options", b"nosniff"))
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            route = scope["path"] if scope["path"] in self.known else "other"
            self.metrics.request(route, None if status == 499 else status, time.perf_counter() - start)
