from __future__ import annotations

import io
import re

import pytest

from electra_fast.data import progress as progress_module
from electra_fast.data.progress import ReadingProgress


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_lines_where_nobody_watches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    with ReadingProgress("prepare", 100_000_000) as progress:
        for _ in range(25):  # seconds, of 2 MB each
            clock.now += 1
            progress.advance(2_000_000)
            progress.tell(documents=1234, tokens=5_678_901)
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "prepare 20.0/100.0 MB  2.00 MB/s  documents 1,234  tokens 5,678,901  ETA 00:40",
        "prepare 40.0/100.0 MB  2.00 MB/s  documents 1,234  tokens 5,678,901  ETA 00:30",
    ]
    assert err == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    with ReadingProgress("prepare", 1000) as progress:
        progress.advance(500)
        progress.tell(documents=7)
        progress.advance(500)
    assert re.search(r"prepare: 100%.*1.00k/1.00k .*documents=7", terminal.getvalue().split("\r")[-1])
    assert capsys.readouterr().out == ""


def test_nothing_if_not_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress_module, "SECONDS", 0.0)
    with ReadingProgress("prepare", 1000, show=False) as progress:
        progress.advance(500)
        progress.tell(documents=7)
    assert capsys.readouterr() == ("", "")
