"""CMRC2018's metrics in percent, for Chinese with other words in it, as its cmrc2018_evaluate.py (v5) has them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from difflib import SequenceMatcher

from electra_fast.extras import require

_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")  # noqa: RUF001 (the script's own)


def cmrc2018_metrics(answers: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """Of the right answers of each question, at least one, and one predicted: the best match counts.

    Returns:
        "exact": equal without case and punctuation. "f1": of the longest run of Chinese characters and other words that
        both have. "average": of the two.
    """
    pairs = list(zip(answers, predicted, strict=True))
    exact = [any(_bare(right) == _bare(given) for right in rights) for rights, given in pairs]
    overlap = [max(_f1(right, given) for right in rights) for rights, given in pairs]
    metrics = {"exact": 100 * sum(exact) / len(pairs), "f1": 100 * sum(overlap) / len(pairs)}
    return metrics | {"average": (metrics["exact"] + metrics["f1"]) / 2}


def _bare(text: str) -> str:
    return "".join(char for char in text.lower().strip() if char not in _PUNCTUATION)


@functools.lru_cache(maxsize=2**16)
def _segments(text: str) -> list[str]:
    """Each Chinese character by itself, and what stands between them in words, as NLTK parts them.

    The official script first parts that into sentences too, by a model that NLTK downloads; here it is one sentence,
    which differs only where a full stop stands inside it.
    """
    tokenize = require("nltk.tokenize", extra="finetune", purpose="CMRC2018's metrics").NLTKWordTokenizer().tokenize
    found: list[str] = []
    other = ""
    for char in _bare(text):
        if "\u4e00" <= char <= "\u9fa5":
            found += [*(tokenize(other) if other else ()), char]
            other = ""
        else:
            other += char
    return found + (tokenize(other) if other else [])


def _f1(right: str, given: str) -> float:
    right_parts, given_parts = _segments(right), _segments(given)
    common = SequenceMatcher(None, right_parts, given_parts, autojunk=False).find_longest_match().size
    if common == 0:
        return 0.0
    precision, recall = common / len(given_parts), common / len(right_parts)
    return 2 * precision * recall / (precision + recall)
