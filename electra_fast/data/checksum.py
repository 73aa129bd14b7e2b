"""Checksums: of a file, and of a JSON object that carries its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SEAL = "sha256"


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """`content`, which JSON can hold, with the checksum of all of it under the key "sha256"."""
    return {**content, SEAL: _json_sha256(content)}


def unsealed(content: Any) -> dict[str, Any]:
    """What was given to `sealed`.

    Raises:
        ValueError: `content` is not what `sealed` returned.
    """
    if not isinstance(content, dict) or SEAL not in content:
        raise ValueError(f"it holds no {SEAL} of its content")
    rest = {key: value for key, value in content.items() if key != SEAL}
    if content[SEAL] != _json_sha256(rest):
        raise ValueError(f"its content is not the one its {SEAL} was made of")
    return rest


def _json_sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
