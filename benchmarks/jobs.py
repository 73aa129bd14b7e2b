"""Results of whole jobs (fine-tuning, exported models, serving): benchmarks/results/jobs/NAME.json."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from electra_fast.info import collect

RESULTS = Path(__file__).parent / "results" / "jobs"


def write_result(name: str, command: str, values: dict[str, Any]) -> Path:
    """`values` with the command, the commit, the date, the hardware and the versions that they were measured with."""
    info = collect()
    facts = {
        "name": name,
        "command": command,
        "commit": os.environ.get("ELECTRA_FAST_COMMIT") or _commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "devices": info.devices,
        "versions": info.versions,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(facts | values, indent=1) + "\n", encoding="utf-8")
    return path


def _commit() -> str | None:
    """None without git or its repository: a result of minutes is kept all the same."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
