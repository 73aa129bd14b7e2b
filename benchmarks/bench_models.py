"""The drop-in models beside stock transformers: ELECTRA-small, on sentences with their padding and at full length."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import transformers
from transformers import ElectraConfig, PreTrainedModel

from electra_fast import bench
from electra_fast.bench import Call
from electra_fast.twins import Batch, fast_twin, inputs_of, labels_of, on_device_of, random_batch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}[DEVICE]
BATCH_SIZE, BATCHES = {"cpu": (32, 2), "cuda": (128, 2)}[DEVICE]
FULL = {"cpu": (16, 128), "cuda": (128, 128)}[DEVICE]
# The ratios asked for on two CPU cores.
TARGETS = {
    ("sentences", "inference"): 1.8,
    ("sentences", "training step"): 2.5,
    ("full length", "inference"): 1.0,
    ("full length", "training step"): 1.5,
}


def calls_of(model: PreTrainedModel, batches: list[Batch], *, with_mask: bool) -> list[Call]:
    generator = torch.Generator().manual_seed(1)
    made = ((inputs_of(model, each, with_mask=with_mask), labels_of(model, each, generator)) for each in batches)
    return [Call(*(on_device_of(model, part) for part in call)) for call in made]


@pytest.mark.parametrize("direction", ["inference", "training step"])
@pytest.mark.parametrize("batches", ["sentences", "full length"])
def test_electra_small(compare, batches, direction):
    generator = torch.Generator().manual_seed(0)
    if batches == "sentences":
        name = "ElectraForSequenceClassification"
        stock = getattr(transformers, name)(ElectraConfig()).to(DEVICE, DTYPE)
        given = bench.sentences(stock, BATCH_SIZE, BATCHES, FULL[1], generator)
        shape = f"{BATCHES} x {BATCH_SIZE} sentences"
    else:
        name = "ElectraForPreTraining"
        stock = getattr(transformers, name)(ElectraConfig()).to(DEVICE, DTYPE)
        given = [random_batch(stock.config, [FULL[1]] * FULL[0], generator)]
        shape = f"{FULL[0]} x {FULL[1]}"
    calls = calls_of(stock, given, with_mask=batches == "sentences")

    def run(model: PreTrainedModel) -> partial[None]:
        if direction == "inference":
            return partial(bench.infer, model)
        return partial(bench.train, model, optimizer=bench.make_optimizer(model))

    compare(
        name,
        ours=run(fast_twin(stock)),
        plain=run(stock),
        inputs=[(calls,)],
        shape=shape,
        dtype=str(DTYPE).removeprefix("torch."),
        direction=direction,
        target=TARGETS[batches, direction] if DEVICE == "cpu" else None,
    )
