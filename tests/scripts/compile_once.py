"""A compiler that compiles nothing twice: `compile_once.py FOLDER COMPILER ARGUMENT...` keeps objects in FOLDER.

One is used again where the compiler, its arguments and all that lies in csrc/ are the same. With COMPILE_ONCE_QUICK it
does not optimise, which takes a third of the time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path


def main(folder: Path, command: list[str]) -> int:
    if "-c" not in command:  # it links, or tells its version
        return subprocess.call(command)
    if os.environ.get("COMPILE_ONCE_QUICK"):
        command = [*command, "-O0"]  # of several levels the last one counts
    place = command.index("-o") + 1
    target = command[place]
    key = hashlib.sha256(repr([*command[:place], *command[place + 1 :]]).encode())
    for file in sorted(Path("csrc").iterdir()):
        key.update(file.read_bytes())
    kept = folder / f"{key.hexdigest()}.o"
    if not kept.exists():
        if code := subprocess.call(command):
            return code
        shutil.copy(target, kept)
    shutil.copy(kept, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
