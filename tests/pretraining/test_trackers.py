"""TensorBoard and Weights & Biases get what metrics.jsonl gets, and a resumed run goes on in the same place."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest

from electra_fast.pretraining import trackers as trackers_module
from electra_fast.pretraining.config import ConfigError
from electra_fast.pretraining.metrics import MetricsLog, read_metrics
from electra_fast.pretraining.train import pretrain


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def numbers(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from metrics.jsonl."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(run / "metrics.jsonl"):
        for name, value in row.items():
            if name not in ("kind", "step") and isinstance(value, (int, float)):
                found.setdefault(f"{row['kind']}/{name}", []).append((row["step"], value))
    return found


def check_same(shown: dict[str, list[tuple[int, float]]], logged: dict[str, list[tuple[int, float]]]) -> None:
    assert shown.keys() == logged.keys()
    for name, points in logged.items():
        assert [step for step, _ in shown[name]] == [step for step, _ in points], name
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in points], rel=1e-6), name


def test_tensorboard_shows_a_resumed_run_as_one(tmp_path, quick_config, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs the extra trackers")
    settings = {"training.trackers": "tensorboard", "training.log_every": 1, "training.eval_every": 2}
    config = quick_config(tmp_path / "run", **settings)
    write = MetricsLog.write

    def die(self, kind, step, values):
        write(self, kind, step, values)
        if step == 8:  # three steps after the last checkpoint, so that these are logged twice
            raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(MetricsLog, "write", die)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, progress=False)
    first = scalars(tmp_path / "run" / "tensorboard")
    assert first["train/generator_loss"][-1][0] == 8
    pretrain(config, resume=True, progress=False)
    shown = scalars(tmp_path / "run" / "tensorboard")
    check_same(shown, numbers(tmp_path / "run"))
    assert [step for step, _ in shown["train/generator_loss"]] == list(range(1, 13))


def test_wandb_offline_goes_on_in_the_same_run(tmp_path, quick_config, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra trackers")
    options = {"MODE": "offline", "SILENT": "true", "DISABLE_GIT": "true", "CONSOLE": "off", "_SERVICE_WAIT": "300"}
    for name, value in options.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    output = tmp_path / "run"
    pretrain(quick_config(output, **{"training.trackers": "wandb", "training.steps": 5}), progress=False)
    time.sleep(1.1)  # wandb names a folder by the second, and two runs are to have two
    config = quick_config(output, **{"training.trackers": "wandb", "training.steps": 8})
    pretrain(config, resume=True, progress=False)
    records = sorted((output / "wandb").glob("offline-run-*/*.wandb"))
    assert len(records) == 2
    assert len({path.name for path in records}) == 1  # the run's id
    shown: dict[str, list[tuple[int, float]]] = {}
    for path in records:
        for step, values in history(path):
            for name, value in values.items():
                shown.setdefault(name, []).append((step, value))
    check_same(shown, numbers(output))


def history(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The steps and numbers in a file of wandb: LevelDB's log format, of records in protobuf, after 7 bytes of its own.

    Source: LevelDB's doc/log_format.md. A piece has a checksum, its length and its kind: whole, first, middle, last.
    """
    from wandb.proto import wandb_internal_pb2

    content, place, pieces, rows = path.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # the rest of a block, too short for a piece
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<4xHB", content, place)
        pieces += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind not in (1, 4):
            continue
        record = wandb_internal_pb2.Record.FromString(pieces)
        pieces = b""
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            numbers = {name: value for name, value in values.items() if not name.startswith("_")}
            rows.append((values.get("_step", record.history.step.num), numbers))
    return rows


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path):
    class Broken:
        name = "broken"
        finished = False

        def log(self, values, step):
            raise ConnectionError("no route to host")

        def finish(self):
            self.finished = True

    with MetricsLog(tmp_path / "metrics.jsonl", trackers=[Broken()]) as log:
        with pytest.warns(RuntimeWarning, match=r"broken failed and gets no more metrics.*no route to host"):
            log.write("train", 1, {"loss": 2.0})
        log.write("train", 2, {"loss": 1.0})
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2.0, 1.0]


def test_trackers_that_are_unknown_or_not_installed_are_named(tmp_path, quick_config, monkeypatch):
    with pytest.raises(ConfigError, match=r"training\.trackers must be tensorboard, wandb or both"):
        quick_config(tmp_path / "run", **{"training.trackers": "tensorbord"})
    monkeypatch.setattr(trackers_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tensorboard is not installed: pip install 'electra-fast\[trackers\]'"):
        pretrain(quick_config(tmp_path / "run", **{"training.trackers": "tensorboard"}), progress=False)
