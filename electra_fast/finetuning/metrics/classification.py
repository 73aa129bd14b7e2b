"""Metrics of classes and numbers, in percent, over scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Sequence

from electra_fast.extras import require


def accuracy_and_f1(labels: Sequence[str], predicted: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Accuracy, and F1 as the mean over the classes `names` (a class that never occurs counts as 0)."""
    metrics = require("sklearn.metrics", extra="finetune", purpose="Metrics")
    return {
        "accuracy": 100 * metrics.accuracy_score(labels, predicted),
        "f1_macro": 100 * metrics.f1_score(labels, predicted, labels=list(names), average="macro", zero_division=0.0),
    }
