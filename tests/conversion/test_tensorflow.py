"""`electra-fast convert` on checkpoints that TensorFlow writes in Google's layout, and back into such files.

Skipped where TensorFlow is not installed, as it is not by the extra `dev`: it takes 1.4 GB, and tensorboard imports it
wherever it is there. With it: pip install -e '.[dev,tensorflow]'.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import electra_fast
from electra_fast.cli import main
from electra_fast.conversion.tensorflow_reader import read_tensorflow
from electra_fast.models import ElectraForJointPreTraining
from tests.conversion.google import (
    BY_NAME,
    SMALL,
    Arrays,
    Electra,
    google_weights,
    random_weights,
    read_checkpoint,
    with_optimizer,
    write_checkpoint,
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,
    reason="needs TensorFlow: pip install -e '.[tensorflow]'",
)
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture
def rng(rng_seed: int, monkeypatch: pytest.MonkeyPatch) -> np.random.Generator:
    monkeypatch.setitem(os.environ, "TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow is imported here for the first time
    monkeypatch.setitem(os.environ, "TF_ENABLE_ONEDNN_OPTS", "0")
    return np.random.default_rng(rng_seed)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Arrays], Path]:
    """Writes a checkpoint and a vocabulary into a folder with an unusual name."""

    def write(variables: Arrays) -> Path:
        folder = tmp_path / f"modèle 漢字 {len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
        return write_checkpoint(folder, variables)

    return write


def _assert_same_bits(found: Arrays, wanted: Arrays) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("name", ["small", "base", "base untied", "small all tied"])
def test_tensorflow_to_ours_and_back(
    name: str, write: Callable, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = BY_NAME[name]
    prefix = write(with_optimizer(random_weights(sizes, rng), rng, step=1234567))
    stored = read_checkpoint(prefix)
    weights = {name: array for name, array in stored.items() if not name.endswith(("adam_m", "adam_v", "global_step"))}
    assert len(stored) == 3 * len(weights) + 1
    output = tmp_path / "converted é"

    assert main(["convert", str(prefix.parent), "--output", str(output)]) == 0

    shown, err = capsys.readouterr()
    assert f"From {prefix} after 1,234,567 steps" in shown
    assert f"Left out: {2 * len(weights)} variables of the optimizer" in shown
    assert "pretrain --config continue --init.run" in shown
    assert "Traceback" not in err
    ids, types = rng.integers(0, sizes.vocab, (2, 9)), rng.integers(0, 2, (2, 9))
    inputs = (ids, np.array([[1] * 9, [1] * 6 + [0] * 3]), types)
    google, real = Electra(weights), inputs[1] == 1
    models = {}
    for kind, class_name, wanted in (
        ("discriminator", "ElectraForPreTraining", google.rtd_logits(*inputs)),
        ("generator", "ElectraForMaskedLM", google.mlm_logits(*inputs)),
    ):
        for library in (electra_fast, transformers):
            models[kind] = getattr(library, class_name).from_pretrained(output / kind).eval()
            with torch.no_grad():
                logits = models[kind](*map(torch.from_numpy, inputs)).logits.numpy()
            np.testing.assert_allclose(logits[real], wanted[real], rtol=0, atol=1e-5)
        assert transformers.AutoTokenizer.from_pretrained(output / kind).mask_token_id == 4

    again = write(with_optimizer(google_weights(**models, sharing=sizes.sharing), rng))
    back = read_checkpoint(again)
    assert back.keys() == stored.keys()
    _assert_same_bits({name: back[name] for name in weights}, weights)


def test_ours_to_tensorflow_and_back(write: Callable, tmp_path: Path, rng: np.random.Generator) -> None:
    sizes = {"vocab_size": 31, "embedding_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 12}
    model = ElectraForJointPreTraining(
        electra_fast.ElectraConfig(**sizes, hidden_size=64, num_attention_heads=1, intermediate_size=80),
        electra_fast.ElectraConfig(**sizes, hidden_size=128, num_attention_heads=2, intermediate_size=96),
    )
    prefix = write(with_optimizer(google_weights(model.generator, model.discriminator, sharing="embeddings"), rng))
    assert main(["convert", str(prefix), "--output", str(tmp_path / "back")]) == 0
    back = ElectraForJointPreTraining.from_pretrained(tmp_path / "back")
    found, wanted = ({n: p.detach().numpy() for n, p in m.state_dict().items()} for m in (back, model))
    _assert_same_bits(found, wanted)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda prefix: _flip(prefix.with_name(f"{prefix.name}.data-00000-of-00001")),
        lambda prefix: prefix.with_name(f"{prefix.name}.data-00000-of-00001").unlink(),
        lambda prefix: prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(b"short"),
        lambda prefix: _flip(prefix.with_name(f"{prefix.name}.index")),
        lambda prefix: prefix.with_name(f"{prefix.name}.index").write_bytes(b""),
    ],
    ids=["data flipped", "data missing", "data cut", "index flipped", "index empty"],
)
def test_damaged_files_are_told(
    damage: Callable[[Path], None],
    write: Callable,
    tmp_path: Path,
    rng: np.random.Generator,
    capfd: pytest.CaptureFixture[str],
) -> None:
    weights = random_weights(SMALL, rng)
    prefix = write(weights | {"global_step": np.array(1)})
    damage(prefix)
    assert main(["convert", str(prefix.parent), "--output", str(tmp_path / "out")]) == 2
    shown, err = capfd.readouterr()
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(message) == 1, err
    assert f"{prefix} can't be read, a file of it is missing or damaged: " in message[0]
    assert "Traceback" not in err
    assert shown == ""
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_tensorflow_2_is_told(tmp_path: Path, rng: np.random.Generator) -> None:
    import tensorflow as tf

    prefix = Path(tf.train.Checkpoint(model=tf.Variable(rng.standard_normal(3))).save(str(tmp_path / "given" / "ckpt")))
    with pytest.raises(ValueError, match=r"it was written by TensorFlow 2 .* only Google's is read"):
        electra_fast.conversion.convert(prefix, tmp_path / "out")


def test_arrays_are_read_when_they_are_asked_for(write: Callable, rng: np.random.Generator) -> None:
    weights = random_weights(SMALL, rng)
    prefix = write(weights | {"global_step": np.array(5)})
    variables = read_tensorflow(prefix)
    assert {name: (v.shape, v.dtype) for name, v in variables.items()} == {
        name: (array.shape, array.dtype) for name, array in weights.items()
    } | {"global_step": ((), np.dtype(np.int64))}
    for name, array in weights.items():
        assert np.asarray(variables[name]).tobytes() == array.tobytes()
