"""Explanations on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from electra_fast.explanation.colors import TONES, tone_index
from electra_fast.explanation.explain import Explanation, Word
from electra_fast.inspection_shades import percent, printable

if TYPE_CHECKING:
    from rich.console import Console

STRONGEST = 8  # words that are listed where there is no colour


def headline(item: Explanation) -> str:
    """What the model said, and how the words come to it."""
    total = item.score - item.baseline
    said = f"value {item.score:.3f}" if item.probability is None else f"{item.label} {percent(item.probability)}"
    unit = "" if item.probability is None else " nats"
    cut = "; the end of the text was cut" if item.is_cut else ""
    return f"{said}: without words {item.baseline:+.2f}, the words {total:+.2f}, together {item.score:+.2f}{unit}{cut}"


def texts_of(item: Explanation) -> Iterator[tuple[str, list[Word]]]:
    """Each text with its words."""
    yield item.text, [word for word in item.words if not word.pair]
    if item.text_pair is not None:
        yield item.text_pair, [word for word in item.words if word.pair]


def strongest(item: Explanation) -> float:
    """The largest attribution by size, 0 for a text without words."""
    return max((abs(word.attribution) for word in item.words), default=0.0)


def render(explanations: Sequence[Explanation], *, console: Console | None = None) -> None:
    """Print what the model said and each text with its words coloured; without colour the strongest words, signed."""
    from rich.console import Console

    console = console or Console(highlight=False)
    colored = console.color_system is not None and not console.no_color
    for item in explanations:
        console.print(headline(item), style="bold" if colored else None, markup=False, soft_wrap=True)
        for text, words in texts_of(item):
            if colored:
                _print_colored(text, words, strongest(item), console)
            else:
                console.print(printable(text), markup=False, soft_wrap=True)
        if not colored:
            _print_strongest(item, console)
        if not _is_complete(item):
            console.print(f"Attributions are off by {item.error:+.3g} in all.", style="dim", markup=False)
    if colored:
        console.print("Blue speaks for the label, orange against it; the stronger, the more.", style="dim")


def _is_complete(item: Explanation) -> bool:
    return abs(item.error) <= 0.01 * abs(item.score - item.baseline)


def _print_colored(text: str, words: Sequence[Word], most: float, console: Console) -> None:
    from rich.text import Text

    line = Text(printable(text))
    for word in words:
        tone = TONES[tone_index(word.attribution, most)]
        background = tone.for_terminal if word.attribution > 0 else tone.against_terminal
        if background:
            line.stylize(f"color(16) on {background}", word.start, word.end)
    console.print(line)


def _print_strongest(item: Explanation, console: Console) -> None:
    ordered = sorted(item.words, key=lambda word: -abs(word.attribution))[:STRONGEST]
    for word in ordered:
        text = item.text_pair if word.pair else item.text
        console.print(f"  {word.attribution:+.3f}  {printable(text[word.start : word.end])}", markup=False)
