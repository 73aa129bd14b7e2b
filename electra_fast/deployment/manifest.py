"""`deployment.json`: what an exported folder holds and how it was checked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from electra_fast.files import write_whole

MANIFEST_FILE = "deployment.json"
_FORMAT = 1


@dataclass(frozen=True)
class Port:
    """An input or output: its dtype as NumPy names it; an axis is a size, or the name of one that may be any."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Manifest:
    """What a folder holds.

    Attributes:
        kind: key of `deployment.FORMATS`.
        file: the graph with its weights.
        architecture: transformers' class.
        inputs: in the order of `Deployed.__call__`.
        outputs: in the model's order.
        max_length: the longest sequence in tokens.
        pad_token_id: fills `input_ids` at padding.
        versions: of what it was made with.
        check: figures of the comparison with the model.
        accuracy: metric, value of the model and of the package, examples; None where no labelled data were given.
    """

    kind: str
    file: str
    architecture: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    max_length: int
    pad_token_id: int
    versions: dict[str, str]
    check: dict[str, Any]
    accuracy: dict[str, Any] | None = None


def write_manifest(manifest: Manifest, folder: Path) -> None:
    content = {"format": _FORMAT} | asdict(manifest)
    write_whole(folder / MANIFEST_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Raises ValueError where the folder holds none, or a damaged one, or one of another version."""
    file = folder / MANIFEST_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT:
            raise ValueError(f"{file} is of another version of electra-fast: export the model again")
        ports = {key: tuple(_port(port) for port in content.pop(key)) for key in ("inputs", "outputs")}
        return Manifest(**content, **ports)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"{folder} holds no {MANIFEST_FILE}: expected a folder that `electra-fast export --format onnx` or another "
            "of its formats has written"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def _port(content: dict[str, Any]) -> Port:
    return Port(content["name"], content["dtype"], tuple(content["shape"]))
