"""Metrics of written texts, in percent, over rouge-score and sacreBLEU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from electra_fast.extras import require

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fa1f"  # no spaces between words
_CHARACTER_OR_WORD = re.compile(f"[{CJK}]|[^\\W_{CJK}]+")

ROUGE_TOKENS = ("words", "characters")
BLEU_TOKENIZERS = ("13a", "intl", "zh", "char", "none")  # of sacreBLEU, those that need nothing else


def rouge(references: Sequence[str], texts: Sequence[str], tokens: str = "words") -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L: F-measures, the mean over the texts (Lin 2004, by rouge-score, no stemming).

    Args:
        tokens: "words", rouge-score's own: runs of a-z and 0-9 in lower case, anything else between words; or
            "characters": each Chinese or Japanese character, and words of any other letters and digits.
    """
    scorer = require("rouge_score.rouge_scorer", extra="finetune", purpose="ROUGE scores")
    names = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
    rouge_scorer = scorer.RougeScorer(list(names), tokenizer=_Characters() if tokens == "characters" else None)
    scores = [rouge_scorer.score(reference, text) for reference, text in zip(references, texts, strict=True)]
    return {ours: 100 * sum(score[name].fmeasure for score in scores) / len(scores) for name, ours in names.items()}


class _Characters:
    """As rouge-score calls its tokenizers."""

    def tokenize(self, text: str) -> list[str]:
        return _CHARACTER_OR_WORD.findall(text.lower())


def bleu(references: Sequence[str], texts: Sequence[str], tokenizer: str = "13a", lowercase: bool = False) -> float:
    """BLEU-4 of the corpus (Papineni et al. 2002, by sacreBLEU, exponential smoothing)."""
    metrics = require("sacrebleu.metrics", extra="finetune", purpose="BLEU scores")
    metric: Any = metrics.BLEU(tokenize=tokenizer, lowercase=lowercase, force=True)  # without a word on tokenized text
    return metric.corpus_score(list(texts), [list(references)]).score


def exact_match(references: Sequence[str], texts: Sequence[str], lowercase: bool = False) -> float:
    """Texts that are the reference, whatever white space is between their characters."""

    def key(text: str) -> str:
        joined = "".join(text.split())
        return joined.lower() if lowercase else joined

    same = [key(reference) == key(text) for reference, text in zip(references, texts, strict=True)]
    return 100 * sum(same) / len(same)


def share_of_letters(texts: Sequence[str], letters: str) -> float:
    """How many of the letters (of any script) are in `letters`, as a regular expression's [...] has them; 0 to 1."""
    found = sum(len(re.findall(f"[{letters}]", text)) for text in texts)
    return found / max(sum(character.isalpha() for text in texts for character in text), 1)
