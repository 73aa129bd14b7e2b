"""What runs on a GPU only, or takes a compiler: precisions, CUDA graphs, bits that repeat."""

from __future__ import annotations

import os

import pytest

from electra_fast.pretraining.metrics import read_metrics
from electra_fast.pretraining.train import pretrain
from tests.pretraining.test_phases import assert_same_end, interrupt_after

# Rounding may change a sample: the generator alone has none.
SETTINGS = {"schedule": "[{objective: generator}]", "training.log_every": 1, "training.eval_batches": 1}
GRAPHS = {"training.compile": True, "training.cuda_graphs": True, "data.fixed_shapes": True}


def losses(output) -> list[float]:
    return [row["generator_loss"] for row in read_metrics(output / "metrics.jsonl") if row["kind"] == "train"]


@pytest.mark.skipif(os.environ.get("ELECTRA_FAST_TEST_ALL") != "1", reason="compiles; set ELECTRA_FAST_TEST_ALL=1")
def test_a_compiled_run_follows_the_eager_one(tmp_path, quick_config):
    """A minute of compiling."""
    for name, settings in (("eager", {}), ("compiled", {"training.compile": True})):
        pretrain(quick_config(tmp_path / name, **SETTINGS, **settings), progress=False)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"training.compile": True}, 1e-3),
        (GRAPHS, 1e-3),
        ({"training.precision": "bfloat16"}, 2e-2),
        (GRAPHS | {"training.precision": "bfloat16"}, 2e-2),
        ({"training.precision": "float16"}, 2e-2),
        ({"training.activation_checkpointing": True, "training.micro_batch_tokens": 60}, 1e-3),
    ],
    ids=["compile", "graphs", "bfloat16", "bfloat16-graphs", "float16", "memory"],
)
def test_a_run_on_a_gpu_follows_the_one_on_the_cpu(tmp_path, quick_config, settings, tolerance):
    # No attention dropout: a vendor's kernel has another one. The first loss scale may cost float16 some updates.
    common = SETTINGS | {"model.attention_probs_dropout_prob": 0.0, "optimizer.lr": 1e-5}
    pretrain(quick_config(tmp_path / "cpu", **common, **{"training.device": "cpu"}), progress=False)
    pretrain(quick_config(tmp_path / "gpu", **common, **settings, **{"training.device": "cuda"}), progress=False)
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=tolerance)


@pytest.mark.gpu
def test_a_deterministic_run_on_a_gpu_resumes_to_the_same_bits(tmp_path, quick_config, monkeypatch):
    settings = {"training.device": "cuda", "training.deterministic": True, "training.precision": "bfloat16"}
    pretrain(quick_config(tmp_path / "whole", **settings), progress=False)
    interrupt_after(monkeypatch, 4)
    assert pretrain(quick_config(tmp_path / "cut", **settings), progress=False).step == 4
    pretrain(quick_config(tmp_path / "cut", **settings), resume=True, progress=False)
    assert_same_end(tmp_path / "whole", tmp_path / "cut", 12)
