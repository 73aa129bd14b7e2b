"""`electra-fast inspect`: probabilities against stock transformers; text shown as typed, on the terminal and a page."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

from electra_fast.cli import main
from electra_fast.data.tokenizer import train_wordpiece
from electra_fast.data.tokenizer_training import TRAINERS
from electra_fast.inspection import InspectedText, inspect_text, read_paragraphs, render
from electra_fast.inspection_html import to_html, write_html
from electra_fast.inspection_shades import SHADES, percent, printable, shade_index

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
        intermediate_size=32, max_position_embeddings=64, initializer_range=0.3,
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


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_words_of_other_tokenizers(tmp_path: Path, kind: str) -> None:
    """Their tokens hold the space before a word, or are one, and bytes of a character are tokens."""
    (tmp_path / "text.txt").write_text("the quick fox jumps unbelievably (zwei), 漢字!\n" * 3, encoding="utf-8")
    tokenizer = TRAINERS[kind](tmp_path / "text.txt", tmp_path, vocab_size=300)
    config = transformers.ElectraConfig(
        vocab_size=len(tokenizer), embedding_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    transformers.ElectraForPreTraining(config).save_pretrained(tmp_path)
    text = "The  quick fox, unbelievably (zwei) 漢字 é !"
    words = ["The", "quick", "fox", ",", "unbelievably", "(", "zwei", ")", "漢字", "é", "!"]
    (item,) = inspect_text(tmp_path, [text])
    assert [word for word, _ in item.words()] == words
    assert item.tokens == tokenizer.tokenize(text)
    assert [p for _, of_word in item.words() for p in of_word] == item.probabilities
    rows = _printed([item], width=300, color_system=None).splitlines()
    assert rows[0].split() == words
    assert len(rows[1].split()) == len(words)
    page = _Page(to_html([item], model="run"))
    assert page.texts == [text]
    assert len(page.words) == len(words)
    long = inspect_text(tmp_path, [text * 20])[0]  # in parts
    assert len(long.cuts) > 1
    assert "".join(word for word, _ in long.words()) == "".join(words) * 20


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


def test_damaged_weights_are_named(run: Path, tmp_path: Path) -> None:
    for file in (run / "discriminator").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="can't read the model in"):
        inspect_text(tmp_path, ["hi"])


def test_text_that_is_not_unicode_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="not UTF-8"):
        inspect_text(run, ["the \udcff fox"])


def _longest_part(item: InspectedText) -> int:
    starts = [0, *(next(i for i, (a, _) in enumerate(item.offsets) if a == cut) for cut in item.cuts)]
    return max(b - a for a, b in zip(starts, [*starts[1:], len(item.tokens)], strict=True))


def test_long_texts_are_read_in_parts_that_fit(run: Path) -> None:
    fits, one_more = inspect_text(
        run, [", " * 62, ", " * 63]
    )  # the position table has 64 rows, two for [CLS] and [SEP]
    assert fits.cuts == ()
    assert one_more.cuts == (64,)  # 32 and 31 tokens of two characters, not 62 and 1
    sentence, word, chinese = inspect_text(
        run, ["The quick fox jumps! " * 30, "the fox unbelievably " * 40, "日本" * 100 + "x" * 300]
    )
    assert all(sentence.text[:cut].endswith("! ") for cut in sentence.cuts)
    assert all(word.text[cut - 1] == " " for cut in word.cuts)
    for item in (sentence, word, chinese):
        assert item.cuts
        assert _longest_part(item) <= 62


def test_each_part_is_what_the_model_says_of_it_alone(run: Path, rng_seed: int) -> None:
    g = np.random.default_rng(rng_seed)
    words = np.array(["the", "Quick", "fox,", "unbelievably", "jumps!", "wörter", "日本。", "[fett]"])
    for text in (" ".join(g.choice(words, g.integers(20, 200))) for _ in range(5)):
        (item,) = inspect_text(run, [text])
        bounds = [0, *item.cuts, len(text)]
        alone = inspect_text(run, [text[a:b] for a, b in pairwise(bounds)])
        assert [token for part in alone for token in part.tokens] == item.tokens
        np.testing.assert_allclose([p for part in alone for p in part.probabilities], item.probabilities, rtol=1e-5)
        assert not any(part.cuts for part in alone)
        shown = _printed([item], width=200)
        assert ("were read in parts" in shown) == bool(item.cuts)
        colored = _printed([item], force_terminal=True, color_system="truecolor", width=10**5, no_color=False)
        line = re.sub(r"\x1b\[[0-9;]*m", "", colored.splitlines()[0])
        assert line == "| ".join(text[a:b] for a, b in pairwise(bounds))


def test_terminal_commands_in_a_text_are_only_shown(run: Path) -> None:
    text = "the\x1b[2J fox\x07\r jumps\x9b1m"
    inspected = inspect_text(run, [text])
    assert inspected[0].text == text
    assert len(printable(text)) == len(text)
    for colors in ("truecolor", None):
        shown = _printed(inspected, force_terminal=True, color_system=colors, width=200, no_color=False)
        assert not re.search(r"[\x00-\x09\x0b-\x1a\x1c-\x1f\x7f-\x9f]|\x1b(?!\[[0-9;]*m)", shown)
    colored = _printed(inspected, force_terminal=True, color_system="truecolor", width=200, no_color=False)
    assert "the\u241b[2J fox\u2407\u240d jumps\ufffd1m\n" in re.sub(r"\x1b\[[0-9;]*m", "", colored)


def _luminance(color: str) -> float:
    """Relative luminance as in WCAG 2.2."""
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float(
        np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    )


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_shades_are_readable_ordered_and_cover_all_probabilities() -> None:
    assert [shade_index(p) for p in (0.0, 0.0199, 0.02, 0.5, 0.75, 1.0)] == [0, 0, 1, 10, 11, 11]
    percents = [shade.percent for shade in SHADES]
    assert percents == sorted(set(percents))
    for shade in SHADES[1:]:
        assert _contrast(shade.true_color, "#000000") >= 4.5
    light, dark = (to_html([], model="").partition("@media screen")[i] for i in (0, 2))
    for style, page in ((light, "light"), (dark, "dark")):
        rules = re.findall(r"\.s(\d+)\{background:(#\w{6});color:(#\w{6})", style)
        assert [(int(i), color) for i, color, _ in rules] == [(i, getattr(s, page)) for i, s in enumerate(SHADES) if i]
        assert min(_contrast(background, text) for _, background, text in rules) >= 4.5
        variables = dict(re.findall(r"--(\w+):(#\w{6})", style))
        assert min(_contrast(variables["page"], variables[name]) for name in ("text", "soft")) >= 4.5
        levels = [_luminance(background) for _, background, _ in rules]
        assert levels == sorted(levels, reverse=page == "light")  # told apart without hue, too


def test_figures_are_neither_0_nor_100_by_rounding() -> None:
    shown = {0.0: "<0.1%", 0.0009: "<0.1%", 0.001: "0.1%", 0.034: "3.4%", 0.5: "50.0%", 0.9989: "99.9%", 1.0: ">99.9%"}
    assert {p: percent(p) for p in shown} == shown


class _Page(HTMLParser):
    """What a page holds: its texts as typed, each word's pieces and figures, tab stops, and attributes that load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.words: list[tuple[list[tuple[str, str]], str]] = []  # ([(classes, piece)], figures)
        self.tabindex: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self._open: list[tuple[str, str]] = []
        self._main = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.tags.add(tag)
        self.loads += [name for name in ("src", "href", "srcset", "data", "action") if name in given]
        classes = given.get("class") or ""
        if tag == "main":
            self._main = True
        elif self._main and tag == "p":
            self.texts.append("")
        elif self._main and classes == "w":
            self.words.append(([], ""))
            self.tabindex.append(given["tabindex"])
        if tag not in ("meta", "input"):
            self._open.append((tag, classes))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag
        self._main = self._main and tag != "main"

    def handle_data(self, data: str) -> None:
        if not self._main or self._open[-1][0] == "main":
            return
        if any(tag == "i" for tag, _ in self._open):
            pieces, figures = self.words[-1]
            self.words[-1] = (pieces, figures + data)
        elif self._open[-1][1] != "cut":
            self.texts[-1] += data
            if self._open[-1][1].startswith("s"):
                self.words[-1][0].append((self._open[-1][1], data))


