"""`electra-fast verify`: it passes what is right, for every head, and names what is wrong."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from electra_fast import twins, verify
from electra_fast.cli import main
from electra_fast.data.tokenizer import train_wordpiece
from electra_fast.verify import Check
from tests.small import TEXT

SIZES = {
    "vocab_size": 80,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "initializer_range": 0.1,
}
HEADS = sorted(twins._CLASSES)


def save_model(folder: Path, name: str = "ElectraForPreTraining", **config: object) -> Path:
    """A checkpoint of random weights."""
    kind = getattr(transformers, name)
    sizes = SIZES | ({"embedding_size": 16} if name.startswith("Electra") else {}) | config
    kind(kind.config_class(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A discriminator with its tokenizer, in a folder like that of a run; text.txt lies beside."""
    folder = tmp_path_factory.mktemp("a run")
    torch.manual_seed(0)
    save_model(folder / "discriminator")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    train_wordpiece([folder / "text.txt"], folder / "discriminator", vocab_size=80)
    return folder


@pytest.mark.parametrize("head", HEADS)
def test_every_head_passes(head: str, tmp_path: Path, rng_seed: int) -> None:
    labels = {"num_labels": 2 if head.endswith("QuestionAnswering") else 3}
    result = verify.verify(str(save_model(tmp_path, head, **labels)), batches=2, seed=rng_seed)
    assert result.passed, result
    assert result.left_out == []
    for check in result.checks:
        assert 0 < check.fast_error < 1e-4  # it did compute, with rounding
        assert 0 < check.stock_error < 1e-4


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_labels_fit_the_problem(problem: str, tmp_path: Path, rng_seed: int) -> None:
    name = "ElectraForSequenceClassification"
    folder = save_model(tmp_path, name, problem_type=problem, num_labels=1 if problem == "regression" else 4)
    assert verify.verify(str(folder), batches=1, seed=rng_seed).passed


def test_table_on_a_text_in_half_precision(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = str(model / "text.txt")
    assert main(["verify", str(model), "--data", text, "--dtype", "bfloat16", "--batches", "2", "--seed", "7"]) == 0
    shown = capsys.readouterr().out
    assert "ElectraForPreTraining of " in shown
    assert f"bfloat16 on cpu, 2 batches of 8 lines of {text} of up to 24 tokens, seed 7" in shown
    lines = {line.partition("  ")[0]: line.split() for line in shown.splitlines()}
    assert lines["logits"][-1] == lines["whole gradient"][-1] == "pass"
    assert 1e-4 < float(lines["logits"][1]) < 0.1  # of bfloat16's rounding
    assert shown.splitlines()[-1].startswith("pass")


def test_a_seed_repeats_the_numbers(model: Path) -> None:
    checks = [verify.verify(str(model), batches=1, seed=seed).checks for seed in (3, 3, 4)]
    assert checks[0] == checks[1] != checks[2]
    fresh = verify.verify(str(model), batches=1).setting
    assert fresh != verify.verify(str(model), batches=1).setting


def test_a_wrong_model_fails_and_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parameter = "electra.encoder.layer.1.output.dense.weight"

    def wrong_gradient(stock: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
        fast = twins.fast_twin(stock)
        fast.get_parameter(parameter).register_hook(lambda gradient: gradient * 1.001)
        return fast

    monkeypatch.setattr(verify, "fast_twin", wrong_gradient)
    assert main(["verify", str(model), "--batches", "1"]) == 1
    shown = capsys.readouterr().out
    assert f"gradient of {parameter}" in shown
    assert shown.count("FAIL") >= 2
    assert shown.splitlines()[-1].startswith("FAIL")

    def wrong_logits(stock: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
        fast = twins.fast_twin(stock)
        fast.discriminator_predictions.dense_prediction.bias.data += 3e-5
        return fast

    monkeypatch.setattr(verify, "fast_twin", wrong_logits)
    assert not verify.verify(str(model), batches=1).checks[0].passed
    assert not Check("", math.nan, 1.0, 0.0, 0.0, 1.0).passed


def test_what_stock_can_not_compute_is_left_out(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model / "discriminator", tmp_path / "broken")
    stock, _ = twins.load_stock(str(tmp_path / "broken"))
    stock.get_parameter("discriminator_predictions.dense_prediction.bias").data.fill_(math.nan)
    stock.save_pretrained(tmp_path / "broken")
    result = verify.verify(str(tmp_path / "broken"), batches=1)
    assert "logits" in result.left_out
    assert not result.passed


def test_a_model_of_the_hub_is_found_in_the_cache(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--google--electra-tiny"
    shutil.copytree(model / "discriminator", repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    stock, folder = twins.load_stock("google/electra-tiny")
    assert type(stock) is transformers.ElectraForPreTraining
    assert folder == repository / "snapshots" / "0123"


def test_mistakes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_another_kind, without_weights = tmp_path / "other", tmp_path / "cut"
    of_another_kind.mkdir()
    (of_another_kind / "config.json").write_text(json.dumps({"architectures": ["DistilBertForMaskedLM"]}))
    shutil.copytree(model / "discriminator", without_weights)
    weights = without_weights / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    bare = save_model(tmp_path / "bare")
    given = str(model)
    for arguments, expected in (
        (["verify", "no such model"], "no such model is no folder: give the folder of an ELECTRA or BERT checkpoint"),
        (["verify", str(tmp_path)], "holds no config.json"),
        (["bench", "google/no-such-model"], "a model's name in the Hugging Face cache"),
        (["verify", str(of_another_kind)], "holds DistilBertForMaskedLM: expected an ELECTRA or BERT model"),
        (["verify", str(without_weights)], "can't read the model in"),
        (["verify", given, "--dtype", "int8"], "int8"),
        (["verify", given, "--batches", "0"], "--batches must be at least 1; got 0"),
        (["verify", given, "--max-length", "25"], "between 2 and the position table's size (24); got 25"),
        (["verify", given, "--device", "gpu"], "--device must be auto, cpu, cuda or another device"),
        (["verify", given, "--data", "no such text"], "no such text is not there"),
        (["verify", str(bare), "--data", str(model / "text.txt")], "holds no tokenizer"),
        (["bench", given, "--threads", "0"], "--threads must be at least 1; got 0"),
        (["bench", given, "--rounds", "0"], "--rounds must be at least 1; got 0"),
        (["bench", given, "--data", str(tmp_path)], "is a folder"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2, arguments
        out, message = capsys.readouterr()
        assert out == ""
        assert message.startswith("error: ")
        assert expected in message
        assert message.count("\n") <= 5
        assert "Traceback" not in message
