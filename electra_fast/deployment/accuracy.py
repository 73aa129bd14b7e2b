"""What a package costs on a real task: the metric of the model and of the package on labelled examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from electra_fast.deployment.runtime import Deployed, Outputs
from electra_fast.finetuning.inference import predict, predict_by
from electra_fast.finetuning.model import FineTuned
from electra_fast.finetuning.task import Example, Feature

# A package's outputs for a feature as `finetuning.heads.Head.outputs` gives the model's, for the heads that are
# exported: those of transformers, and the original's for classification and tagging.
HEADS: Mapping[str, Callable[[Outputs], Any]] = {
    "sequence": lambda outputs: outputs.logits,
    "sequence/original": lambda outputs: outputs.logits,
    "tokens": lambda outputs: outputs.logits,
    "tokens/original": lambda outputs: outputs.logits,
    "span": lambda outputs: (outputs.start_logits, outputs.end_logits),
    "choice": lambda outputs: outputs.logits,
}


@dataclass(frozen=True)
class Accuracy:
    """A task's metric in percent."""

    metric: str
    model: float
    package: float
    examples: int


def measure(
    finetuned: FineTuned, deployed: Deployed, examples: Sequence[Example], features: Sequence[Feature]
) -> Accuracy:
    """The metric of both on `examples`, all labelled; `features` are what the task makes of them."""
    model, tokenizer, task = finetuned

    def run(features: Sequence[Feature]) -> list[Any]:
        return [HEADS[task.head](outputs) for outputs in deployed.run(features)]

    scores = [
        task.score(examples, predictions)[task.metric]
        for predictions in (
            predict(model, tokenizer, task, examples, features),
            predict_by(run, tokenizer, task, examples, features),
        )
    ]
    return Accuracy(task.metric, *scores, len(examples))
