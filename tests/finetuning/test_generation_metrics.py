"""Cases whose scores are worked out by hand."""

from __future__ import annotations

import math

import pytest

from electra_fast.finetuning.metrics.generation import CJK, bleu, exact_match, rouge, share_of_letters

EXACT = 1e-6


def test_rouge_of_words() -> None:
    # "the cat sat on the mat" / "the cat the mat": 4 common words of 6 and 4; 2 common pairs of 5 and 3 (the cat, the
    # mat); the longest common subsequence has 4. The second text shares nothing, the third everything but its case.
    references = ["The cat sat on the mat.", "a b", "Yes, yes!"]
    texts = ["the cat, the mat", "c", "yes yes"]
    scores = rouge(references, texts)
    assert scores == pytest.approx(
        {
            "rouge_1": 100 * (0.8 + 0 + 1) / 3,  # 2 * (4/4 * 4/6) / (4/4 + 4/6)
            "rouge_2": 100 * (0.5 + 0 + 1) / 3,  # 2 * (2/3 * 2/5) / (2/3 + 2/5)
            "rouge_l": 100 * (0.8 + 0 + 1) / 3,
        },
        abs=EXACT,
    )


def test_rouge_of_characters() -> None:
    # Four characters each, three common ones, in order; two of three pairs.
    assert rouge(["我喜欢猫。"], ["我喜欢狗"], "characters") == pytest.approx(
        {"rouge_1": 75.0, "rouge_2": 200 / 3, "rouge_l": 75.0}, abs=EXACT
    )
    # "用 pytorch 训 练" / "用 pytorch": words of letters stay whole. 2 of 4 and of 2; 1 pair of 3 and of 1.
    assert rouge(["用PyTorch训练"], ["用 pytorch"], "characters") == pytest.approx(
        {"rouge_1": 200 / 3, "rouge_2": 50.0, "rouge_l": 200 / 3}, abs=EXACT
    )
    assert rouge(["я люблю котов"], ["я люблю собак"], "characters")["rouge_1"] == pytest.approx(200 / 3, abs=EXACT)


def test_bleu() -> None:
    # 5 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples; 5 words for 6.
    expected = 100 * math.exp(1 - 6 / 5) * (5 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert bleu(["the cat sat on the mat"], ["the cat sat on mat"]) == pytest.approx(expected, abs=EXACT)
    assert bleu(["The cat sat on the mat"], ["the cat sat on mat"]) < expected - 1
    assert bleu(["The CAT sat on the mat"], ["the cat sat on mat"], lowercase=True) == pytest.approx(
        expected, abs=EXACT
    )
    # The same in Chinese, a character a word.
    assert bleu(["我们喜欢吃鱼"], ["我们喜欢鱼"], "zh") == pytest.approx(
        100 * math.exp(1 - 6 / 5) * (5 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, abs=EXACT
    )


def test_bleu_is_of_the_corpus() -> None:
    """Counts are summed over the texts: no mean of their scores."""
    references, texts = ["a b c d e f", "g h i j"], ["a b c d x f", "g h i j"]
    expected = 100 * (9 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** 0.25
    assert bleu(references, texts) == pytest.approx(expected, abs=EXACT)


def test_exact_match() -> None:
    references = ["Do n't stop", "a b", "A b", "a b"]
    texts = ["Don't stop", "a  b ", "a b", "b a"]
    assert exact_match(references, texts) == pytest.approx(50, abs=EXACT)
    assert exact_match(references, texts, lowercase=True) == pytest.approx(75, abs=EXACT)


def test_share_of_letters() -> None:
    assert share_of_letters(["我喜欢 abc, 1!"], CJK) == 0.5
    assert share_of_letters(["1 2"], CJK) == 0
