"""Hours, cost and memory of each row by hand, where each speed comes from, JSON, and mistakes as advice."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import measured
from electra_fast.cli import main
from electra_fast.estimation import speed
from electra_fast.estimation.report import estimate
from electra_fast.estimation.speed import Measurement, measurements
from electra_fast.pretraining.config_file import read_config
from tests.small import SETTINGS, write_small

TINY = [f"--{key}={value}" for key, value in SETTINGS.items()]


def on_gpu(**values: object) -> Measurement:
    known = {"processor": "NVIDIA H100 80GB HBM3", "threads": None, "precision": "bfloat16", "recipe": "small"}
    known |= {"sequences": 128, "length": 128, "seconds": 0.01, "date": "2027-01-02", "commit": "abc", "file": "f.json"}
    return Measurement(**known | values)


def rows(config, **options):
    return {row.hardware: row for row in estimate(config, **options).rows}


def test_hours_and_cost_by_hand():
    """The usual sum: 70.2 MFLOP a token, 16.384e9 tokens, half of 989 TFLOP/s: 2,326 s; a quarter of it on four."""
    config = read_config("small", {"training.precision": "bfloat16"})
    one = rows(config, hardware=["H100"], mfu=0.5, price=3.0)["H100"]
    assert one.seconds == pytest.approx(70.2e6 * 16.384e9 / (0.5 * 989e12), rel=2e-3) == pytest.approx(2326, rel=3e-3)
    assert one.tokens_per_second == pytest.approx(16.384e9 / one.seconds)
    assert one.cost == pytest.approx(3 * one.seconds / 3600)
    four = rows(config, hardware=["h100"], mfu=0.5, price=3.0, gpus=4)["H100"]
    assert four.seconds == pytest.approx(one.seconds / 4)
    assert four.cost == pytest.approx(one.cost)
    assert four.memory.tokens == one.memory.tokens / 4
    single = rows(read_config("small"), hardware=["H100"], mfu=0.5)["H100"]
    assert single.seconds == pytest.approx(one.seconds * 989 / 67)
    assert single.cost is None


def test_what_nobody_measured_is_assumed(monkeypatch):
    for precision in ("float32", "bfloat16"):
        for row in estimate(read_config("base", {"training.precision": precision})).rows:
            if row.hardware.startswith("cpu"):
                continue
            assert not row.is_measured
            assert row.efficiency == "assumed 25% MFU"
            assert row.mfu == pytest.approx(0.25)
    monkeypatch.setattr(speed, "measurements", lambda: [on_gpu()])
    known = rows(read_config("small", {"training.precision": "bfloat16"}), hardware=["H100", "H100-PCIe", "H200"])
    assert known["H100"].is_measured
    assert known["H100"].tokens_per_second == pytest.approx(128 * 128 / 0.01)
    assert (
        known["H100"].efficiency == "measured (2027-01-02, commit abc, f.json: small, 128 x 128, without the optimizer)"
    )
    assert [known[name].is_measured for name in ("H100-PCIe", "H200")] == [False, False]
    other = rows(read_config("base", {"training.precision": "bfloat16"}), hardware=["H100"])["H100"]
    assert other.efficiency.endswith("scaled by FLOPs")
    assert other.mfu == pytest.approx(known["H100"].mfu)
    given = rows(read_config("small", {"training.precision": "bfloat16"}), hardware=["H100"], mfu=0.4)["H100"]
    assert (given.is_measured, given.efficiency) == (False, "assumed 40% MFU, as given")
    assert not rows(read_config("small"), hardware=["H100"])["H100"].is_measured  # float32 was not


def test_a_cpu_counts_as_measured_where_name_and_threads_are_the_same(monkeypatch):
    threads, config = torch.get_num_threads(), read_config("small")
    one = on_gpu(processor="A CPU", threads=threads, precision="float32", sequences=16, seconds=2.0)
    monkeypatch.setattr(speed, "measurements", lambda: [one])
    monkeypatch.setattr(speed, "cpu_model", lambda: "A CPU")
    row = estimate(config).rows[0]
    assert (row.hardware, row.is_measured, row.mfu) == (f"cpu, {threads} threads", True, None)
    assert row.tokens_per_second == pytest.approx(16 * 128 / 2.0)
    assert row.seconds == pytest.approx(16.384e9 / 1024)
    monkeypatch.setattr(speed, "cpu_model", lambda: "Another CPU")
    assert not estimate(config).rows[0].hardware.startswith("cpu")
    with pytest.raises(ValueError, match="--hardware here measures it"):
        estimate(config, hardware=["cpu"])


def test_what_comes_with_the_package_is_in_the_results():
    assert measured.TARGET.read_text(encoding="utf-8") == measured.text(), "run python -m benchmarks.measured"
    assert [m.recipe for m in measurements() if m.threads] == ["small", "base"]


def test_here_is_measured(capsys):
    assert main(["estimate", "--config", "tiny", *TINY, "--hardware", "here", "--json", "--vocab-size", "80"]) == 0
    row = json.loads(capsys.readouterr().out)["hardware"][0]
    assert row["hardware"].startswith("here: ")
    assert row["is_measured"]
    assert row["efficiency"].startswith("measured here and now (joint, ")
    assert row["tokens_per_second"] > 0
    assert row["fits"] in ("yes", None)


@pytest.mark.parametrize(
    "settings",
    [
        {"training.precision": "bfloat16", "training.activation_checkpointing": True},
        {"model.tie": "untied", "schedule": "[{objective: discriminator}]", "training.micro_batch_tokens": 16},
    ],
)
def test_here_is_measured_with_the_runs_settings(settings):
    row = estimate(read_config("tiny", SETTINGS | settings), hardware=["here"], vocab_size=80).rows[0]
    assert row.seconds > 0


def test_vocabulary_and_epochs_are_the_corpus(tmp_path, capsys):
    corpus = write_small(tmp_path / "small") / "corpus"
    more = ["--data.train", str(corpus), "--schedule", "[{epochs: 2}]", "--json"]
    assert main(["estimate", "--config", "tiny", *TINY, *more]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["vocab_size"] == 80
    assert told["steps"] == told["parts"][0]["steps"] > 2
    assert not any("vocabulary" in note for note in told["notes"])


def test_json_and_table_say_the_same(capsys):
    command = ["estimate", "--config", "base", "--training.precision", "bfloat16", "--hardware", "A100-40GB"]
    assert main([*command, "--price", "1.5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (row,) = told["hardware"]
    assert told["tokens"] == 256 * 512 * 766_000
    assert told["flops"] == pytest.approx(sum(part["flops_per_step"] * part["steps"] for part in told["parts"]))
    assert row["hours"] == pytest.approx(row["seconds"] / 3600)
    assert row["memory_bytes"] == sum(value for key, value in row["memory"].items() if key != "tokens")
    assert (row["fits"], row["cost"]) == ("no", pytest.approx(row["hours"] * 1.5))
    assert row["micro_batch_tokens"] % 512 == 0
    assert main([*command, "--price", "1.5"]) == 0
    out = capsys.readouterr().out
    assert f"{row['tokens_per_second']:,.0f}" in out
    assert f"{row['cost']:,.2f}" in out
    assert f"no; {row['micro_batch_tokens']} tokens at once do (of 40)" in out
    assert f"--training.micro_batch_tokens {row['micro_batch_tokens']}" in out
    assert "assumed 25% MFU" in out


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ([], "--config is missing: give a YAML file or a recipe"),
        (["--config", "smal"], "did you mean small?"),
        (["--config", "small", "--hardware", "H10"], "did you mean H100?"),
        (["--config", "small", "--hardware", "abacus"], "known are here, cpu, V100"),
        (["--config", "small", "--gpus", "0"], "--gpus must be between 1"),
        (["--config", "small", "--mfu", "35"], "0.3 for 30%"),
        (["--config", "small", "--price", "-1"], "--price must be 0 or more"),
        (["--config", "small", "--vocab_size", "0"], "vocab_size must be at least 5"),
        (["--config", "small", "--data.max_length", "9999"], "data.max_length must be"),
        (["--config", "small", "--schedule", "[{epochs: 2}]"], "give it with --data.train"),
        (["--config", "small", "--data.train", "no/corpus"], "no/corpus"),
    ],
)
def test_mistakes_are_told_as_advice(arguments, advice, capsys):
    assert main(["estimate", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert advice in err
    assert len(err.strip().splitlines()) == 1
