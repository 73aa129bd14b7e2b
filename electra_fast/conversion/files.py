"""Where a TensorFlow checkpoint is, and what a folder or file is that is none. Opens no weights."""

from __future__ import annotations

import re
from pathlib import Path

_PART = re.compile(r"(?P<prefix>.+)\.(?:index|meta|data-\d{5}-of-\d{5})")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz")
_ADVICE = (
    "give the folder of a checkpoint of TensorFlow 1, or its name without ending: model.ckpt-1000000 for "
    "model.ckpt-1000000.index and model.ckpt-1000000.data-00000-of-00001"
)


def find_tensorflow_checkpoint(path: Path) -> Path:
    """The prefix of a checkpoint's files: `path` itself, that of one of the files, or the newest in a folder.

    Raises:
        ValueError: there is none, or there are several and the folder's file `checkpoint` names none of them; it is of
            another format.
    """
    if path.name and _index(path).is_file():
        return path
    if (match := _PART.fullmatch(path.name)) and _index(path.with_name(match["prefix"])).is_file():
        return path.with_name(match["prefix"])
    if not path.is_dir():
        raise ValueError(_about_file(path))
    found = sorted(file.with_suffix("") for file in path.glob("*.index"))
    newest = _newest(path)
    if newest in found:
        return newest
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{path} holds several checkpoints: give one of {', '.join(map(str, found))}")
    raise ValueError(_about_folder(path))


def _index(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.index")


def _newest(folder: Path) -> Path | None:
    """What the file `checkpoint` names; the folder it was written in may have been another."""
    try:
        text = (folder / "checkpoint").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r'^model_checkpoint_path: "(?:.*[/\\])?([^/\\"]+)"', text, re.MULTILINE)
    return folder / match[1] if match else None


def _about_folder(folder: Path) -> str:
    towers = [folder / "discriminator", folder / "generator"]
    if any((place / "config.json").is_file() for place in (folder, *towers)):
        return _about_transformers(folder, [folder, *towers])
    if (folder / "saved_model.pb").is_file():
        return f"{folder} is a SavedModel of TensorFlow, which is not read: {_ADVICE}"
    pickled = [file for file in sorted(folder.iterdir()) if file.suffix in _PICKLES]
    return _about_file(pickled[0]) if pickled else f"{folder} holds no checkpoint of TensorFlow: {_ADVICE}"


def _about_transformers(given: Path, folders: list[Path]) -> str:
    pickled = [folder for folder in folders if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin"))]
    if pickled:
        return _about_file(min(pickled[0].glob("*.bin")))
    return (
        f"{given} is in the format of transformers already, so there is nothing to convert: load it as it is, with "
        "transformers or electra_fast"
    )


def _about_file(path: Path) -> str:
    if not path.exists():
        return f"{path} is not there: {_ADVICE}"
    if match := _PART.fullmatch(path.name):
        return (
            f"{match['prefix']}.index is not beside {path}: a checkpoint is that file and those with .data in the name"
        )
    if path.suffix in _PICKLES:
        return (
            f"{path} is a file of PyTorch's, a pickle, and loading a pickle can run any program that its author put "
            "in: electra-fast reads safetensors only. Get the model as safetensors, or, if you trust the author, load "
            "and save it with transformers: AutoModelForPreTraining.from_pretrained(OLD).save_pretrained(NEW)"
        )
    if path.suffix == ".safetensors":
        return _about_transformers(path, [path.parent])
    if path.suffix in _PACKED:
        return f"{path} is packed: unpack it, and give the folder"
    return f"{path} is no checkpoint of TensorFlow: {_ADVICE}"