HOSTILE = (
    "<script>alert(1)</script> the & fox &amp; \"quick\" 'jumps' <b>unbelievably</b> </p></main>",
    "the\x00fox\x1b[31m <!-- zwei -->\tjumps",
    "",
)


def test_page_shows_every_text_as_typed_and_every_probability(run: Path) -> None:
    inspected = inspect_text(run, [*TEXTS, *HOSTILE, "the fox unbelievably. " * 60])
    page = _Page(to_html(inspected, model='<i>"run"</i>'))
    assert page.texts == [printable(item.text) for item in inspected]
    words = [
        (item.tokens[first:last], item.probabilities[first:last])
        for item in inspected
        for first, last in item.word_spans()
    ]
    assert len(page.words) == len(words)
    for (pieces, figures), (tokens, probabilities) in zip(page.words, words, strict=True):
        assert [classes for classes, _ in pieces] == [
            f"s{shade_index(p)}" + (" r" if p >= 0.5 else "") for p in probabilities
        ]
        assert re.findall(r"[<>]?[\d.]+%", figures) == [percent(p) for p in probabilities]
        if len(tokens) > 1:
            assert [name for name in figures.split() if "%" not in name] == [piece for _, piece in pieces]
    assert page.tabindex.count("0") == sum(bool(item.tokens) for item in inspected)
    marked = to_html(inspected, model="")
    assert inspected[-1].cuts
    assert marked.count('</span> <span class="cut">| </span><span class="w"') == sum(len(i.cuts) for i in inspected)
    assert "were read in parts" in marked
    assert "were read in parts" not in to_html(inspected[: len(TEXTS)], model="")


