"""Kinds of damage to a config file, a corpus or a run: each a function of a NumPy generator and of what it damages.

Damage is what disks and people do; forgery is made on purpose: its checksums fit. Beside a folder that is forged lies
`BAIT`: whole files that no one may touch.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from electra_fast.data.checksum import SEAL, file_sha256, sealed

BAIT = "bait"

_VALUES = [
    "text", "''", "true", "null", "-1", "0", "1", "0.5", "3", "1e3", "1.0e-3", ".nan", "-.inf", "0x1F", "1_000",
    "9" * 25, "2020-01-01", "2020-99-99", "1:30", "[1, 2]", "{a: b}", "[]", "{}", "~", "yes", "!!python/none x",
    "!!binary aGk=", "*anchor", "&anchor 3", "|", "> folded", '"a\\0b"', '"\\uD800"', "'" + "long " * 500 + "'", "漢字",
    "${HOME}",
]  # fmt: skip
_VALUE = re.compile(r"(?<=: )[^,{}\n#]+(?=[,}\n]|$)")
_KEY = re.compile(r"[a-z_]+\w*(?=:)")
_PIECES = [
    "{",
    "}",
    "[",
    "]",
    ":",
    "'",
    '"',
    "\t",
    "\n",
    "- ",
    "? ",
    "&a",
    "*a",
    "%",
    "@",
    "\x00",
    "\x85",
    "\ufeff",
    "---\n",
]
_BAD_BYTES = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf", b"\xe9", b"\x80"]
_STRANGE = [
    "\ufeff", "\x00", "\r", "\r\n\r\n", "\u2028", "\x0b", "\x85", "[MASK] [CLS]", "\u00ad\u00ad", "\u202e",
    "😀👩\u200d🚀", "漢字かな", "e\u0301" * 50, "x" * 3000, "x " * 20_000, "\n" * 1000, " \t\n", "#" * 500,
    "\U0010ffff", "ﬀ ½ Ⅷ",
]  # fmt: skip


def _pick(g: np.random.Generator, items: list):
    return items[int(g.integers(len(items)))]


def _splice(g: np.random.Generator, text, part):
    """`text` with `part` put in at, or instead of, a random place."""
    start = int(g.integers(len(text) + 1))
    return text[:start] + part + text[start + int(g.integers(3)) :]


def deleted_line(g: np.random.Generator, config: str) -> bytes:
    lines = config.splitlines(keepends=True)
    for _ in range(g.integers(1, 4)):
        lines.pop(int(g.integers(len(lines))))
    return "".join(lines).encode()


def swapped_values(g: np.random.Generator, config: str) -> bytes:
    first, second = sorted(g.choice(list(_VALUE.finditer(config)), 2, replace=False), key=lambda match: match.start())
    parts = (config[: first.start()], second[0], config[first.end() : second.start()], first[0], config[second.end() :])
    return "".join(parts).encode()


def wrong_type(g: np.random.Generator, config: str) -> bytes:
    match = _pick(g, list(_VALUE.finditer(config)))
    return (config[: match.start()] + _pick(g, _VALUES) + config[match.end() :]).encode()


def misspelt_key(g: np.random.Generator, config: str) -> bytes:
    match = _pick(g, list(_KEY.finditer(config)))
    key = list(match[0])
    place = int(g.integers(len(key)))
    change = int(g.integers(4))
    if change == 0:
        key[place] = ""
    elif change == 1:
        key[place] *= 2
    elif change == 2:
        key[place] = _pick(g, list("abcxyz_.-0É"))
    else:
        key.insert(place, key.pop(int(g.integers(len(key)))))
    return (config[: match.start()] + "".join(key) + config[match.end() :]).encode()


def broken_yaml(g: np.random.Generator, config: str) -> bytes:
    for _ in range(g.integers(1, 4)):
        config = _splice(g, config, _pick(g, _PIECES))
    content = config.encode()
    return _splice(g, content, _pick(g, _BAD_BYTES)) if g.random() < 0.2 else content


def flipped_byte(g: np.random.Generator, corpus: Path) -> Path:
    path = _file(g, corpus)
    content = bytearray(path.read_bytes())
    content[int(g.integers(len(content)))] ^= int(g.integers(1, 256))
    path.write_bytes(content)
    return path


def truncated_file(g: np.random.Generator, corpus: Path) -> Path:
    path = _file(g, corpus)
    content = path.read_bytes()
    path.write_bytes(content[: int(g.integers(len(content)))] if g.random() < 0.8 else content + content[-2:])
    return path


def deleted_file(g: np.random.Generator, corpus: Path) -> Path:
    """Gone, empty, a folder, or exchanged with another file."""
    path, change = _file(g, corpus), int(g.integers(4))
    if change == 3:
        other = _file(g, corpus)
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return path
    path.unlink()
    if change == 1:
        path.touch()
    elif change == 2:
        path.mkdir()
    return path


def not_utf8(g: np.random.Generator, text: str) -> bytes:
    content = text.encode()
    for _ in range(g.integers(1, 3)):
        content = _splice(g, content, _pick(g, _BAD_BYTES))
    return content


def strange_text(g: np.random.Generator, text: str) -> bytes:
    text = _pick(g, [text, text[: int(g.integers(len(text)))], "", text.replace("\n", "\r\n"), text.replace("\n", " ")])
    for _ in range(g.integers(1, 4)):
        text = _splice(g, text, _pick(g, _STRANGE))
    return text.encode()


def _file(g: np.random.Generator, corpus: Path) -> Path:
    return _pick(g, sorted(path for path in corpus.rglob("*") if path.is_file()))


# Runs and their checkpoints. A run's newest checkpoint is what is damaged most: it is what everything hangs on.


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def _place(g: np.random.Generator, run: Path) -> Path:
    return newest(run) if g.random() < 0.7 else run


def flipped_byte_of_run(g: np.random.Generator, run: Path) -> Path:
    return flipped_byte(g, _place(g, run))


def truncated_file_of_run(g: np.random.Generator, run: Path) -> Path:
    return truncated_file(g, _place(g, run))


def deleted_file_of_run(g: np.random.Generator, run: Path) -> Path:
    return deleted_file(g, _place(g, run))


def forged_state(g: np.random.Generator, run: Path) -> Path:
    """state.json with other values, keys and types, and the right checksum."""
    path = newest(run) / "state.json"
    _forge(g, path, json.loads(path.read_text()))
    return path


def forged_tensors(g: np.random.Generator, run: Path) -> Path:
    """Weights or moments in a file that lies about itself, or of other names, types and values; checksums are right."""
    path = newest(run) / _pick(g, ["model.safetensors", "optimizer.safetensors"])
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    name = _pick(g, [name for name in header if name != "__metadata__"])
    change = int(g.integers(10))
    if change == 0:
        header[name]["dtype"] = _pick(g, ["F64", "I32", "BOOL", "F16", "F8_E4M3", "X", 3, None])
    elif change == 1:
        header[name]["shape"] = _pick(g, [[2**62, 4], [-1], [], "x", [0], [1, *header[name]["shape"]], [1.5], None])
    elif change == 2:
        header[name]["data_offsets"] = _pick(g, [[0, 2**63], [-4, 0], [8, 4], [len(data), len(data) + 4], "x", [0]])
    elif change == 3:
        header[_pick(g, ["../x", "", "__class__", "a" * 10_000, "\x00"])] = header.pop(name)
    elif change == 4:
        header["__metadata__"] = _pick(g, [{"format": "pt"}, {"x": 1}, 3, {"code": "import os"}])
    elif change == 5:
        data[: len(data) // 4 * 4] = np.full(len(data) // 4, _pick(g, [np.nan, np.inf, -3e38, 0]), "<f4").tobytes()
    elif change == 6:
        del header[name]
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(data)
    if change == 7:
        content = struct.pack("<Q", _pick(g, [2**63, 2**40, 0, 1, len(content)])) + content[8:]
    elif change == 8:
        content = pickle.dumps({name: Alarm()})
    elif change == 9:
        content = struct.pack("<Q", 100_000) + b'{"a":' * 20_000 + bytes(data)
    path.write_bytes(content)
    state = json.loads((newest(run) / "state.json").read_text())
    state["checksums"][path.name] = file_sha256(path)
    (newest(run) / "state.json").write_text(json.dumps(sealed({k: v for k, v in state.items() if k != SEAL})))
    return path


def planted_in_run(g: np.random.Generator, run: Path) -> Path:
    """What does not belong there: pickles, links out of the run, pipes, and names that look like a checkpoint's."""
    bait, checkpoints = run.parent / BAIT, run / "checkpoints"
    change = int(g.integers(8))
    if change == 0:  # a later checkpoint that leads elsewhere
        path = checkpoints / "step-00000099"
        path.symlink_to(bait / "checkpoint", target_is_directory=True)
    elif change == 1:
        path = newest(run) / _pick(g, ["state.json", "model.safetensors", "optimizer.safetensors"])
        path.unlink()
        path.symlink_to(bait / "checkpoint" / path.name)
    elif change == 2:  # what is written aside first
        path = _pick(g, [run / ".config.yaml.partial", run / ".metrics.jsonl.partial", run / ".curves.png.partial"])
        path.symlink_to(bait / "file")
    elif change == 3:
        path = checkpoints / _pick(g, [".step-00000006.partial", ".step-00000002.deleted", ".step-x", "step-00000006"])
        path.symlink_to(bait, target_is_directory=True)
    elif change == 4:
        path = run / _pick(g, ["discriminator", "generator", "curves.png", "metrics.jsonl", "config.yaml"])
        path.unlink(missing_ok=True)
        path.symlink_to(bait / ("file" if path.suffix else "checkpoint"))
    elif change == 5:
        path = newest(run) / _pick(g, ["pytorch_model.bin", "optimizer.pt", "model.pkl", "rng_state.pth"])
        path.write_bytes(pickle.dumps(Alarm()))
    elif change == 6:
        path = newest(run) / _pick(g, ["state.json", "model.safetensors"])
        path.unlink()
        os.mkfifo(path)
    else:
        path = checkpoints / _pick(g, ["step-99999999", "step-", "step-x", "step-00000005 ", "step--0000001"])
        path.mkdir()
    return path


