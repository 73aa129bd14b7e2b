"""The page of `electra-fast explain --html`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from electra_fast.explanation.colors import TONES, tone_index
from electra_fast.explanation.explain import Explanation, Word
from electra_fast.explanation.text import headline, strongest, texts_of
from electra_fast.inspection_shades import printable
from electra_fast.page import DARK_TEXT, LIGHT_TEXT, color_rule, count, to_page

_HOW = """<p class="how">Blue words speak for the label, orange ones against it. The stronger the colour, the more a
word adds, as a share of the strongest word of its text. For a word's own figure point at it, tap it, or go there
with the Tab and arrow keys. Figures are integrated gradients: together they make the difference to a text without
words.</p>
"""


def to_html(explanations: Sequence[Explanation], *, model: str) -> str:
    """A page of explanations; `model` is the name in its heading."""
    name = printable(model)
    shares = [f"{tone.share:.0%}" for tone in TONES]
    against = [f'<li class="a{i}">{shares[i]}</li>' for i in reversed(range(1, len(TONES)))]
    towards = [f'<li class="f{i}">{shares[i]}</li>' for i in range(1, len(TONES))]
    return to_page(
        title=f"{name}: why?",
        heading="Why did it decide so?",
        about=f"The classifier <b>{escape(name)}</b>: {count(len(explanations), 'text')}.",
        legend_title="Shades, each with the share of the strongest word from which it is used",
        legend="".join([*against, "<li>0%</li>", *towards]),
        how=_HOW,
        body="\n".join(_texts(explanations)),
        rules=_rules(dark=False),
        dark=_rules(dark=True),
    )


def _texts(explanations: Sequence[Explanation]) -> Iterator[str]:
    for item in explanations:
        yield f'<p class="how">{escape(printable(headline(item)))}</p>'
        for text, words in texts_of(item):
            yield f'<p dir="auto">{"".join(_words(text, words, strongest(item)))}</p>'


def _words(text: str, words: Sequence[Word], most: float) -> Iterator[str]:
    shown, position = printable(text), 0
    for index, word in enumerate(words):
        yield escape(shown[position : word.start])
        position = word.end
        kind = f"{'f' if word.attribution > 0 else 'a'}{tone_index(word.attribution, most)}"
        piece = f'<span class="{kind}">{escape(shown[word.start : word.end])}</span>'
        yield f'<span class="w" tabindex="{-1 if index else 0}">{piece}<i> {word.attribution:+.3f}</i></span>'
    yield escape(shown[position:])


def _rules(*, dark: bool) -> str:
    text = DARK_TEXT if dark else LIGHT_TEXT
    colors = [(tone.for_dark, tone.against_dark) if dark else (tone.for_light, tone.against_light) for tone in TONES]
    return "".join(
        color_rule(f".f{index}", towards, text) + color_rule(f".a{index}", against, text)
        for index, (towards, against) in enumerate(colors)
        if towards
    )
