"""The page of `electra-fast inspect --html`: one file that loads nothing, for the eye, the keyboard and a reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from electra_fast.inspection import CUT_NOTE, InspectedText
from electra_fast.inspection_shades import SHADES, VERDICT, percent, printable, shade_index
from electra_fast.page import DARK_TEXT, LIGHT_TEXT, color_rule, count, to_page, write_page

_HOW = f"""<p class="how">The stronger the shade, the likelier that a token was replaced; each figure is where its
shade begins. Shades are finest around 15%, which a model that can't tell gives every token. Underlined from
{VERDICT:.0%}: the model says "replaced". For a word's own figures point at it, tap it, or go there with the Tab and
arrow keys.</p>
"""


def to_html(inspected: Sequence[InspectedText], *, model: str) -> str:
    """A page of `inspected` in light and dark that needs nothing from outside; `model` is the name in its heading."""
    name = printable(model)
    texts = count(len(inspected), "text")
    tokens = count(sum(len(item.tokens) for item in inspected), "token")
    cuts = f'<p class="how">{escape(CUT_NOTE)}</p>\n' if any(item.cuts for item in inspected) else ""
    return to_page(
        title=f"{name}: which words were replaced?",
        heading="Which words were replaced?",
        about=f"The answer of the discriminator <b>{escape(name)}</b>: {texts}, {tokens}.",
        legend_title="Shades, each with the probability from which it is used",
        legend="".join(f'<li class="{_classes(s.percent / 100)}">{s.percent}<b>%</b></li>' for s in SHADES),
        how=_HOW + cuts,
        body="\n".join(f'<p dir="auto">{"".join(_words(item))}</p>' for item in inspected),
        rules=_shade_rules(),
        dark=_shade_rules(dark=True),
    )


def write_html(inspected: Sequence[InspectedText], path: str | Path, *, model: str, overwrite: bool = False) -> None:
    """Write `to_html` into the file `path`; raises as `write_page` does."""
    write_page(to_html(inspected, model=model), Path(path), overwrite=overwrite)


def _words(item: InspectedText) -> Iterator[str]:
    """The text as typed, in markup; the keyboard's Tab stops at its first word, the arrow keys at all."""
    text, cuts, position = printable(item.text), set(item.cuts), 0
    for first, last in item.word_spans():
        start = item.offsets[first][0]
        yield escape(text[position:start])
        if start in cuts:
            yield '<span class="cut">| </span>'
        pieces, figures = [], []
        position = max(position, start)
        for (_, end), probability in zip(item.offsets[first:last], item.probabilities[first:last], strict=True):
            piece = escape(text[position:end])
            pieces.append(f'<span class="{_classes(probability)}">{piece}</span>')
            figures.append(f"<bdi>{piece}</bdi> {percent(probability)}" if last - first > 1 else percent(probability))
            position = max(position, end)
        stop = -1 if first else 0
        yield f'<span class="w" tabindex="{stop}">{"".join(pieces)}<i> {" ".join(figures)}</i></span>'
    yield escape(text[position:])


def _classes(probability: float) -> str:
    return f"s{shade_index(probability)}" + (" r" if probability >= VERDICT else "")


def _shade_rules(dark: bool = False) -> str:
    colors = [shade.dark if dark else shade.light for shade in SHADES]
    text = DARK_TEXT if dark else LIGHT_TEXT
    return "".join(color_rule(f".s{i}", color, text) for i, color in enumerate(colors) if color)