class Alarm:
    """Unpickled, it makes a file in the working directory."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, ("unpickled", "w")


def forged_meta(g: np.random.Generator, corpus: Path) -> Path:
    """meta.json with other values, keys and types, and the right checksum."""
    path = corpus / "meta.json"
    _forge(g, path, json.loads(path.read_text()))
    return path


def forged_names(g: np.random.Generator, corpus: Path) -> Path:
    """meta.json that names files outside of the corpus, which are there and whole."""
    path = corpus / "meta.json"
    meta = json.loads(path.read_text())
    bait = corpus.parent / BAIT / "corpus"
    shard = _pick(g, meta["shards"])
    if g.random() < 0.5:
        shard["file"] = _pick(
            g, [f"../{BAIT}/corpus/{shard['file']}", str(bait / shard["file"]), "..", "", "\x00", "."]
        )
    else:
        meta["tokenizer"] = _pick(
            g, [f"../{BAIT}/corpus/tokenizer", str(bait / "tokenizer"), "..", "", "\x00", "a/../.."]
        )
    path.write_text(json.dumps(sealed({key: value for key, value in meta.items() if key != SEAL})))
    return path


def forged_shard(g: np.random.Generator, corpus: Path) -> Path:
    """Token ids or offsets that are out of range, with the right checksums."""
    meta = json.loads((corpus / "meta.json").read_text())
    if g.random() < 0.6:
        shard = _pick(g, meta["shards"])
        path = corpus / shard["file"]
        tokens = np.fromfile(path, "<u2")
        tokens[int(g.integers(len(tokens)))] = _pick(g, [meta["vocab_size"], 65535, meta["mask_token_id"], 0])
        tokens.tofile(path)
        shard["sha256"] = file_sha256(path)
    else:
        path = corpus / "offsets.bin"
        offsets = np.fromfile(path, "<i8")
        place = int(g.integers(len(offsets)))
        offsets[place] = _pick(g, [-1, 2**62, -(2**62), 0, int(offsets[-1]) + 1, int(offsets[-1])])
        offsets.tofile(path)
        meta["offsets_sha256"] = file_sha256(path)
    (corpus / "meta.json").write_text(json.dumps(sealed({key: value for key, value in meta.items() if key != SEAL})))
    return path


def planted_in_corpus(g: np.random.Generator, corpus: Path) -> Path:
    """Pickles beside its files, and pipes, folders and links to nothing in place of them."""
    path = _file(g, corpus)
    change = int(g.integers(4))
    if change == 3:
        path = path.with_name(_pick(g, ["vocab.pkl", "tokenizer.bin", "tokens-99999.bin"]))
        path.write_bytes(pickle.dumps(Alarm()))
        return path
    path.unlink()
    if change == 0:
        path.symlink_to(corpus / "nothing")
    elif change == 1 and path.parent == corpus:
        os.mkfifo(path)
    else:
        path.mkdir()
    return path


_FORGED = [
    None, True, -1, 0, 1, 7, 2**31, 2**63, 10**30, 1.5, -0.0, float("nan"), float("inf"), "", "x", "../x",
    "/etc/passwd", "\x00", "\ud800", "9", "a" * 5000, [], [1], {}, {"a": {}}, [[[]]],
]  # fmt: skip


def _forge(g: np.random.Generator, path: Path, content: dict[str, Any]) -> None:
    content.pop(SEAL)
    for _ in range(int(g.integers(1, 3))):
        node: Any = content
        key = _pick(g, sorted(node))
        while isinstance(node[key], (dict, list)) and node[key] and g.random() < 0.7:
            node = node[key]
            key = _pick(g, sorted(node)) if isinstance(node, dict) else int(g.integers(len(node)))
        change = int(g.integers(6))
        if change == 0 and isinstance(node, dict):
            del node[key]
            if not content:
                break
        elif change == 1 and isinstance(node, dict):
            node[_pick(g, ["__class__", "../x", "step ", "", "x"])] = _pick(g, _FORGED)
        else:
            node[key] = _pick(g, _FORGED)
    path.write_text(json.dumps(sealed(content)))


CONFIG_KINDS: dict[str, Callable[[np.random.Generator, str], bytes]] = {
    f.__name__: f for f in (deleted_line, swapped_values, wrong_type, misspelt_key, broken_yaml)
}
FOLDER_KINDS: dict[str, Callable[[np.random.Generator, Path], Path]] = {
    f.__name__: f for f in (flipped_byte, truncated_file, deleted_file)
}
TEXT_KINDS: dict[str, Callable[[np.random.Generator, str], bytes]] = {f.__name__: f for f in (not_utf8, strange_text)}
RUN_KINDS: dict[str, Callable[[np.random.Generator, Path], Path]] = {
    f.__name__: f
    for f in (
        flipped_byte_of_run,
        truncated_file_of_run,
        deleted_file_of_run,
        forged_state,
        forged_tensors,
        planted_in_run,
    )
}
CORPUS_KINDS: dict[str, Callable[[np.random.Generator, Path], Path]] = {
    f.__name__: f for f in (forged_meta, forged_names, forged_shard, planted_in_corpus)
}
