"""Double precision for the tests of the models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def _float64() -> Iterator[None]:
    """Models are made in float64: samples are the same ones in another layout, whose rounding changes one in 10^5."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
