"""`electra-fast info`: what it reports is what is installed and what the operators choose."""

from __future__ import annotations

import json
import os
from importlib import metadata

import pytest
import torch

import electra_fast
from electra_fast import attention
from electra_fast.cli import main
from electra_fast.info import collect
from electra_fast.ops import _backends


def test_versions_and_devices_are_those_here() -> None:
    info = collect()
    assert info.versions["electra-fast"] == electra_fast.__version__
    assert info.versions["torch"] == torch.__version__
    assert info.versions["transformers"] == metadata.version("transformers")
    assert len(info.devices) == 1 + torch.cuda.device_count()
    assert f"{os.cpu_count()} logical cores" in info.devices[0]


def test_default_backend_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ELECTRA_FAST_BACKEND", raising=False)
    operators = {row.operator: row for row in collect().operators if row.device_type == "cpu"}
    ids = torch.zeros(3, dtype=torch.int64)
    assert operators["mask_tokens"].default == _backends.select("mask_tokens", ids)
    for row in operators.values():
        assert row.default not in row.missing
        assert set(row.missing) <= {"cpp", "triton"}
        assert all(row.missing.values())


def test_a_missing_extension_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backends, "_extension_error", lambda: "No module named 'electra_fast._C'")
    row = next(row for row in collect().operators if (row.operator, row.device_type) == ("mask_tokens", "cpu"))
    assert row.default == "reference"
    assert "compiler" in row.missing["cpp"]


def test_table_and_json_say_the_same(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELECTRA_FAST_BACKEND", "reference")
    assert main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert main(["info"]) == 0
    table = capsys.readouterr().out
    assert "\x1b" not in table
    words = table.split()
    for name, version in info["versions"].items():
        assert version is None or words[words.index(name) + 1] == version
    for row in info["operators"]:
        assert any(
            line.split()[:3] == [row["operator"], row["device_type"], row["default"]] for line in table.splitlines()
        )
    assert "ELECTRA_FAST_BACKEND=reference" in table
    for row in info["attention"]:
        dropout = "with" if row["has_dropout"] else "without"
        assert any(line.split()[:3] == [row["device_type"], dropout, row["backend"]] for line in table.splitlines())
        assert all(reason in table for reason in row["missing"].values())
    assert "flash-attn has not been run with this code" in " ".join(table.split())


def test_what_attends_is_what_the_models_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ELECTRA_FAST_BACKEND", raising=False)
    rows = collect().attention
    assert [(row.device_type, row.has_dropout) for row in rows][:2] == [("cpu", False), ("cpu", True)]
    for row in rows:
        use = torch.device(row.device_type), getattr(torch, row.dtype), row.head_dim, row.has_dropout
        assert row.backend == attention.choose(*use)
        before = attention.BACKENDS[: attention.BACKENDS.index(row.backend)]
        assert list(row.missing) == list(before)
        for backend in before:
            with pytest.raises(RuntimeError, match="can't run here"):
                attention.require(backend, *use)
