"""A request's body: read within limits, and turned into a list of examples, or refused in one clear line."""

from __future__ import annotations

import json
from typing import Any

import anyio
from starlette.requests import Request

from electra_fast.arguments import nearest, shown

_JSON = "application/json"


class Refused(Exception):
    """A request that gets no result.

    Args:
        status: of HTTP.
        message: a line for whoever sent it.
        closes: end the connection, as the rest of the body is not read.
        headers: more of the reply's.
    """

    def __init__(
        self, status: int, message: str, *, closes: bool = False, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = (headers or {}) | ({"connection": "close"} if closes else {})


def check_head(request: Request, max_bytes: int) -> None:
    """Raises Refused for a body that is no JSON (415) or too long by its head (413)."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower()
    if kind.strip().lower() != _JSON or charset not in ("", "charset=utf-8", 'charset="utf-8"'):
        raise Refused(415, f"expected the header Content-Type: {_JSON}, in UTF-8", closes=True)
    if "content-encoding" in request.headers:
        raise Refused(415, "compressed bodies are not read: send plain JSON", closes=True)
    length = request.headers.get("content-length", "0")  # that it is a number HTTP's parser has checked
    if len(length) > 18 or int(length) > max_bytes:
        raise _too_long(max_bytes)


async def read_body(request: Request, *, max_bytes: int, timeout: float) -> bytes:
    """The body, of at most `max_bytes`, if all of it comes within `timeout` seconds.

    Raises:
        Refused: it is too long (413) or too slow (408).
        starlette.requests.ClientDisconnect: its sender has hung up.
    """
    parts, size = [], 0
    try:
        with anyio.fail_after(timeout):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise _too_long(max_bytes)
                parts.append(part)
    except TimeoutError as error:
        raise Refused(408, f"the body did not arrive within {timeout:g} s", closes=True) from error
    return b"".join(parts)


def _too_long(max_bytes: int) -> Refused:
    return Refused(413, f"the body has more than {max_bytes:,} bytes: send fewer examples at a time", closes=True)


def parse_json(body: bytes) -> Any:
    """The value of a JSON text; strictly: no NaN, no key twice, no text that is not Unicode.

    Raises:
        Refused: 400.
    """
    try:
        text = body.decode()
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)
        if "\\u" in text:  # the only way to half of a surrogate pair, which no tokenizer takes
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise Refused(400, f"not UTF-8: {error.reason} at byte {error.start + 1:,}") from error
    except UnicodeEncodeError as error:
        raise Refused(
            400, "a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
        ) from error
    except RecursionError as error:
        raise Refused(400, "broken JSON: nested too deeply") from error
    except json.JSONDecodeError as error:
        raise Refused(400, f"broken JSON: {error.msg} at character {error.pos + 1:,}") from error
    except ValueError as error:  # ours, and Python's for a number of thousands of digits
        raise Refused(400, f"broken JSON: {error}") from error
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {shown(twice)} stands twice in an object")
    return values


def listed(value: Any, key: str, max_examples: int) -> list[Any]:
    """The list that a request `{key: [...]}` holds.

    Raises:
        Refused: it is of another form (422) or too long (413).
    """
    if not isinstance(value, dict):
        raise Refused(422, f'expected an object {{"{key}": [...]}}; got {shown(value)}')
    for other in value:
        if other != key:
            raise Refused(422, f"unknown key {shown(other)}{nearest(other, [key])}; expected {key!r} alone")
    items = value.get(key)
    if not isinstance(items, list):
        raise Refused(422, f"{key} must be a list; got {shown(items) if key in value else 'nothing'}")
    if len(items) > max_examples:
        raise Refused(413, f"{len(items):,} {key}: a request may have {max_examples:,}; send several requests")
    return items
