"""Libraries that only some users need: imported where they are used, with an error that says how to get them."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Imports `module`.

    Raises ValueError where it is not installed, with the extra of electra-fast that brings it; `purpose` opens the
    message, e.g. "Parquet files".
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != library:
            raise  # it is there, but something that it needs is not
        raise ValueError(
            f"{purpose} need {library}, which is not installed: pip install 'electra-fast[{extra}]'"
        ) from None
