"""Metrics of question answering beside values worked out by hand from the official scripts."""

from __future__ import annotations

import pytest

from electra_fast.finetuning.metrics.cmrc2018 import cmrc2018_metrics
from electra_fast.finetuning.metrics.squad import normalize_answer, squad1_metrics, squad2_metrics


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat's\tpaw.", "cats paw"),
        ("a-an-the", "aanthe"),  # punctuation goes before articles, and leaves no gap
        ("an apple, a day", "apple day"),
        ("theory of anatomy", "theory of anatomy"),  # articles within words stay
        ("“The” – end…", "“ ” – end…"),  # only ASCII's punctuation goes; around it articles are words
        ("Théâtre A.", "théâtre"),
        ("U.S.", "us"),
        ("$1,000.50", "100050"),
        ("the", ""),
        ("", ""),
    ],
)
def test_normalization(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


# Right answers, predicted, and exact match and F1 in SQuAD 1.1.
HAND_MADE = [
    (["the Cat"], "cat!", 1.0, 1.0),
    # 2 words in common, of 3 predicted and of 4 right: 2 * 2 / (3 + 4).
    (["big red dog house"], "red dog barks", 0.0, 4 / 7),
    # The best of several, each by itself: 2 * 1 / (2 + 1) beats 2 * 1 / (2 + 3).
    (["Paris in France", "Paris"], "Paris city", 0.0, 2 / 3),
    # Words count as often as they stand: 2 in common, of 3 and 2.
    (["new york", "york"], "New New York", 0.0, 4 / 5),
    (["naïve café"], "naive café", 0.0, 1 / 2),
    (["dog"], "", 0.0, 0.0),
    # Nothing left of both: the same text, but no word in common.
    (["The."], "a", 1.0, 0.0),
]


def test_squad1_by_hand() -> None:
    for answers, predicted, exact, f1 in HAND_MADE:
        assert squad1_metrics([answers], [predicted]) == pytest.approx({"exact": 100 * exact, "f1": 100 * f1}, abs=1e-9)
    rows = list(zip(*HAND_MADE, strict=True))
    expected = {"exact": 100 * 2 / 7, "f1": 100 * (1 + 4 / 7 + 2 / 3 + 4 / 5 + 1 / 2) / 7}
    assert squad1_metrics(rows[0], rows[1]) == pytest.approx(expected, abs=1e-9)


def test_squad2_by_hand() -> None:
    """Six questions; thresholds go through the odds from low to high, and the last two agree with nothing."""
    answers = [["red fox"], ["the"], ["blue sea"], [], [], []]
    predicted = ["the red fox", "", "sea", "something", "", "more"]
    odds = [-3.0, -2.0, 0.5, -1.0, -0.5, 2.0]
    # Scores without a threshold: exact 1, 1 ("the" has no words: a right answer that is none), 0; f1 of the third is
    # 2 * 1 / (1 + 2); without answer: 0, 1, 0.
    # At threshold 0 the third and the last are answered "": 0 for the third, since it has an answer, 1 for the last.
    metrics = squad2_metrics(answers, predicted, odds, 0.0)
    # The best threshold: nothing answered gives the 3 without an answer. Then -3: +1; -2: +1 (best of exact: 5 of 6);
    # -1: -1; -0.5: 0; 0.5: exact +0, f1 +2/3; 2: -1. So both are best at -2.
    expected = {
        "exact": 100 * (1 + 1 + 0 + 0 + 1 + 1) / 6,
        "HasAns_exact": 100 * 2 / 3,
        "NoAns_exact": 100 * 2 / 3,
        "f1": 100 * (1 + 1 + 0 + 0 + 1 + 1) / 6,
        "HasAns_f1": 100 * 2 / 3,
        "NoAns_f1": 100 * 2 / 3,
        "best_exact": 100 * 5 / 6,
        "best_exact_thresh": -2.0,
        "best_f1": 100 * 5 / 6,
        "best_f1_thresh": -2.0,
    }
    assert metrics == pytest.approx(expected, abs=1e-9)
    # Above the highest of the odds all are answered; a threshold among the odds answers the one it is equal to.
    all_answered = squad2_metrics(answers, predicted, odds, 9.0)
    assert all_answered["f1"] == pytest.approx(100 * (1 + 1 + 2 / 3 + 0 + 1 + 0) / 6, abs=1e-9)
    assert squad2_metrics(answers, predicted, odds, 0.5)["f1"] == pytest.approx(
        100 * (1 + 1 + 2 / 3 + 0 + 1 + 1) / 6, abs=1e-9
    )


def test_squad2_of_one_kind_of_question_only() -> None:
    metrics = squad2_metrics([["x"]], ["x"], [1.0], 0.0)
    assert metrics == {
        "exact": 0.0,
        "HasAns_exact": 0.0,
        "best_exact": 100.0,
        "best_exact_thresh": 1.0,
        "f1": 0.0,
        "HasAns_f1": 0.0,
        "best_f1": 100.0,
        "best_f1_thresh": 1.0,
    }
    assert squad2_metrics([[]], ["x"], [1.0], 0.0)["NoAns_f1"] == 100.0


@pytest.mark.parametrize(
    ("answers", "predicted", "exact", "f1"),
    [
        (["光荣和ω-force"], "光荣和ω-Force。", 1, 1.0),
        # 光 荣 in one run, of 3 right and 2 predicted.
        (["光荣和"], "光荣", 0, 4 / 5),
        # The longest run counts, and not all that is in common: 二三 of 4 and 5.
        (["一二三四"], "九二三九四", 0, 4 / 9),
        # Words of other scripts are one part each, and dashes go before: 2008年 is 2 parts, 20-08年 the same.
        (["2008年"], "20-08年", 1, 1.0),
        # in the year / 2008 / 年 against 2008 / 年: 2 in common, of 5 and 2.
        (["in the year 2008年"], "2008年", 0, 4 / 7),
        (["《三国》", "三国志"], "三国志", 1, 1.0),
        (["三国"], "魏", 0, 0.0),
        (["三国"], "", 0, 0.0),
    ],
)
def test_cmrc2018_by_hand(answers: list[str], predicted: str, exact: int, f1: float) -> None:
    expected = {"exact": 100 * exact, "f1": 100 * f1, "average": 50 * (exact + f1)}
    assert cmrc2018_metrics([answers], [predicted]) == pytest.approx(expected, abs=1e-9)
