"""An exported classifier of ELECTRA-small's size, in int8 by ONNX Runtime, beside stock transformers in float32.

`python -m benchmarks.exported` compares a model and a package of your own on a file of texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import ElectraConfig, PreTrainedModel

from electra_fast import bench
from electra_fast.deployment import load
from electra_fast.deployment.export import export_model
from electra_fast.deployment.padding import pad

BATCH_SIZE, BATCHES = 32, 4
TINY = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}
Features = list[dict[str, Any]]


def infer(model: PreTrainedModel, features: Features) -> None:
    """Batches in the given order, each padded to its longest sequence."""
    with torch.inference_mode():
        for start in range(0, len(features), BATCH_SIZE):
            batch = pad(features[start : start + BATCH_SIZE], 0)
            model(**{name: torch.from_numpy(value) for name, value in batch.items()})


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="work of the CPU; on a machine with a GPU the suite measures that"
)
@pytest.mark.timeout(600)
def test_int8_classifier(compare, benchmark, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install electra-fast[export]")
    config = ElectraConfig(**({} if benchmark.enabled else TINY))
    stock = transformers.ElectraForSequenceClassification(config).eval()
    stock.save_pretrained(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "package", format="onnx-int8", seed=0)
    package = load(Path(tmp_path / "package"), threads=torch.get_num_threads())
    batches = bench.sentences(stock, BATCH_SIZE, BATCHES if benchmark.enabled else 1, 128, torch.Generator())
    features = [
        {"input_ids": ids[mask == 1].tolist()}
        for batch in batches
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    compare(
        "exported classifier, onnx-int8",
        ours=package.run,
        plain=lambda given: infer(stock, given),
        inputs=[(features,)],
        shape=f"{len(features)} sentences",
        dtype="int8",
        direction="inference",
        tokens=sum(len(feature["input_ids"]) for feature in features),
    )
