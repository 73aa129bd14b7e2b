"""Exported packages give what stock transformers gives, or are not there."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from electra_fast.cli import main
from electra_fast.data.tokenizer import load_tokenizer, train_wordpiece
from electra_fast.deployment import FORMATS, export_model, load, runtime
from electra_fast.finetuning.model import save_finetuned
from electra_fast.finetuning.tasks.classification import Classification
from tests.deployment.conftest import HEADS, STOCK, sentences, write_model

SLOW = pytest.mark.skipif(os.environ.get("ELECTRA_FAST_TEST_ALL") != "1", reason="runs with ELECTRA_FAST_TEST_ALL=1")
# Every format and what is special about a head runs always; all pairs take four minutes.
ALWAYS = {
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


@functools.lru_cache(maxsize=1)
def stock_model(folder: Path, name: str) -> torch.nn.Module:
    return STOCK[name].from_pretrained(folder).eval()


def stock_outputs(folder: Path, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    model = stock_model(folder, name)
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


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=SLOW), "torch-export"])
def test_two_hundred_real_sentences(format: str, tmp_path: Path) -> None:
    if not REAL.is_file():
        pytest.skip("needs SST-2's development set beside the checkout")
    lines = [line.split("\t")[0].strip() for line in REAL.read_text(encoding="utf-8").splitlines()[1:201]]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    train_wordpiece([tmp_path / "text.txt"], tmp_path / "tokenizer", vocab_size=1000)
    name = "ElectraForSequenceClassification"
    sizes = {"vocab_size": 1000, "max_position_embeddings": 256}
    model = write_model(name, tmp_path / "model", tmp_path / "tokenizer", **sizes)
    exported = export_model(model, tmp_path / "package", format=format, data=tmp_path / "text.txt")
    assert exported.check.sequences == 200
    features = [{"input_ids": ids} for ids in load_tokenizer(model)(lines)["input_ids"]]
    assert len({len(feature["input_ids"]) for feature in features}) > 30
    found = [outputs.logits for outputs in load(tmp_path / "package").run(features)]
    for feature, logits in zip(features, found, strict=True):
        ids = np.array([feature["input_ids"]])
        alone = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        np.testing.assert_allclose(logits, stock_outputs(model, name, alone)["logits"][0], rtol=0, atol=1e-4)


def test_accuracy_of_model_and_package(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what the classes really are: half of the labels are what stock transformers says, half the opposite."""
    name = "ElectraForSequenceClassification"
    stock = write_model(name, tmp_path / "stock", tokenizer_folder, max_position_embeddings=256)
    tokenizer, model = load_tokenizer(stock), STOCK[name].from_pretrained(stock).eval()
    texts = sentences(20, seed=1)
    with torch.inference_mode():
        said = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in texts]
    labels = [("no", "yes")[label if index < 10 else 1 - label] for index, label in enumerate(said)]
    rows = "".join(f"{text}\t{label}\n" for text, label in zip(texts, labels, strict=True))
    (tmp_path / "data.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    (tmp_path / "run" / "model").mkdir(parents=True)
    save_finetuned(model, tokenizer, Classification(labels=["no", "yes"]), tmp_path / "run" / "model")
    options = ["--format", "torch-export", "--data", str(tmp_path / "data.tsv"), "--output", str(tmp_path / "package")]
    assert main(["export", str(tmp_path / "run"), *options]) == 0
    assert "accuracy 50.00 -> 50.00 on 20 examples" in capsys.readouterr().out
    assert (tmp_path / "package" / "task.json").is_file()


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
        return runtime.Outputs({key: value + 1.0 for key, value in call(self, *args, **kwargs).items()})

    monkeypatch.setattr(runtime.Deployed, "__call__", wrong)
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
