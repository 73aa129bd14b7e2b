"""The folder of a fine-tuning run: whose it is, and what may be done with it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from electra_fast.files import write_whole

SETTINGS_FILE = "settings.json"
# What a run writes into its folder, and all that --overwrite deletes.
RUN_CONTENT = (
    SETTINGS_FILE,
    "seeds",
    "search",
    "search.json",
    "search.md",
    "predictions",
    "submission",
    "model",
    "results.json",
    "results.md",
)
# What may differ when a run goes on: seeds that are done stay as they are.
_FREE_ON_RESUME = {"config.seeds", "config.device", "config.save_every", "data", "model"}


def claim_output(output: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make `output` the folder of a run of `settings`, a tree of JSON values.

    Raises:
        ValueError: it is a file, or holds a run that is neither to be resumed nor to be overwritten, or one of other
            settings.
    """
    if resume and overwrite:
        raise ValueError("--resume goes on with a run and --overwrite deletes it: give one of them")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file: give a folder")
    holds = [name for name in RUN_CONTENT if os.path.lexists(output / name)]
    if links := [name for name in holds if (output / name).is_symlink()]:
        raise ValueError(
            f"{output / links[0]} is a link, and a run writes into its own folder only: give another output"
        )
    if holds and not resume and not overwrite:
        raise ValueError(f"{output} holds a run already ({holds[0]}): --resume goes on with it, --overwrite deletes it")
    if overwrite:
        _delete(output, holds)
    elif holds:
        _check_same_run(output / SETTINGS_FILE, settings)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / SETTINGS_FILE, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _delete(output: Path, holds: list[str]) -> None:
    """The settings go last: without them nothing resumes."""
    for path in (output / name for name in reversed(holds)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check_same_run(file: Path, settings: dict[str, Any]) -> None:
    try:
        before = _flat(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing, so the run can't be resumed: give another output") from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    now = _flat(settings)
    for key in sorted({*before, *now} - _FREE_ON_RESUME):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"can't resume: {key.rpartition('.')[2]} is {now.get(key)!r} and was {before.get(key)!r} in {file}: "
                "give the same settings or another output, or --overwrite the run"
            )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {key: value for name, part in tree.items() for key, value in _flat(part, f"{prefix}{name}.").items()}
