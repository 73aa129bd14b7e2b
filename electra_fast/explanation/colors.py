"""The colours of `electra-fast explain`: blue for a label, orange against it, stronger with what a word adds."""

from __future__ import annotations

from typing import NamedTuple


class Tone(NamedTuple):
    """Backgrounds for a share of the strongest word's attribution, up to the next tone's; the first has none."""

    share: float  # from here on
    for_light: str
    for_dark: str
    against_light: str
    against_dark: str
    for_terminal: str
    against_terminal: str


# Blue and orange differ for colour-blind readers too; a sign stands beside the figure in any case.
TONES = (
    Tone(0.0, "", "", "", "", "", ""),
    Tone(0.1, "#e3eefb", "#1b2733", "#fdeedd", "#33261a", "color(153)", "color(223)"),
    Tone(0.3, "#bfdaf6", "#1d3a55", "#fad5a9", "#563716", "color(117)", "color(216)"),
    Tone(0.6, "#90c0ef", "#1f5079", "#f6b871", "#7c4a12", "color(75)", "color(208)"),
)


def tone_index(attribution: float, strongest: float) -> int:
    """Index into `TONES` of a word's attribution where the strongest of the text has `strongest`, above 0."""
    share = abs(attribution) / strongest if strongest > 0 else 0.0
    return max(index for index, tone in enumerate(TONES) if share >= tone.share)
