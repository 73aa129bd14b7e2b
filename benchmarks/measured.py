"""Writes what `electra-fast estimate` knows of measured hardware, electra_fast/estimation/measured.json, from results.

`python -m benchmarks.measured` takes the pretraining step of the newest file of each device in benchmarks/results/.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, ROOT

TARGET = ROOT / "electra_fast" / "estimation" / "measured.json"
_DEVICE = re.compile(r"(cpu|cuda:0): (.+?), (?:\d+ logical cores, (\d+) threads in use|.*)")
_SHAPE = re.compile(r"ELECTRA-(\w+), (\d+) x (\d+), ")


def measured(results: Path = RESULTS) -> list[dict[str, Any]]:
    """A record for each device and shape, the newest measurement of it."""
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in sorted(results.glob("*.json"), key=lambda path: json.loads(path.read_text("utf-8"))["datetime"]):
        for record in _records(path):
            newest[tuple(record[key] for key in ("processor", "threads", "precision", "recipe", "length"))] = record
    return list(newest.values())


def _records(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    records = []
    for info in (benchmark["extra_info"] for benchmark in content["benchmarks"]):
        shape = _SHAPE.match(info.get("shape", ""))
        if info.get("operator") != "pretraining step" or shape is None:
            continue
        devices = map(_DEVICE.fullmatch, content["machine_info"]["devices"])
        device = next(match for match in devices if match and match[1].startswith(info["device"]))
        records.append(
            {
                "processor": device[2],
                "threads": info["threads"] if info["device"] == "cpu" else None,
                # Older files have the ids' dtype.
                "precision": "float32" if info["dtype"] == "int64" else info["dtype"],
                "recipe": shape[1],
                "sequences": int(shape[2]),
                "length": int(shape[3]),
                "seconds": info["median"]["ours"],
                "date": content["datetime"][:10],
                "commit": content["commit_info"]["id"][:10],
                "file": f"benchmarks/results/{path.name}",
            }
        )
    return records


def text() -> str:
    """The file's content."""
    return json.dumps(measured(), indent=2) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
