"""SQuAD's metrics in percent, as its official scripts evaluate-v1.1.py and evaluate-v2.0.py define them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII's; other punctuation counts, as in the scripts
NO_ANSWER = ""


def normalize_answer(text: str) -> str:
    """In lower case, without punctuation, then without articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def squad1_metrics(answers: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """SQuAD 1.1.

    Args:
        answers: the right answers of each question, at least one; the best match counts.
        predicted: one answer for each question.

    Returns:
        "exact", the share of questions answered with exactly the normalised words of a right answer, and "f1", the
        mean overlap of words.
    """
    pairs = list(zip(answers, predicted, strict=True))
    exact = [max(_exact(right, given) for right in rights) for rights, given in pairs]
    overlap = [max(_f1_of_words(right, given) for right in rights) for rights, given in pairs]
    return {"exact": _percent(exact), "f1": _percent(overlap)}


def squad2_metrics(
    answers: Sequence[Sequence[str]], predicted: Sequence[str], null_odds: Sequence[float], threshold: float
) -> dict[str, float]:
    """SQuAD 2.0.

    Args:
        answers: the right answers of each question; none: the question has no answer.
        predicted: the best answer to each question, found as if it had one; "" says that it has none.
        null_odds: the higher, the less likely the question has an answer.
        threshold: where the odds are above it, the prediction is taken as "".

    Returns:
        "exact" and "f1"; both for the questions with and without answer (HasAns_..., NoAns_..., where there are any);
        and the best that any threshold gives, with that threshold: best_exact, best_exact_thresh, best_f1,
        best_f1_thresh.
    """
    rows = list(zip(answers, predicted, strict=True))
    has_answer = [bool(rights) for rights, _ in rows]
    exact, overlap = [], []
    for rights, given in rows:
        # A right answer such as "the" has no words left, and counts for nothing.
        named = [right for right in rights if normalize_answer(right)] or [NO_ANSWER]
        exact.append(max(_exact(right, given) for right in named))
        overlap.append(max(_f1_or_both_empty(right, given) for right in named))

    metrics = {}
    for name, scores in (("exact", exact), ("f1", overlap)):
        cut = [
            score if odds <= threshold else float(not has)
            for score, odds, has in zip(scores, null_odds, has_answer, strict=True)
        ]
        metrics[name] = _percent(cut)
        for group, wanted in (("HasAns", True), ("NoAns", False)):
            if wanted in has_answer:
                metrics[f"{group}_{name}"] = _percent(
                    s for s, has in zip(cut, has_answer, strict=True) if has is wanted
                )
        best, best_threshold = _best_threshold(scores, predicted, null_odds, has_answer)
        metrics |= {f"best_{name}": best, f"best_{name}_thresh": best_threshold}
    return metrics


def _best_threshold(
    scores: Sequence[float], predicted: Sequence[str], null_odds: Sequence[float], has_answer: Sequence[bool]
) -> tuple[float, float]:
    """The best mean of `scores` and its threshold, as the official script goes through the odds: from low to high."""
    current = best = float(len(has_answer) - sum(has_answer))  # nothing is answered
    threshold = 0.0
    for index in sorted(range(len(scores)), key=null_odds.__getitem__):
        if has_answer[index]:
            current += scores[index]
        elif predicted[index] != NO_ANSWER:
            current -= 1
        if current > best:
            best, threshold = current, float(null_odds[index])
    return 100 * best / len(scores), threshold


def _exact(right: str, given: str) -> float:
    return float(normalize_answer(right) == normalize_answer(given))


def _f1_of_words(right: str, given: str) -> float:
    right_words, given_words = normalize_answer(right).split(), normalize_answer(given).split()
    common = (Counter(right_words) & Counter(given_words)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(given_words), common / len(right_words)
    return 2 * precision * recall / (precision + recall)


def _f1_or_both_empty(right: str, given: str) -> float:
    """SQuAD 2.0's: two answers without words agree; in SQuAD 1.1 they have nothing in common."""
    if not normalize_answer(right) or not normalize_answer(given):
        return _exact(right, given)
    return _f1_of_words(right, given)


def _percent(scores: Iterable[float]) -> float:
    values = list(scores)
    return 100 * sum(values) / len(values)
