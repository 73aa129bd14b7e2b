"""The drop-in models beside stock transformers: ELECTRA-small, on sentences with their padding and at full length.

A training step is what fine-tuning does: forward, backward, AdamW, with dropout. `stock compiled` is torch.compile of
stock, with dynamic shapes for sentences: of the whole model in inference on a CPU, else of its layers ("regional
compilation" of PyTorch's tutorials), since the whole takes minutes to compile. `floor` is the products of the real
tokens alone.
"""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import transformers
from transformers import ElectraConfig, PreTrainedModel

from benchmarks.floor import model_floor
from electra_fast import bench
from electra_fast.bench import Call
from electra_fast.twins import Batch, fast_twin, inputs_of, labels_of, on_device_of, random_batch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}[DEVICE]
BATCH_SIZE, BATCHES = {"cpu": (32, 2), "cuda": (128, 2)}[DEVICE]
FULL = {"cpu": (16, 128), "cuda": (128, 128)}[DEVICE]
QUICK = (2, 16)  # for a look without measuring
CLASSES = {"sentences": "ElectraForSequenceClassification", "full length": "ElectraForPreTraining"}
# The ratios to stock asked for on two CPU cores.
TARGETS = {
    ("sentences", "inference"): 2.0,
    ("sentences", "training step"): 3.0,
    ("full length", "inference"): 1.0,
    ("full length", "training step"): 1.5,
}


def calls_of(model: PreTrainedModel, batches: list[Batch], *, with_mask: bool) -> list[Call]:
    generator = torch.Generator().manual_seed(1)
    made = ((inputs_of(model, each, with_mask=with_mask), labels_of(model, each, generator)) for each in batches)
    return [Call(*(on_device_of(model, part) for part in call)) for call in made]


def compiled(stock: PreTrainedModel, direction: str, *, is_measured: bool, dynamic: bool) -> PreTrainedModel:
    torch.compiler.reset()  # else what was compiled for other models counts towards the limit of recompilations
    model = copy.deepcopy(stock)
    parts = [model] if direction == "inference" and DEVICE == "cpu" else model.electra.encoder.layer
    for part in parts:
        part.compile(backend="inductor" if is_measured else "eager", dynamic=dynamic)
    return model


@pytest.mark.timeout(900)
@pytest.mark.parametrize("direction", ["inference", "training step"])
@pytest.mark.parametrize("kind", CLASSES)
def test_electra_small(compare, benchmark, kind, direction):
    generator = torch.Generator().manual_seed(0)
    stock = getattr(transformers, CLASSES[kind])(ElectraConfig()).to(DEVICE, DTYPE)
    sequences, length = FULL if benchmark.enabled else QUICK
    if kind == "sentences":
        batch_size = BATCH_SIZE if benchmark.enabled else QUICK[0]
        batches = bench.sentences(stock, batch_size, BATCHES, length, generator)
        shape = f"{BATCHES} x {batch_size} sentences"
    else:
        batches = [random_batch(stock.config, [length] * sequences, generator)]
        shape = f"{sequences} x {length}"
    lengths = [batch.attention_mask.sum(1).tolist() for batch in batches]
    calls = calls_of(stock, batches, with_mask=kind == "sentences")
    is_training = direction == "training step"
    floor = model_floor(stock, lengths, DEVICE, DTYPE, training=is_training)

    def run(model: PreTrainedModel) -> partial[None]:
        if is_training:
            return partial(bench.train, model, optimizer=bench.make_optimizer(model))
        return partial(bench.infer, model)

    compare(
        CLASSES[kind],
        ours=run(fast_twin(stock)),
        plain=run(stock),
        rivals={
            "stock compiled": run(
                compiled(stock, direction, is_measured=benchmark.enabled, dynamic=kind == "sentences")
            ),
            "floor": floor,
        },
        inputs=[(calls,)],
        shape=shape,
        dtype=str(DTYPE).removeprefix("torch."),
        direction=direction,
        flops=floor.flops,
        tokens=sum(map(sum, lengths)),
        target=TARGETS[kind, direction] if DEVICE == "cpu" else None,
    )
