"""Metrics of classes and numbers on cases whose values are fractions that one can work out by hand."""

from __future__ import annotations

import math
import random

import pytest

from electra_fast.finetuning.metrics.classification import (
    accuracy,
    accuracy_and_binary_f1,
    accuracy_and_f1,
    correlations,
    matthews_correlation,
    mean_squared_error,
)

# 6 true positives, 3 true negatives, 1 false positive, 2 false negatives.
LABELS = list("111111000011")
PREDICTED = list("111111000100")


def test_of_two_classes() -> None:
    assert accuracy(LABELS, PREDICTED) == pytest.approx({"accuracy": 100 * 9 / 12}, abs=1e-9)
    both = accuracy_and_binary_f1(LABELS, PREDICTED, positive="1")
    assert both == pytest.approx({"accuracy": 75, "f1": 100 * 2 * 6 / (2 * 6 + 1 + 2)}, abs=1e-9)
    mean = (4 / 5 + 2 / 3) / 2  # of class 1, and of class 0: 2 * 3 / (2 * 3 + 2 + 1)
    assert accuracy_and_f1(LABELS, PREDICTED, ["0", "1"])["f1_macro"] == pytest.approx(100 * mean, abs=1e-9)
    mcc = (6 * 3 - 1 * 2) / math.sqrt((6 + 1) * (6 + 2) * (3 + 1) * (3 + 2))
    assert matthews_correlation(LABELS, PREDICTED)["matthews_correlation"] == pytest.approx(100 * mcc, abs=1e-9)


def test_a_class_that_never_occurs() -> None:
    assert accuracy_and_f1(["a", "b"], ["a", "b"], ["a", "b", "c"])["f1_macro"] == pytest.approx(200 / 3, abs=1e-9)
    assert accuracy_and_binary_f1(["0"], ["0"], positive="1") == {"accuracy": 100.0, "f1": 0.0}
    assert matthews_correlation(["0", "1"], ["1", "1"]) == {"matthews_correlation": 0.0}


@pytest.mark.parametrize(
    ("labels", "predicted", "pearson", "spearman"),
    [
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 8 / 10, 8 / 10),
        ([0, 1, 2, 3], [0, 1, 4, 9], 15 / math.sqrt(5 * 49), 1),
        ([0, 1, 2, 3], [9, 4, 1, 0], -15 / math.sqrt(5 * 49), -1),
        # Ranks 1, 2, 3, 4 and, of equal numbers the mean, 1.5, 1.5, 3, 4.
        ([1, 2, 3, 4], [0, 0, 1, 7], 11 / math.sqrt(5 * 34), 4.5 / math.sqrt(5 * 4.5)),
        ([1, 2, 3], [5, 5, 5], 0, 0),
    ],
)
def test_correlations(labels: list[float], predicted: list[float], pearson: float, spearman: float) -> None:
    result = correlations(labels, predicted)
    assert result == pytest.approx({"pearson": 100 * pearson, "spearman": 100 * spearman}, abs=1e-9)


def test_pearson_is_the_definition(rng_seed: int) -> None:
    rng = random.Random(rng_seed)
    x, y = ([rng.gauss(3, 2) for _ in range(50)] for _ in range(2))
    mean_x, mean_y = math.fsum(x) / 50, math.fsum(y) / 50
    covariance = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    spread = math.fsum((a - mean_x) ** 2 for a in x) * math.fsum((b - mean_y) ** 2 for b in y)
    assert correlations(x, y)["pearson"] == pytest.approx(100 * covariance / math.sqrt(spread), abs=1e-6)
    squares = math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / 50
    assert mean_squared_error(x, y)["mean_squared_error"] == pytest.approx(squares, rel=1e-9)
