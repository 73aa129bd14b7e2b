"""Attributions: known answers of linear models, completeness on real architectures, and what is shown of them."""

from __future__ import annotations

import html
import random
import re
from io import StringIO
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console

from electra_fast.cli import main
from electra_fast.explanation import Explainer, Explanation, Word
from electra_fast.explanation.attribution import TOLERANCE, integrated_gradients
from electra_fast.explanation.html import to_html
from electra_fast.explanation.text import render
from tests.small import WORDS, write_small

pytest.importorskip("captum", reason="explanations need captum")


def test_a_linear_model_gives_weights_times_differences(rng_seed: int) -> None:
    g = torch.Generator().manual_seed(rng_seed)
    inputs, baseline, weight = (torch.randn(7, 5, dtype=torch.float64, generator=g) for _ in range(3))
    result = integrated_gradients(lambda rows: (rows * weight).sum((1, 2)) + 3.0, inputs, baseline)
    torch.testing.assert_close(result.values, (weight * (inputs - baseline)).sum(-1), rtol=1e-9, atol=1e-9)
    assert result.score == pytest.approx(float((inputs * weight).sum()) + 3.0, abs=1e-9)
    assert abs(result.error) < 1e-9


def test_a_product_is_shared_as_the_integral_says(rng_seed: int) -> None:
    """Of f = x y, on the line from 0, each factor gets x y / 2; of f = x^2 y they get 2/3 and 1/3."""
    x, y = 1.0 + random.Random(rng_seed).random(), 2.0
    inputs, zeros = torch.tensor([[x], [y]], dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    half = integrated_gradients(lambda rows: rows[:, 0, 0] * rows[:, 1, 0], inputs, zeros)
    torch.testing.assert_close(half.values, torch.full((2,), x * y / 2, dtype=torch.float64), rtol=1e-9, atol=0)
    thirds = integrated_gradients(lambda rows: rows[:, 0, 0] ** 2 * rows[:, 1, 0], inputs, zeros)
    wanted = torch.tensor([2, 1], dtype=torch.float64) * x * x * y / 3
    torch.testing.assert_close(thirds.values, wanted, rtol=1e-9, atol=0)


def test_steps_grow_until_the_sum_is_right() -> None:
    """A kink that 16 points miss: the first results are off by more than 1%, the last is not."""
    inputs, zeros = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    result = integrated_gradients(lambda rows: 40 * (rows[:, 0, 0] - 0.975).relu(), inputs, zeros)
    assert result.is_complete
    assert result.steps > 16


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stock classifiers with weights large enough to be far from linear."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = transformers.AutoTokenizer.from_pretrained(write_small(folder) / "tokenizer")
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "initializer_range": 0.1,
    }
    electra = transformers.ElectraConfig(embedding_size=24, id2label={0: "bad", 1: "good", 2: "<odd>"}, **shape)
    stock = {
        "electra": transformers.ElectraForSequenceClassification(electra),
        "bert": transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=1, **shape)),
        "discriminator": transformers.ElectraForPreTraining(electra),
    }
    for name, model in stock.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in stock}


@pytest.mark.parametrize("name", ["electra", "bert"])
def test_words_sum_to_the_difference_and_stand_where_they_stood(
    models: dict[str, Path], name: str, rng_seed: int
) -> None:
    rng = random.Random(rng_seed)
    explainer = Explainer(models[name])
    stock_model = transformers.AutoModelForSequenceClassification.from_pretrained(models[name]).eval()
    for pair in (None, " ".join(rng.choices(WORDS, k=4))):
        text = " ".join(rng.choices(WORDS, k=9)).title() + ", zzz."
        encoded = explainer.tokenizer(text, pair, return_tensors="pt")
        logits = stock_model(**encoded).logits[0].detach().double()
        item = explainer.explain(text, pair)
        if name == "bert":
            assert (item.label, item.probability) == ("value", None)
            assert item.score == pytest.approx(logits.item(), abs=1e-4)
        else:
            best = int(logits.argmax())
            assert item.label == ["bad", "good", "<odd>"][best]
            assert item.probability == pytest.approx(float(logits.softmax(-1)[best]), abs=1e-5)
            assert item.score == pytest.approx(float(logits.softmax(-1)[best].logit()), abs=1e-4)
        total = sum(word.attribution for word in item.words)
        assert total == pytest.approx(item.score - item.baseline + item.error, abs=1e-6)
        # Where the difference itself is next to nothing, 1% of it is below what float32 holds.
        assert abs(item.error) <= TOLERANCE * abs(item.score - item.baseline) + 1e-4
        for text_of_words, is_pair in ((text, False), (pair or "", True)):
            words = [text_of_words[word.start : word.end] for word in item.words if word.pair == is_pair]
            assert words == re.findall(r"\w+|[^\w\s]", text_of_words)
        assert not item.is_cut


