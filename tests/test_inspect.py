"""`electra-fast inspect`: probabilities against stock transformers; text shown as typed, with and without colour."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

from electra_fast.data.tokenizer import train_wordpiece
from electra_fast.inspection import InspectedText, inspect_text, render

TEXTS = ("The quick fox, unbelievably, jumps!", "  Zwei  Wörter [b]fett[/b] 日本 ", "")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a discriminator and a generator of random weights and a tokenizer that cuts words up."""
    folder = tmp_path_factory.mktemp("run with spaces")
    (folder / "text.txt").write_text(
        "the quick fox jumps unbelievably zwei wörter fett , ! [ ] / 日 本\n" * 3, encoding="utf-8"
    )
    tokenizer = train_wordpiece([folder / "text.txt"], None, vocab_size=75)
    config = transformers.ElectraConfig(
        vocab_size=len(tokenizer), embedding_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, initializer_range=1.0,
    )  # fmt: skip
    for name, kind in (
        ("discriminator", transformers.ElectraForPreTraining),
        ("generator", transformers.ElectraForMaskedLM),
    ):
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def _printed(items: list[InspectedText], **console: object) -> str:
    out = io.StringIO()
    render(items, console=Console(file=out, highlight=False, **console))
    return out.getvalue()


def test_probabilities_are_those_of_stock_transformers(run: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "discriminator")
    model = transformers.ElectraForPreTraining.from_pretrained(run / "discriminator").eval()
    inspected = inspect_text(run, TEXTS)
    assert [item.text for item in inspected] == list(TEXTS)
    for item in inspected:
        with torch.no_grad():
            logits = model(**tokenizer(item.text, return_tensors="pt")).logits[0].double().numpy()
        np.testing.assert_allclose(item.probabilities, 1 / (1 + np.exp(-logits[1:-1])), rtol=1e-5)
        assert item.tokens == tokenizer.tokenize(item.text)
    assert inspected == inspect_text(str(run / "discriminator"), TEXTS)


def test_words_are_pieces_joined_as_typed(run: Path) -> None:
    first, second, empty = inspect_text(run, TEXTS)
    assert [word for word, _ in first.words()] == ["The", "quick", "fox", ",", "unbelievably", ",", "jumps", "!"]
    assert [word for word, _ in second.words()] == [
        "Zwei",
        "Wörter",
        "[",
        "b",
        "]",
        "fett",
        "[",
        "/",
        "b",
        "]",
        "日",
        "本",
    ]
    assert list(empty.words()) == []
    assert any(len(probabilities) > 1 for _, probabilities in first.words())
    assert [p for _, ps in first.words() for p in ps] == first.probabilities


@pytest.mark.parametrize("width", [30, 200])
def test_without_colour_every_probability_is_printed(run: Path, width: int) -> None:
    inspected = inspect_text(run, TEXTS[:2])
    shown = _printed(inspected, width=width)
    assert "\x1b" not in shown
    rows = shown.splitlines()
    assert " ".join(rows[0::2]).split() == [word for item in inspected for word, _ in item.words()]
    percents = [p for column in " ".join(rows[1::2]).split() for p in column.removesuffix("%").split("+")]
    assert percents == [f"{100 * p:.0f}" for item in inspected for p in item.probabilities]


@pytest.mark.parametrize("colors", ["standard", "256", "truecolor"])
def test_with_colour_the_text_stands_as_typed(run: Path, colors: str) -> None:
    item = InspectedText(
        "It is because.", ["it", "is", "because", "."], [0.01, 0.4, 0.99, 0.01], [(0, 2), (3, 5), (6, 13), (13, 14)]
    )
    shown = _printed([item], force_terminal=True, color_system=colors, width=200, no_color=False)
    line = shown.splitlines()[0]
    styles = [part.partition("m")[0] for part in line.split("\x1b[")[1::2]]
    assert len(styles) == 4
    assert styles[0] == styles[3]
    assert len(set(styles)) == 3
    assert "".join(part.partition("m")[2] if i else part for i, part in enumerate(line.split("\x1b["))) == item.text


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_is_left_off_where_it_is_not_wanted(variable: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv(*variable)
    item = InspectedText("a b", ["a", "b"], [0.25, 0.75], [(0, 1), (2, 3)])
    assert _printed([item], force_terminal=True).split() == ["a", "b", "25%", "75%"]


def test_what_is_no_discriminator_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"generator holds ElectraForMaskedLM"):
        inspect_text(run / "generator", ["hi"])
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        inspect_text(tmp_path, ["hi"])
    with pytest.raises(ValueError, match="is no folder"):
        inspect_text(tmp_path / "nope", ["hi"])
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="not finished"):
        inspect_text(tmp_path, ["hi"])


def test_damaged_weights_and_long_texts_are_named(run: Path, tmp_path: Path) -> None:
    inspect_text(run, [", " * 62])  # 64 with [CLS] and [SEP]
    with pytest.raises(ValueError, match=r"', , .* has 65 tokens .* at most 64"):
        inspect_text(run, [", " * 63])
    for file in (run / "discriminator").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="can't read the model in"):
        inspect_text(tmp_path, ["hi"])
