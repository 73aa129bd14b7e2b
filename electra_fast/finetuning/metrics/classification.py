"""Metrics of classes and numbers, in percent, over scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from electra_fast.extras import require


def accuracy(labels: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """The share of predictions that are right."""
    return {"accuracy": 100 * _sklearn().accuracy_score(labels, predicted)}


def accuracy_and_f1(labels: Sequence[str], predicted: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Accuracy, and F1 as the mean over the classes `names` (a class that never occurs counts as 0)."""
    f1 = _sklearn().f1_score(labels, predicted, labels=list(names), average="macro", zero_division=0.0)
    return accuracy(labels, predicted) | {"f1_macro": 100 * f1}


def accuracy_and_binary_f1(labels: Sequence[str], predicted: Sequence[str], positive: str) -> dict[str, float]:
    """Accuracy, and F1 of the class `positive`; 0 where it neither occurs nor is predicted."""
    f1 = _sklearn().f1_score(labels, predicted, labels=[positive], average="macro", zero_division=0.0)
    return accuracy(labels, predicted) | {"f1": 100 * f1}


def matthews_correlation(labels: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Matthews' correlation coefficient; 0 where labels or predictions are all the same, of which it is undefined."""
    return {"matthews_correlation": 100 * _sklearn().matthews_corrcoef(labels, predicted)}


def correlations(labels: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation; equal numbers share the mean of their ranks.

    Both are 0 where labels or predictions are all the same, of which they are undefined: nothing was learned.
    """
    stats = require("scipy.stats", extra="finetune", purpose="Metrics")
    if len(set(labels)) < 2 or len(set(predicted)) < 2:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": 100 * float(stats.pearsonr(labels, predicted).statistic),
        "spearman": 100 * float(stats.spearmanr(labels, predicted).statistic),
    }


def mean_squared_error(labels: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """The mean of squared differences, in the square of the labels' unit: no percent, and lower is better."""
    return {"mean_squared_error": float(_sklearn().mean_squared_error(labels, predicted))}


def _sklearn() -> ModuleType:
    return require("sklearn.metrics", extra="finetune", purpose="Metrics")
