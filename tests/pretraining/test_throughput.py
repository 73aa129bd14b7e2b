"""FLOPs against the published figures and against what PyTorch counts; activation checkpointing; what rows report."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from electra_fast.data.loader import Batch
from electra_fast.models import ElectraConfig, ElectraForJointPreTraining
from electra_fast.pretraining.build import checkpoint_activations
from electra_fast.pretraining.config import TrainingConfig
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.metrics import read_metrics
from electra_fast.pretraining.throughput import peak_flops, peak_memory, step_flops
from electra_fast.pretraining.train import pretrain
from tests.pretraining.test_accumulation import random_batch
from tests.pretraining.test_phases import assert_same_end


def model_of(recipe: str, vocab_size: int = 30522) -> ElectraForJointPreTraining:
    config = read_config(recipe)
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    towers = [
        ElectraConfig(
            vocab_size=vocab_size,
            embedding_size=config.model.embedding_size,
            **{name: getattr(tower, name) for name in sizes},
        )
        for tower in (config.model.generator, config.model)
    ]
    return ElectraForJointPreTraining(*towers, mask_prob=config.objective.mask_prob)


# MFLOP a token, discriminator and generator: 3 times a forward pass of matrix products, head on the masked share.
@pytest.mark.parametrize(
    ("recipe", "length", "generator", "total"), [("small", 128, 8.3, 70.2), ("base", 512, 98.0, 667.7)]
)
def test_flops_a_token_are_those_of_the_recipes(recipe, length, generator, total):
    with torch.device("meta"):
        model = model_of(recipe)
    batch = Batch(torch.zeros(4 * length), torch.arange(5) * length, torch.arange(4), 0, length, 4 * length)
    tokens = 4 * length
    assert step_flops(model, batch, "joint") / tokens / 1e6 == pytest.approx(total, rel=2e-3)
    assert step_flops(model, batch, "generator") / tokens / 1e6 == pytest.approx(generator, rel=6e-3)
    parts = [step_flops(model, batch, name) for name in ("joint", "generator", "discriminator")]
    assert parts[2] == pytest.approx(parts[0] - parts[1] + parts[1] / 3)  # the generator's forward pass only
    assert step_flops(model, batch, "something else") is None


def test_flops_of_ragged_text_are_what_pytorch_counts(rng_seed):
    """The discriminator's forward pass in stock transformers, sequence after sequence."""
    lengths = np.random.default_rng(rng_seed).integers(4, 40, 9).tolist()
    sizes = {"vocab_size": 200, "embedding_size": 16, "max_position_embeddings": 64, "num_attention_heads": 2}
    config = ElectraConfig(**sizes, hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    model = ElectraForJointPreTraining(config, config)
    config._attn_implementation = "eager"
    stock = transformers.ElectraForPreTraining(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for length in lengths:
            stock(torch.ones(1, length, dtype=torch.int64))
    batch = random_batch(rng_seed, lengths, vocab_size=200)
    ours = (step_flops(model, batch, "joint") - step_flops(model, batch, "generator")) / 3
    assert ours == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_peaks(monkeypatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for name, half, single in (
        ("NVIDIA H100 80GB HBM3", 989.0, 67.0),
        ("NVIDIA H100 PCIe", 756.0, 51.0),
        ("NVIDIA L40S", 362.0, 91.6),
        ("Tesla T4", 65.0, 8.1),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(gpu, TrainingConfig(precision="bfloat16")) == half * 1e12
        assert peak_flops(gpu, TrainingConfig()) == single * 1e12
    for name in ("Unheard-of 1", "NVIDIA L40", "NVIDIA GH200 480GB", "NVIDIA A1000"):  # parts of words don't count
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(gpu, TrainingConfig()) is None
    assert peak_flops(cpu, TrainingConfig()) is None
    assert peak_flops(cpu, TrainingConfig(peak_tflops=0.25)) == 0.25e12


def test_rows_report_speed_share_and_memory(tmp_path, quick_config):
    pretrain(quick_config(tmp_path / "run", **{"training.peak_tflops": 0.001}), progress=False)
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    for row in rows:
        assert {"loss", "generator_loss", "discriminator_loss", "gradient_norm", "lr", "eta_seconds"} <= row.keys()
        assert {"accuracy", "precision", "recall", "auc", "sampled_accuracy"} <= row.keys()
        assert row["mfu"] > 0
        assert row["loss"] == pytest.approx(row["generator_loss"] + 50 * row["discriminator_loss"], rel=1e-5)
    per_token = [0.001e12 * row["mfu"] / row["tokens_per_second"] for row in rows]
    assert max(per_token) < 1.2 * min(per_token)  # only attention and the lengths of sequences make a difference
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert rows[-1]["peak_memory_bytes"] == pytest.approx(peak, rel=0.1)
    assert peak_memory(torch.device("cpu")) == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activation_checkpointing_changes_no_bit(tmp_path, quick_config, precision):
    for name, value in (("kept", False), ("again", True)):
        settings = {"training.activation_checkpointing": value, "training.precision": precision, "training.steps": 5}
        pretrain(quick_config(tmp_path / name, **settings), progress=False)
    assert_same_end(tmp_path / "kept", tmp_path / "again", 5)


def test_activation_checkpointing_keeps_less_for_the_backward_pass(rng_seed):
    """Bytes that autograd keeps, counted: without it they grow with every layer."""
    batch = random_batch(rng_seed, [64] * 8, vocab_size=200)
    kept = {}
    for checkpoints in (False, True):
        sizes = {"vocab_size": 200, "embedding_size": 16, "max_position_embeddings": 64, "num_attention_heads": 2}
        model = ElectraForJointPreTraining(
            ElectraConfig(**sizes, hidden_size=32, num_hidden_layers=6, intermediate_size=128),
            ElectraConfig(**sizes, hidden_size=64, num_hidden_layers=6, intermediate_size=256),
            mask_token_id=4,
            never_mask_ids=(2, 3, 4),
        ).train()
        if checkpoints:
            checkpoint_activations(model)
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages=storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(batch.input_ids, cu_seqlens=batch.cu_seqlens, seed=0, max_seqlen=64)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept[checkpoints] = sum(size for place, size in storages.items() if place not in weights)
    print(kept)
    assert kept[True] < kept[False] / 3
