from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from electra_fast.data.checksum import file_sha256, sealed, unsealed


def test_the_files_checksum_is_that_of_its_bytes(tmp_path: Path, rng_seed: int) -> None:
    for size in (0, 1, (1 << 20) - 1, 1 << 20, (2 << 20) + 3):
        content = np.random.default_rng(rng_seed).bytes(size)
        (tmp_path / "file").write_bytes(content)
        assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_any_change_of_sealed_content_is_noticed() -> None:
    content = {"step": 7, "lr": 1e-3, "name": "ñ", "files": [{"a": None}, True]}
    seal = sealed(content)
    assert unsealed(json.loads(json.dumps(seal, indent=3))) == content
    for changed in ({**seal, "step": 8}, {**seal, "new": 1}, {k: v for k, v in seal.items() if k != "lr"}):
        with pytest.raises(ValueError, match="its content is not the one"):
            unsealed(changed)
    for other in (content, [], None, "text"):
        with pytest.raises(ValueError, match="holds no sha256"):
            unsealed(other)
