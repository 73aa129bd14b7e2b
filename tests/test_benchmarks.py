"""The benchmarks are collected, measure what they say, and their report says what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import ElectraConfig, ElectraForPreTraining, ElectraForSequenceClassification

from benchmarks import breakdown, charts, inputs, jobs, measured, report, serving, timing
from benchmarks.floor import model_floor
from benchmarks.rows import Row, format_table, missed_targets, slower_rows, unfair_rivals
from electra_fast.estimation import speed
from electra_fast.estimation.report import estimate
from electra_fast.models import blocks
from electra_fast.pretraining.config_file import read_config

ROOT = Path(__file__).parents[1]
ROW = Row(
    room="layer_norm",
    operator="layer_norm",
    shape="[2048, 256]",
    dtype="float32",
    direction="forward",
    device="cpu",
    threads=2,
    method="calls",
    median={"ours": 2e-4, "plain": 5e-4},
    spread={"ours": 0.03, "plain": 0.1},
    peak_memory={"ours": 2_100_000, "plain": None},
    bandwidth=2.1e10,
    copy_bandwidth=4.2e10,
    targets={"plain": 2.0},
)
STEP = replace(
    ROW,
    room="step",
    operator="pretraining step",
    shape="ELECTRA-small, 16 x 128",
    direction="forward + backward",
    median={"ours": 0.5, "plain": 1.5, "strong": 0.8, "stock": 1.0, "stock compiled": 1.25, "floor": 0.4, "odd": 0.4},
    spread={"ours": 0.03, "plain": 0.1},
    peak_memory={"ours": 5_000_000, "plain": 9_000_000, "floor": 0},
    bandwidth=None,
    targets={"plain": 2.7, "strong": 2.0, "floor": 1 / 1.25},
    rounds={"ours": 3, "plain": 3},
    flops=2e9,
    gemm_rate=1e10,
    tokens=2048,
    breakdown={"ours": {"matrix products": 0.3, "rest": 0.25}, "plain": {"dropout": 1.0, "rest": 0.6}},
)
# Sleeps that only move the clock: on a busy machine a real one takes as long as it likes.
TWO_SLEEPS = """
import time
from types import SimpleNamespace

from benchmarks import timing

slept = 0.0

def sleep(seconds):
    global slept
    slept += seconds

def test_sleeps(compare, copies, monkeypatch):
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: time.perf_counter() + slept))
    inputs = [(each,) for each in range(3)]
    result = compare(
        "sleep",
        ours=lambda each: sleep(0.004),
        plain=lambda each: sleep(0.012),
        rivals={"nap": lambda each: sleep(0.008)},
        inputs=inputs,
        shape="none",
        dtype="none",
        bytes_moved=4000,
        target=10.0,
    )
    assert 2 < result.ratio < 4
    assert 0.004 < result.median < 0.008
