"""Exported packages give what stock transformers gives, or are not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from electra_fast.cli import main
from electra_fast.deployment import FORMATS, check, export_model, load, runtime
from tests.deployment.conftest import HEADS, STOCK, write_model

SLOW = pytest.mark.skipif(os.environ.get("ELECTRA_FAST_TEST_ALL") != "1", reason="runs with ELECTRA_FAST_TEST_ALL=1")
# Every format and what is special about a head runs always; all pairs take four minutes.
ALWAYS = {
    ("torch-export", "ElectraForPreTraining"),
    ("torch-export", "BertForQuestionAnswering"),
    ("torch-export", "ElectraForMultipleChoice"),
    ("onnx", "BertForSequenceClassification"),
    ("onnx-int8", "ElectraForTokenClassification"),
}
PAIRS = [
    pytest.param(format, name, marks=[] if (format, name) in ALWAYS else SLOW) for format in FORMATS for name in HEADS
]
REAL = Path(__file__).parents[3] / "shared" / "data" / "glue" / "SST-2" / "dev.tsv"


def drawn(shape: tuple[int, ...], g: np.random.Generator) -> dict[str, np.ndarray]:
    """Padded inputs [B, S] or [B, choices, S]: the first row without padding."""
    lengths = g.integers(1, shape[-1] + 1, shape[:-1])
    lengths.flat[0] = shape[-1]
    mask = (np.arange(shape[-1]) < lengths[..., None]).astype(np.int64)
    ids, types = g.integers(0, 80, shape) * mask, g.integers(0, 2, shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def stock_outputs(folder: Path, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    model = STOCK[name].from_pretrained(folder).eval()
    with torch.inference_mode():
        outputs = model(**{key: torch.from_numpy(value) for key, value in inputs.items()})
    return {key: value.numpy() for key, value in outputs.items()}


@pytest.mark.parametrize(("format", "name"), PAIRS)
def test_any_batch_of_any_length(
    format: str, name: str, tmp_path: Path, tokenizer_folder: Path, texts: Path, rng_seed: int
) -> None:
    g = np.random.default_rng(rng_seed)
    model = write_model(name, tmp_path / "model", tokenizer_folder)
    exported = export_model(model, tmp_path / "package", format=format, data=texts)
    assert exported.check.sequences == 60
    assert exported.check.shortest < exported.check.longest
    package = load(tmp_path / "package")
    choices = (3,) if name.endswith("MultipleChoice") else ()
    for shape in ((1, *choices, 1), (1, *choices, 40), (2, *choices, 7), (7, *choices, 23)):
        inputs = drawn(shape, g)
        found, expected = package(**inputs), stock_outputs(model, name, inputs)
        assert list(found) == list(expected)
        for key, want in expected.items():
            assert found[key].shape == want.shape
            assert found[key].dtype == np.float32
            # Of a value that is padding nothing is promised: the 8-bit attention masks it otherwise.
            is_token = inputs["attention_mask"] == 1 if want.shape[:2] == shape and not choices else ...
            difference = np.abs(found[key][is_token] - want[is_token])
            if format == "onnx-int8":
                # Weights and activations are off by up to 1/254 of their range, in 14 products one after another;
                # a twentieth was the most seen, half of the spread would be no model any more.
                assert np.sqrt(np.square(difference).mean()) < 0.5 * max(want.std(), 1.0)
            else:
                assert difference.max() <= 1e-4 * max(1.0, np.abs(want).max())


def test_a_package_is_described(tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model("ElectraForSequenceClassification", tmp_path / "model", tokenizer_folder, num_labels=3)
    package = tmp_path / "package é"
    assert main(["export", str(model), "--format", "torch-export", "--output", str(package), "--seed", "5"]) == 0
    shown = capsys.readouterr().out
    assert "seed 5" in shown
    assert str(package) in shown
    manifest = json.loads((package / "deployment.json").read_text(encoding="utf-8"))
    assert [port["shape"] for port in manifest["inputs"]] == [["batch", "length"]] * 3
    assert manifest["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 3]}]
    assert manifest["check"]["largest_difference"] <= 1e-4
    assert {"config.json", "tokenizer.json", "README.md", "model.pt2"} <= {file.name for file in package.iterdir()}
    assert "[batch, 3]" in (package / "README.md").read_text(encoding="utf-8")
    again = ["export", str(model), "--format", "torch-export", "--output", str(package)]
    assert main(again) == 2
    assert "exists" in capsys.readouterr().err


def test_features_in_their_order_without_padding(tmp_path: Path, tokenizer_folder: Path, rng_seed: int) -> None:
    name = "ElectraForTokenClassification"
    model = write_model(name, tmp_path / "model", tokenizer_folder, num_labels=5)
    export_model(model, tmp_path / "package", format="torch-export")
    package = load(tmp_path / "package")
    g = np.random.default_rng(rng_seed)
    features = [{"input_ids": g.integers(0, 80, n).tolist()} for n in g.integers(1, 41, 20)]
    for feature, found in zip(features, package.run(features, batch_size=3), strict=True):
        ids = np.array([feature["input_ids"]])
        alone = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        np.testing.assert_allclose(found.logits, stock_outputs(model, name, alone)["logits"][0], atol=1e-4)
    with pytest.raises(ValueError, match="1 to 40 tokens"):
        package(np.zeros((1, 41)))
    with pytest.raises(ValueError, match=r"\[batch, length\]"):
        package([1, 2, 3])


def test_what_differs_is_not_left_there(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model("ElectraForSequenceClassification", tmp_path / "model", tokenizer_folder)
    call = runtime.Deployed.__call__

    def wrong(self: runtime.Deployed, *args: object, **kwargs: object) -> runtime.Outputs:
        return runtime.Outputs({key: value + 2e-3 for key, value in call(self, *args, **kwargs).items()})

    monkeypatch.setattr(runtime.Deployed, "__call__", wrong)
    largest = check.ALLOWED * 10  # of the model's outputs none is above 10
    assert largest < 2e-3
    assert main(["export", str(model), "--format", "torch-export", "--output", str(tmp_path / "package")]) == 2
    assert "the exported model is not the model" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_mistakes(tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model("ElectraForSequenceClassification", tmp_path / "model", tokenizer_folder)
    decoder = write_model("ElectraForCausalLM", tmp_path / "decoder", tokenizer_folder, is_decoder=True)
    (tmp_path / "data.tsv").write_text("text\tlabel\na\t1\n", encoding="utf-8")
    for arguments, message in (
        ([model, "--format", "onx"], "onnx"),
        ([model, "--format", "onnx", "--step", "3"], "--step is for --format transformers"),
        ([model, "--format", "torch-export", "--weight_bits", "7"], "--weight_bits is for --format onnx-int8"),
        ([model, "--format", "onnx-int8", "--weight_bits", "4"], "weight_bits must be 7 or 8"),
        ([model, "--format", "torch-export", "--data", tmp_path / "data.tsv"], "task.json"),
        ([decoder, "--format", "torch-export"], "only encoders"),
        ([tmp_path / "none", "--format", "torch-export"], "none"),
    ):
        assert main(["export", *map(str, arguments), "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"deployment\.json"):
        load(model)


def test_onnx_names_its_extra(tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    model = write_model("ElectraForSequenceClassification", tmp_path / "model", tokenizer_folder)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"electra-fast\[export\]"):
        export_model(model, tmp_path / "package", format="onnx")