def test_page_loads_nothing_and_runs_only_its_own_script(run: Path) -> None:
    content = to_html(inspect_text(run, HOSTILE), model="</title><script>alert(2)</script>")
    page = _Page(content)
    assert page.loads == []
    assert not page.tags & {"img", "link", "iframe", "object", "embed", "base", "form"}
    assert "url(" not in content
    assert "@import" not in content
    assert "//" not in re.sub(r"sha256-[^']*", "", content.replace("</", ""))
    (script,) = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", content, re.DOTALL)
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', content)
    allowed = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script)]
    assert policy == f"default-src 'none'; style-src 'sha256-{allowed[0]}'; script-src 'sha256-{allowed[1]}'"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", content)


def test_a_file_becomes_a_page_and_an_existing_page_is_kept(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, page = tmp_path / "mein Text ä.txt", tmp_path / "Seite ä.html"
    text.write_bytes("\ufeffthe quick fox\r\n\r\n\r\njumps\nzwei wörter".encode())
    arguments = ["inspect", str(run), "--file", str(text), "--html", str(page)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{page}: a page of 3 texts; open it in a browser\n"
    assert _Page(page.read_text(encoding="utf-8")).texts == ["the quick fox", "jumps", "zwei wörter"]
    page.write_text("mine")
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert page.read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert len(_Page(page.read_text(encoding="utf-8")).texts) == 3
    capsys.readouterr()
    assert main(["inspect", str(run), "--file", str(text)]) == 0
    assert [row.split() for row in capsys.readouterr().out.splitlines()[0::2]] == [
        ["the", "quick", "fox"],
        ["jumps"],
        ["zwei", "wörter"],
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([text.name, page.name])


MISTAKES = {
    "nothing to look at": ([], "give what to look at"),
    "sentence and file": (["hi", "--file", "good.txt"], "give what to look at"),
    "file not there": (["--file", "none.txt"], "none.txt is not there"),
    "empty file": (["--file", "empty.txt"], "empty.txt holds no text"),
    "file not UTF-8": (["--file", "latin1.txt"], "latin1.txt, line 2: byte 0xf6 at offset 7"),
    "page is a folder": (["hi", "--html", "."], "is no file"),
    "page in no folder": (["hi", "--html", "none/page.html"], "none is no folder"),
    "page is there": (["hi", "--html", "good.txt"], "good.txt exists"),
    "page is the text": (["--file", "good.txt", "--html", "./good.txt", "--overwrite"], "replace the text in good.txt"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_and_nothing_is_written(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    Path("good.txt").write_text("the fox")
    Path("empty.txt").write_text("\n \n")
    Path("latin1.txt").write_bytes("gut\nschön\n".encode("latin-1"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["inspect", str(run), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert expected in captured.err
    assert captured.err.count("\n") <= 5
    assert captured.out == ""
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_the_old_page(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_html(inspect_text(run, ["the fox"]), page, model="run", overwrite=True)
    assert error.value.filename == str(page)
    assert page.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_paragraphs_are_lines(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"a": 1}\n  \n two \n', encoding="utf-8")
    assert read_paragraphs(tmp_path / "text.jsonl") == ['{"a": 1}', " two "]