"""


def run_benchmarks(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", *map(str, arguments)]
    # As a run of its own, also where this one is a worker of pytest-xdist, in which pytest-benchmark measures nothing.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True)


def result_file(folder: Path, rows: list[Row], **more: object) -> Path:
    device = "cpu: A (R) Chip, 2 logical cores" if rows[0].device == "cpu" else "cuda:0: Some GPU, 80 GiB"
    content = {
        "machine_info": {"versions": {"torch": "2.13.0", "triton": None}, "devices": [device]},
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "datetime": "2026-11-22T10:00:00+00:00",
        "benchmarks": [{"extra_info": asdict(row)} for row in rows] + [{"extra_info": {"other": 1}}],
    } | more
    path = folder / "benchmark.json"
    path.write_text(json.dumps(content))
    return path


def test_benchmarks_are_collected():
    run = run_benchmarks("benchmarks/", "--benchmark-only", "--collect-only", "-q")
    assert run.returncode == 0, run.stdout + run.stderr
    assert {path.name for path in (ROOT / "benchmarks").glob("bench_*.py")} == {
        line.partition("::")[0].removeprefix("benchmarks/") for line in run.stdout.splitlines() if "::" in line
    }


@pytest.mark.skipif(os.environ.get("ELECTRA_FAST_TEST_ALL") != "1", reason="runs with ELECTRA_FAST_TEST_ALL=1")
def test_every_benchmark_runs():
    run = run_benchmarks("benchmarks/", "--benchmark-disable", "-q")
    assert run.returncode == 0, run.stdout + run.stderr


def test_compare_times_what_it_says(tmp_path):
    (tmp_path / "bench_sleep.py").write_text(TWO_SLEEPS)
    stored = tmp_path / "stored.json"
    options = (tmp_path / "bench_sleep.py", "-p", "benchmarks.conftest", "--benchmark-only", f"--rootdir={ROOT}")
    run = run_benchmarks(*options, f"--benchmark-json={stored}")
    assert run.returncode == 0, run.stdout + run.stderr
    [benchmark] = json.loads(stored.read_text())["benchmarks"]
    row = Row.of(benchmark["extra_info"])
    assert (row.room, row.operator, row.rivals, row.target_met) == ("sleep", "sleep", ["nap"], False)
    assert benchmark["stats"]["median"] == pytest.approx(row.median["ours"])
    assert "data" not in benchmark["stats"]
    assert row.bandwidth == pytest.approx(4000 / row.median["ours"])
    assert row.copy_bandwidth > 1e8
    line = next(line for line in run.stdout.splitlines() if line.startswith("sleep "))
    assert f"{row.ratio():.2f}" in line

    run = run_benchmarks(*options, ELECTRA_FAST_ENFORCE_TARGETS="1")
    assert run.returncode == 1
    assert "asked is 10" in run.stdout


def test_forward_backward_gives_the_gradients_asked_for(rng_seed):
    def call(x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        return x * y, index + 1, 7

    x, y, index = torch.randn(5), torch.randn(5), torch.arange(5)
    compared = inputs.ForwardBackward(call, (1,))
    [gradient] = compared(x, y, index)
    assert gradient.shape == (5,)
    assert (gradient / x).abs().min() > 0  # x times a random upstream gradient
    assert not (gradient / x).allclose(torch.ones(5))
    assert y.grad is None
    assert not y.requires_grad


def test_inputs_are_rotated_past_the_cache():
    made = []

    def make_inputs() -> tuple[torch.Tensor, str]:
        made.append(torch.zeros(2**18))  # 1 MiB
        return made[-1], "text"

    rotated = inputs.copies("cpu", make_inputs)
    assert [each[0] for each in rotated] == made
    assert len(made) * 2**20 >= inputs.rotation_bytes("cpu") >= 2**20
    assert len(inputs.copies("cpu", make_inputs, num_bytes=inputs.rotation_bytes("cpu"))) == 2
    assert len(inputs.copies(None, make_inputs)) == 2


def test_slow_contestants_are_timed_less_often():
    timer = timing.Timer("", {"ours": lambda: 0.0, "plain": lambda: time.sleep(0.02) or 0.0})
    rounds = timing.choose_rounds("cpu", timer)
    assert 7 <= rounds["plain"] < rounds["ours"] <= 200


def test_calls_of_seconds_are_timed_at_least_three_times(monkeypatch):
    now = 0.0

    def take(seconds: float) -> float:
        nonlocal now
        now += seconds
        return seconds

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    timer = timing.Timer("", {"ours": lambda: take(1.5), "plain": lambda: take(20.0), "strong": lambda: take(0.7)})
    assert timing.choose_rounds("cpu", timer) == {"ours": 6, "plain": 3, "strong": 6}
    assert now == 1.5 + 20.0 + 2 * 0.7
    timer = timing.Timer("", {"ours": lambda: take(0.9), "plain": lambda: take(20.0)})
    assert timing.choose_rounds("cpu", timer) == {"ours": 7, "plain": 3}


def test_estimate_takes_the_measured_step_that_is_nearest_to_the_run(tmp_path, monkeypatch):
    times = {"small, 16 x 128": 2.0, "base, 4 x 512": 16.0}
    steps = [
        replace(STEP, shape=f"ELECTRA-{name}, dropout 0.1", median=STEP.median | {"ours": seconds})
        for name, seconds in times.items()
    ]
    result_file(tmp_path, steps)
    records = measured.measured(tmp_path)
    assert [(each["recipe"], each["length"], each["precision"]) for each in records] == [
        ("small", 128, "float32"),
        ("base", 512, "float32"),
    ]
    monkeypatch.setattr(speed, "measurements", lambda: [speed.Measurement(**each) for each in records])
    monkeypatch.setattr(speed, "cpu_model", lambda: "A (R) Chip")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for recipe, tokens in (("small", 2048 / 2.0), ("base", 2048 / 16.0)):
        assert estimate(read_config(recipe)).rows[0].tokens_per_second == pytest.approx(tokens)
    assert "base, 4 x 512" in estimate(read_config("large")).rows[0].efficiency
    assert "small, 16 x 128" in estimate(read_config("small", {"data.max_length": 64})).rows[0].efficiency


PEAKS = """
import torch
from benchmarks import timing

