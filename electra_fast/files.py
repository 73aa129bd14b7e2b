"""Files that are whole or absent, whatever moment the machine stops at."""

from __future__ import annotations

import os
from pathlib import Path


def flush(path: Path) -> None:
    """Wait until a file's or folder's content is on the disk. Windows can't open folders; its rename needs no help."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by a file that holds `text`, as UTF-8; a reader sees the old content or the new, never a part."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.unlink(missing_ok=True)  # of a write that was cut short; were it a link, we would write where it leads
        aside.write_text(text, encoding="utf-8")
        flush(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    flush(path.parent)
