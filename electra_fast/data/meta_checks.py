"""Checks of what meta.json says, beyond its checksum: anyone can write a file whose checksum fits."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from electra_fast.arguments import shown

T = TypeVar("T")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Of a file or folder beside meta.json: leads nowhere else, and file systems take it.
_NAME = re.compile(r"(?!\.)[\w.-]{1,255}", re.ASCII)


def checked(kind: type[T], content: Any) -> T:
    """The dataclass `kind` made of parsed JSON; lists of objects become tuples of the dataclasses its hints name.

    Raises:
        ValueError: a key is missing or unknown, or a value is of another type, a count below 0, a checksum that is
            none, or the name of a file that is not beside meta.json.
    """
    names = {field.name for field in fields(kind)}
    if not isinstance(content, dict) or content.keys() != names:
        keys = sorted(content.keys() ^ names) if isinstance(content, dict) else shown(content)
        raise ValueError(f"missing or unknown keys {shown(keys)}")
    hints = get_type_hints(kind)
    return kind(**{name: _checked_value(name, hints[name], value) for name, value in content.items()})


def _checked_value(name: str, hint: Any, value: Any) -> Any:
    if get_origin(hint) is tuple:
        fits = isinstance(value, list)
        value = tuple(checked(get_args(hint)[0], item) for item in value) if fits else value
    elif name in ("file", "tokenizer"):
        fits = isinstance(value, str) and _NAME.fullmatch(value) is not None
    elif name.endswith("sha256"):
        fits = isinstance(value, str) and _SHA256.fullmatch(value) is not None
    else:
        kinds = get_args(hint) or (hint,)
        fits = type(value) in kinds and not (isinstance(value, int) and value < 0)
    if not fits:
        raise ValueError(f"{name} is {shown(value)}")
    return value