print(timing.peak_memory("cpu", lambda: torch.ones(5_000_000) + torch.ones(5_000_000)))
print(timing.peak_memory("cpu", lambda: None))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
def test_peak_memory_on_the_cpu():
    # In a process of its own: what tests before this one made malloc keep would count as there already.
    run = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, cwd=ROOT, check=True)
    sum_of_two, nothing = map(int, run.stdout.split())
    assert sum_of_two == pytest.approx(6e7, rel=0.1)  # two times 20 MB, and their sum
    assert nothing < 1e6


def test_table_shows_what_was_measured():
    slower = replace(ROW, shape="[4096, 768]", median={"ours": 5e-3, "plain": 5e-3, "liger": 1e-2}, bandwidth=None)
    lines = format_table([ROW, slower], markdown=True).splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    first, second = dict(zip(table[0], table[2], strict=True)), dict(zip(table[0], table[3], strict=True))
    assert (first["ours"], first["plain"], first["times as fast"]) == ("200 µs", "500 µs", "2.50")
    assert (first["asked"], first["met"], first["GB/s"], first["of copy"]) == ("2", "yes", "21", "50%")
    assert (first["memory"], first["±"]) == ("2.1 MB", "3%")
    assert (second["ours"], second["times as fast"], second["met"]) == ("5 ms", "1.00", "**no**")
    assert (second["as fast as liger"], first["as fast as liger"], second["GB/s"]) == ("2.00", "", "")
    assert "plain's" not in first  # nothing in the whole column


def test_rows_ask_for_ratios_to_several_rivals():
    assert STEP.targets_met == {"plain": True, "strong": False, "floor": True}
    assert STEP.target_met is False
    assert missed_targets([STEP, ROW]) == [f"{STEP.name}: 1.600 times as fast as strong; asked is 2"]
    slow = replace(STEP, median=STEP.median | {"floor": 0.2})
    assert missed_targets([slow])[1] == f"{STEP.name}: 2.500 times the floor; asked is at most 1.25"
    lines = format_table([STEP], markdown=True).splitlines()
    titles, _, values = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    row = dict(zip(titles, values, strict=True))
    assert (row["times as fast"], row["asked"], row["met"], row["rounds"]) == ("3.00", "2.7", "**no**", "3")
    assert row["as fast as strong"] == "1.60 (2: **missed**)"
    assert row["times the floor"] == "1.25 (at most 1.25)"
    assert row["as fast as stock compiled"] == "2.50"
    assert (row["tokens/s"], row["GFLOP/s"]) == ("4,096", "4")


def test_what_is_slower_than_a_rival_shows():
    # The floor is no rival.
    assert slower_rows([STEP, ROW]) == [f"{STEP.name}: 0.80 times as fast as odd"]
    assert "**0.80** ▼" in format_table([STEP], markdown=True)


def test_a_rival_slower_than_its_own_plain_form_is_told():
    assert unfair_rivals([ROW, STEP]) == [f"{STEP.name}: stock compiled takes 1.25 times as long as stock"]
    model = replace(STEP, room="models", median={"ours": 1.0, "plain": 2.0, "stock compiled": 2.2})
    assert unfair_rivals([model]) == [f"{STEP.name}: stock compiled takes 1.10 times as long as stock"]
    weak = replace(STEP, median={"ours": 1.0, "plain": 2.0, "strong": 2.5, "stock compiled": 1.9})
    assert unfair_rivals([weak]) == [f"{STEP.name}: strong takes 1.25 times as long as plain"]


def test_files_of_before_are_read():
    older = {name: value for name, value in asdict(ROW).items() if name not in ("targets", "rounds", "flops")}
    older["median"] = {"ours": 2e-4, "plain": 5e-4, "three products alone": 1e-4}
    row = Row.of(older | {"target": 3.0})
    assert (row.targets, row.rounds, row.flops, row.rivals) == ({"plain": 3.0}, {}, None, ["floor"])
    assert Row.of({"peak_memory": {"ours": 1}}) is None


