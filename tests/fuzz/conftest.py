from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.pretraining.faults import Machine


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The command line in processes of its own, which need not import everything again."""
    if not hasattr(os, "fork"):
        pytest.skip("Windows forks no process")
    machine = Machine(tmp_path_factory.mktemp("machine"))
    yield machine
    machine.close()
