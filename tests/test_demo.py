"""The demo in few steps: what it leaves, what it says, and that a second call does nothing anew.

With ELECTRA_FAST_TEST_ALL=1 on all of its text, else on the part that Python brings.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import transformers

from electra_fast import demo
from electra_fast.data import demo_corpus
from electra_fast.demo import run_demo


def test_the_demo_runs_and_a_second_call_shows_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = 8192
    if not os.environ.get("ELECTRA_FAST_TEST_ALL"):
        size = 4096
        monkeypatch.setattr(demo, "VOCAB_SIZE", size)
        sources = demo_corpus._sources()
        part = list(itertools.takewhile(lambda source: source[0].startswith(("topics/", "python/")), sources))
        monkeypatch.setattr(demo_corpus, "_sources", lambda: iter(part))
    output = tmp_path / "my demo"
    assert run_demo(output, steps=3) == 0
    first = capsys.readouterr().out.splitlines()
    assert first[-1].startswith("RTD AUC 0.")
    for name in ("curves.png", "metrics.jsonl", "discriminator/model.safetensors", "generator/model.safetensors"):
        assert (output / name).stat().st_size > 0
    for tower in ("discriminator", "generator"):
        assert len(transformers.AutoTokenizer.from_pretrained(output / tower)) == size
    fill = transformers.pipeline("fill-mask", model=str(output / "generator"), tokenizer=str(output / "generator"))
    assert len(fill("Returns a [MASK] of strings.")) == 5

    written = {
        path: path.stat().st_mtime_ns
        for folder in ("text", "tokenizer", "corpus")
        for path in (output / folder).rglob("*")
    }
    assert len(written) > 10
    assert run_demo(output, steps=3) == 0
    assert capsys.readouterr().out.splitlines()[-1] == first[-1]
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