@pytest.mark.parametrize("training", [False, True])
def test_floor_has_the_products_of_the_model(training):
    config = ElectraConfig(
        vocab_size=50,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        attn_implementation="eager",
    )
    model = ElectraForPreTraining(config)
    counted = FlopCounterMode(display=False)
    lengths = [5, 7, 5]
    with counted:
        for length in lengths:
            logits = model(torch.randint(50, (1, length))).logits
            if training:
                logits.sum().backward()
    floor = model_floor(model, [lengths], "cpu", torch.float32, training=training)
    last_layer = 2 * sum(lengths) * config.hidden_size  # to one logit a token: no product worth its name
    assert floor.flops == counted.get_total_flops() - last_layer * (3 if training else 1)
    floor()
    # A classifier's last layer, after attention, and its head go on with the first of 5 + 7 + 5 tokens.
    classifier = model_floor(
        ElectraForSequenceClassification(config), [lengths], "cpu", torch.float32, training=training
    )
    left_out = 2 * (17 - 3) * (2 * 16 * 16 + 2 * 16 * 24)
    assert classifier.flops == floor.flops - left_out * (3 if training else 1)


def test_every_operator_of_a_step_has_a_group():
    named = {
        "aten::addmm": "matrix products",
        "weight_gradient": "matrix products",
        "_AttentionBlockBackward": "attention, dropout, add, LayerNorm (a block)",
        "_FeedForwardBlock": "GELU, dropout, add, LayerNorm (a block)",
        "varlen_attention_eagerBackward": "attention",
        "dropout_add_layer_norm_eager": "LayerNorm",
        "aten::gelu_backward": "GELU",
        "embedding_layer_norm_eagerBackward": "embedding",
        "linear_cross_entropy_sample_eager": "generator head",
        "electra_fast::sample_tokens": "generator head",
        "mask_tokens": "masking",
        "rtd_bce_eager": "RTD loss",
        "Optimizer.step#AdamW.step": "optimizer",
        "aten::bernoulli_": "dropout",
        "aten::view": "rest",
        "aten::mm_of_another_kind": "rest",
    }
    assert {name: breakdown.group_of(name) for name in named} == named


def test_breakdown_is_of_the_step():
    weight = torch.randn(64, 64, requires_grad=True)

    def step() -> None:
        F.gelu(weight @ weight).sum().backward()

    step()
    seconds = breakdown.seconds_by_group(step, "cpu")
    assert {"matrix products", "GELU", "rest"} <= seconds.keys()
    assert not {"attention", "optimizer"} & seconds.keys()
    assert all(taken > 0 for taken in seconds.values())


def test_breakdown_sees_what_is_called_without_pytorch():
    dy, x = torch.randn(9, 16), torch.randn(9, 64)
    before = blocks.weight_gradient
    seconds = breakdown.seconds_by_group(lambda: blocks.weight_gradient(dy, x), "cpu")
    assert seconds["matrix products"] > 0
    assert blocks.weight_gradient is before


def test_page_begins_with_the_jobs(tmp_path):
    folder = tmp_path / "results" / "jobs"
    folder.mkdir(parents=True)
    facts = {"date": "2026-11-23", "commit": "fedcba9876543210", "devices": ["cpu: A Chip"]}
    loads = {"ours": [{"throughput": x} for x in (90.0, 100.0, 300.0)], "naive": [{"throughput": 12.5}]}
    timed = {"steps": 200, "model": "2 layers", "seconds": {"ours": 80.0, "stock": 200.0}}
    exported = {"texts": 9, "model": "2 layers", "package": "onnx-int8", "wall_seconds": {"package": 2.0, "stock": 9.0}}
    for name, values in (
        ("serving", loads | {"clients": 50}),
        ("finetuning", timed),
        ("exported-onnx-int8", exported),
    ):
        (folder / f"{name}.json").write_text(json.dumps(facts | {"name": name} | values), encoding="utf-8")
    peaks = {"extra_info": {"peak_memory": {"ours": 2_000_000, "plain": 8_000_000}, "shape": "ELECTRA-small, 64 x 128"}}
    layer_norm = replace(ROW, flops=1e7, gemm_rate=1e10)
    written = [{"extra_info": asdict(row)} for row in (layer_norm, STEP)] + [peaks]
    path = result_file(tmp_path, [ROW], benchmarks=written)
    options = ["--results", str(tmp_path / "results"), "--docs", str(tmp_path / "docs")]
    assert report.main([*options, "--save", str(path)]) == 0
    text = (tmp_path / "docs" / "performance.md").read_text(encoding="utf-8")
    before, _, details = text.partition("## How the figures are taken")
    assert (
        "| pretraining step | ELECTRA-small, 16 x 128 | 500 ms | 4,096 | 3.00 (2.7) | 1.60 (2: **missed**) |" in before
    )
    assert "times as fast as odd" in before
    assert "stock compiled takes 1.25 times as long as stock" in before
    assert "| `serve`, 50 clients | 100 requests/s | a naive service | 12.5 requests/s | 8.00 | 2026-11-23," in before
    assert "| `finetune`, 200 steps, 2 layers | 80 s | transformers' Trainer, padded | 200 s | 2.50 |" in before
    assert "| `export`, onnx-int8, 9 texts, 2 layers | 2 s | stock in float32 | 9 s | 4.50 |" in before
    assert "| layer_norm | [2048, 256] |" in details
    assert "| matrix products | 300 ms |  |" in details
    assert "| 2 MB | 8 MB |" in details
    for name in charts.CHARTS:
        assert f"performance-cpu-a-chip-{name}.png" in before
        assert (tmp_path / "docs" / "images" / f"performance-cpu-a-chip-{name}.png").stat().st_size > 5000


