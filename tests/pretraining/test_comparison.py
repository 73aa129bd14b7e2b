"""`electra-fast runs`: figures and settings of runs beside each other, and their curves on one picture."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from electra_fast.cli import main
from electra_fast.pretraining.curves import plot_runs
from tests.small import folder_bytes, pretrain_arguments, write_small


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`fast` and `slow`, of another learning rate; `begun`, of which only the settings and two lines are there."""
    folder = write_small(tmp_path_factory.mktemp("comparison"))
    corpus = {"data.valid": folder / "corpus", "training.log_every": 1}
    for name, lr in (("fast", 1e-2), ("slow", 1e-4)):
        more = corpus | {"optimizer.lr": lr}
        assert main(pretrain_arguments(folder / "corpus", folder / "runs" / name, 3, **more)) == 0
    begun = folder / "runs" / "begun"
    begun.mkdir()
    for file in ("config.yaml", "metrics.jsonl"):
        lines = (folder / "runs" / "fast" / file).read_text().splitlines(keepends=True)
        (begun / file).write_text("".join(lines[:2] if file == "metrics.jsonl" else lines))
    return folder / "runs"


def _held_out(run: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "eval"][-1]


def test_compare(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "new.png"
    before = folder_bytes(runs)
    assert (
        main(["runs", "compare", *(str(runs / name) for name in ("fast", "slow", "begun")), "--png", str(picture)]) == 0
    )
    table = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    for name in ("auc", "generator_loss", "discriminator_loss"):
        fast, slow, begun = table[name]
        assert (float(fast), float(slow)) == pytest.approx(
            (_held_out(runs / "fast")[name], _held_out(runs / "slow")[name]), rel=1e-3
        )
        assert begun == "-"
    assert table["optimizer.lr"] == ["0.01", "0.0001", "0.01"]
    assert table["last"] == ["step", "3", "3", "2"]
    assert not {"training.steps", "output", "data.train"} & table.keys()
    assert _size(picture)[0] > 1000
    assert folder_bytes(runs) == before


def _size(png: Path) -> tuple[int, int]:
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG")
    return struct.unpack(">II", content[16:24])


def test_list(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", str(runs)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["run", "state", "step", "of"]
    assert [line.split()[0] for line in lines] == ["begun", "fast", "slow"]
    assert ["not finished" in line for line in lines] == [True, False, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "fast"], "runs compare takes two runs or more"),
        (["compare", "fast", "no"], "no is no run: it holds no config.yaml"),
        (["compare", "fast", "../runs/fast"], "a run is given twice"),
        (["compare", "fast", "slow", "--png", "there.png"], "there.png exists: choose another name with --png"),
        (["compare", "fast", "slow", "--png", "no/x.png"], "no is no folder"),
        (["compare", "fast", "broken"], "broken/metrics.jsonl, line 2 is damaged"),
        (["list", "fast", "slow"], "runs list takes one folder"),
        (["list", "empty"], "no run in empty"),
        (["show", "fast"], "compare"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    (runs / "there.png").write_bytes(b"mine")
    (runs / "empty").mkdir(exist_ok=True)
    (runs / "broken").mkdir(exist_ok=True)
    (runs / "broken" / "config.yaml").write_bytes((runs / "fast" / "config.yaml").read_bytes())
    (runs / "broken" / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": \n')
    capsys.readouterr()
    try:
        assert main(["runs", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
        assert (runs / "there.png").read_bytes() == b"mine"
    finally:
        for path in (runs / "broken").iterdir():
            path.unlink()
        (runs / "broken").rmdir()
        (runs / "there.png").unlink()


def test_a_picture_of_runs_without_a_line(tmp_path: Path) -> None:
    plot_runs({"one": [], "two": []}, tmp_path / "empty.png")
    strange = {"kind": "train", "step": 1, "generator_loss": None, "lr": "x", "auc": float("inf"), "gradient_norm": 0.0}
    plot_runs({"": [strange]}, tmp_path / "strange.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.png", "strange.png"]