def test_any_label_can_be_explained_and_long_texts_say_that_they_are_cut(models: dict[str, Path]) -> None:
    explainer = Explainer(models["electra"])
    items = [explainer.explain("the quick fox", label=label) for label in ("bad", "good", "<odd>")]
    assert sum(item.probability for item in items) == pytest.approx(1, abs=1e-6)
    assert explainer.explain("fox " * 60).is_cut
    empty = explainer.explain("")
    assert empty.words == ()
    assert empty.score == pytest.approx(empty.baseline, abs=1e-5)
    with pytest.raises(ValueError, match="no label 'god'; did you mean good"):
        explainer.explain("the fox", label="god")


ITEM = Explanation(
    "Not <b>good</b>, at all.",
    "Second",
    "good & bad",
    0.25,
    -1.0986,
    0.5,
    (Word(0, 3, -2.0), Word(7, 11, 0.5), Word(17, 19, -0.0986), Word(0, 6, 0.0, pair=True)),
    0.0,
)


def _shown(item: Explanation, **options: object) -> str:
    console = Console(file=StringIO(), width=100, highlight=False, **options)
    render([item], console=console)
    return console.file.getvalue()


def test_without_colour_the_strongest_words_have_signs() -> None:
    lines = _shown(ITEM).splitlines()
    assert lines[0] == ("good & bad 25.0%: without words +0.50, the words -1.60, together -1.10 nats")
    assert lines[1:3] == ["Not <b>good</b>, at all.", "Second"]
    assert lines[3:] == ["  -2.000  Not", "  +0.500  good", "  -0.099  at", "  +0.000  Second"]


def test_colours_tell_for_from_against() -> None:
    shown = _shown(ITEM, color_system="256", force_terminal=True)
    assert "\x1b[38;5;16;48;5;208mNot\x1b[0m" in shown
    assert "\x1b[38;5;16;48;5;153mgood\x1b[0m" in shown  # a quarter of the strongest
    assert "mSecond" not in shown


def test_the_page_holds_the_text_and_each_words_figure_and_loads_nothing() -> None:
    page = to_html([ITEM], model="a <model>")
    assert "a &lt;model&gt;" in page
    assert '<span class="a3">Not</span><i> -2.000</i>' in page
    assert '<span class="f1">good</span><i> +0.500</i>' in page
    body = page[page.index("<main") : page.index("</main>")]
    text = html.unescape(re.sub(r"<i>.*?</i>|<[^>]*>", "", body))
    assert "Not <b>good</b>, at all." in text
    assert not re.search(r"(?:src|href)=|url\(|https?:", page)


def test_the_command(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(models["electra"])
    assert main(["explain", model, "the quick fox", "--label", "good"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("good ")
    assert "quick" in out
    (tmp_path / "texts.txt").write_text("the fox\na river\n", encoding="utf-8")
    page = tmp_path / "why.html"
    assert main(["explain", model, "--file", str(tmp_path / "texts.txt"), "--html", str(page)]) == 0
    assert "a page of 2 texts" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8").count('tabindex="0"') == 2
    for arguments, message in (
        ([model], "give what to explain"),
        ([model, "a", "--html", str(page)], "--overwrite"),
        ([model, "a", "--label", "nice"], "no label 'nice'"),
        ([str(models["discriminator"]), "a"], "expected a model for sequence classification"),
        ([str(tmp_path), "a"], "holds no config.json"),
    ):
        assert main(["explain", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