def test_report_is_written_from_result_files(tmp_path, capsys):
    results, docs = tmp_path / "results", tmp_path / "docs"
    options = ["--results", str(results), "--docs", str(docs)]
    assert report.main([*options, "--save", str(result_file(tmp_path, [ROW]))]) == 0
    assert [path.name for path in results.iterdir()] == ["cpu-a-chip-2026-11-22-0123456789.json"]
    text = (docs / "performance.md").read_text()
    assert "| layer_norm | [2048, 256] | float32 | forward | 200 µs |" in text
    assert "| layer_norm | not measured | not measured | not measured |" in text
    assert (docs / "images" / "performance-cpu-a-chip-operators.png").stat().st_size > 5000

    assert "No GPU has been measured" in text

    on_gpu = replace(ROW, device="cuda", median={"ours": 1e-5, "plain": 3e-5})
    assert report.main([*options, "--save", str(result_file(tmp_path, [on_gpu]))]) == 0
    text = (docs / "performance.md").read_text()
    assert "## Some GPU" in text
    assert "not measured" not in text

    newer = result_file(tmp_path, [replace(ROW, median={"ours": 1e-4, "plain": 5e-4})], datetime="2026-11-23T10:00:00")
    capsys.readouterr()
    assert report.main([*options, "--save", "--print", str(newer)]) == 0
    assert "5.00" in capsys.readouterr().out
    assert report.main(options) == 0
    assert "200 µs" not in (docs / "performance.md").read_text()

    with pytest.raises(SystemExit):
        report.main([str(result_file(tmp_path, [ROW], benchmarks=[]))])
    assert "holds no row" in capsys.readouterr().err


def test_page_is_the_one_made_of_the_committed_results():
    results = report.newest(report.RESULTS)
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page == report.page(results), "run python -m benchmarks.report"
    images = {charts.image_name(result, name) for result in results for name in charts.names(result)}
    assert {path.name for path in (ROOT / "docs" / "images").glob("performance-*.png")} == images


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_gpu_script_says_what_is_missing_where_there_is_no_gpu():
    command = ["bash", "benchmarks/gpu.sh"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert run.returncode == 1
    assert "sees no CUDA GPU" in run.stderr
    assert "--dry-run" in run.stderr
    assert subprocess.run([*command, "--fast"], cwd=ROOT, capture_output=True).returncode == 2


def test_a_result_outlives_a_missing_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RESULTS", tmp_path / "jobs")
    monkeypatch.setenv("PATH", "")
    for given, commit in (("", None), ("0123", "0123")):
        monkeypatch.setenv("ELECTRA_FAST_COMMIT", given)
        result = json.loads(jobs.write_result("name", "command", {"figure": 1.5}).read_text(encoding="utf-8"))
        assert (result["commit"], result["command"], result["figure"]) == (commit, "command", 1.5)


def test_a_service_that_does_not_start_is_named() -> None:
    command = (sys.executable, "-c", "print('no model')")
    with pytest.raises(RuntimeError, match=r"did not start; it said 'no model"), serving.running(*command):
        pass


@pytest.mark.skipif(os.environ.get("ELECTRA_FAST_TEST_ALL") != "1", reason="a minute: set ELECTRA_FAST_TEST_ALL=1")
def test_the_service_under_load_answers_rightly(tmp_path: Path) -> None:
    texts = serving.made_up_texts(40, seed=0)
    found = serving.compare(serving.write_small(tmp_path, texts), texts, clients=5, seconds=2, rounds=1)
    for name in ("ours", "naive"):
        (load,) = found[name]
        assert (load["errors"], load["wrong"], load["lost"]) == (0, 0, 0)
        assert load["requests"] > 0
