"""The choice of a backend, and the registration of operators."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch

from electra_fast import ops
from electra_fast.ops import _backends

IDS = torch.zeros(4, dtype=torch.int64)


@pytest.fixture
def without_extension(monkeypatch):
    monkeypatch.setattr(_backends, "_extension_error", lambda: "no module named _C")
    for choice in (_backends._default, _backends._require):
        choice.cache_clear()
    yield
    for choice in (_backends._default, _backends._require):
        choice.cache_clear()


def test_environment_and_context_are_read_at_the_call(monkeypatch):
    monkeypatch.setenv("ELECTRA_FAST_BACKEND", "reference")
    assert _backends.select("mask_tokens", IDS) == "reference"
    monkeypatch.setenv("ELECTRA_FAST_BACKEND", "fortran")
    with pytest.raises(ValueError, match="ELECTRA_FAST_BACKEND: unknown backend 'fortran'"):
        _backends.select("mask_tokens", IDS)
    with ops.use_backend("reference"):
        assert _backends.select("mask_tokens", IDS) == "reference"
    with pytest.raises(ValueError, match="use_backend"), ops.use_backend("fortran"):
        pass


def test_use_backend_nests_and_belongs_to_its_thread(monkeypatch):
    monkeypatch.setattr(_backends, "_extension_error", lambda: None)
    monkeypatch.delenv("ELECTRA_FAST_BACKEND", raising=False)
    seen = []
    with ops.use_backend("reference"):
        with ops.use_backend("cpp"):
            assert _backends.select("mask_tokens", IDS) == "cpp"
        assert _backends.select("mask_tokens", IDS) == "reference"
        other = threading.Thread(target=lambda: seen.append(_backends.select("mask_tokens", IDS)))
        other.start()
        other.join()
    assert seen == ["cpp"]


def test_what_can_not_run_raises_and_says_what_is_missing(without_extension, monkeypatch):
    with ops.use_backend("cpp"), pytest.raises(RuntimeError, match=r"C\+\+ extension is not built: no module named _C"):
        _backends.select("mask_tokens", IDS)
    with ops.use_backend("cpp"), pytest.raises(RuntimeError, match="CPU tensors only"):
        _backends.select("mask_tokens", IDS.to("meta"))
    monkeypatch.setitem(_backends._KERNELS, "sample_tokens", {})
    with ops.use_backend("triton"), pytest.raises(RuntimeError, match="sample_tokens has no triton backend"):
        _backends.select("sample_tokens", IDS)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with ops.use_backend("triton"), pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        _backends.select("mask_tokens", IDS)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(_backends, "_triton_error", lambda: "no module named triton")
    with ops.use_backend("triton"), pytest.raises(RuntimeError, match="Triton is not importable"):
        _backends.select("mask_tokens", IDS)
    monkeypatch.setattr(_backends, "_extension_error", lambda: None)
    with ops.use_backend("cpp"), pytest.raises(TypeError, match=r"takes torch\.int64, not torch\.float64"):
        _backends.select("mask_tokens", torch.zeros(4, dtype=torch.float64))


def test_falling_back_is_said_once(without_extension, monkeypatch):
    monkeypatch.delenv("ELECTRA_FAST_BACKEND", raising=False)
    with pytest.warns(RuntimeWarning, match="plain PyTorch reference instead of the cpp backend"):
        assert _backends.select("mask_tokens", IDS) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _backends.select("mask_tokens", IDS) == "reference"


def test_availability_has_one_default_and_a_reason_for_each_absence():
    rows = ops.availability()
    for operator in {row.operator for row in rows}:
        for device in {row.device_type for row in rows}:
            mine = [row for row in rows if (row.operator, row.device_type) == (operator, device)]
            assert [row.backend for row in mine] == list(_backends.BACKENDS)
            assert sum(row.is_default for row in mine) == 1
            assert all(row.missing is None for row in mine if row.is_default)
    with ops.use_backend("triton"):
        for row in rows:
            if row.backend == "triton" and row.device_type == "cpu" and row.missing:
                with pytest.raises(RuntimeError):
                    _backends.select(row.operator, IDS)
