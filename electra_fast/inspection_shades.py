"""The colours of `electra-fast inspect`: shades for the probability that a token was replaced, and how to write it."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

VERDICT = 0.5  # from here on the model says "replaced", as in the paper; shown by an underline, with and without colour


class Shade(NamedTuple):
    """The backgrounds for the probabilities from `percent` up to the next shade's. Empty: none.

    Args:
        percent: the lowest probability, in per cent.
        light: under dark text on a light page.
        dark: under light text on a dark page.
        true_color: under black text on a terminal, light or dark: about equally bright, more colourful with `percent`.
        indexed: the same out of the 256 colours.
        basic: the same out of the 16 colours; bright ones, as black on plain red can't be read.
    """

    percent: int
    light: str
    dark: str
    true_color: str
    indexed: str
    basic: str


# Finest around 15%, the share of tokens that pretraining masks: a small model gives every token about that and differs
# by a factor, seldom reaching 50%. Hues are interpolated in OKLab: neighbouring shades look equally far apart.
SHADES = (
    Shade(0, "", "", "", "", ""),
    Shade(2, "#fdf8e3", "#26241f", "#a9a9a4", "color(145)", ""),
    Shade(4, "#fdf3cd", "#332d1d", "#b2ad92", "color(144)", ""),
    Shade(7, "#fdedb6", "#40361a", "#bcb07d", "color(143)", "bright_cyan"),
    Shade(10, "#fde79e", "#4e4013", "#c6b365", "color(179)", "bright_cyan"),
    Shade(13, "#fedb8a", "#5f450f", "#d1b055", "color(178)", "bright_cyan"),
    Shade(16, "#fecd77", "#70470e", "#ddab48", "color(214)", "bright_yellow"),
    Shade(20, "#febe63", "#81490d", "#e9a43a", "color(208)", "bright_yellow"),
    Shade(25, "#fcab52", "#92490f", "#f19930", "color(202)", "bright_red"),
    Shade(35, "#f99048", "#a04417", "#f18336", "color(196)", "bright_red"),
    Shade(50, "#f4743f", "#af3d1d", "#f16b3a", "color(196)", "bright_red"),
    Shade(75, "#ee5436", "#bd3423", "#f0503c", "color(196)", "bright_red"),
)
_BOUNDS = [shade.percent / 100 for shade in SHADES]

# A text file may hold terminal commands: control characters are shown by their pictures, one for one.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def shade_index(probability: float) -> int:
    """Index into `SHADES` of a probability in [0, 1]."""
    return bisect_right(_BOUNDS, probability) - 1


def percent(probability: float) -> str:
    """With one decimal, and neither 0 nor 100 where that is only rounding: "<0.1%", "3.4%", ">99.9%"."""
    if probability < 0.001:
        return "<0.1%"
    if probability > 0.999:
        return ">99.9%"
    return f"{100 * probability:.1f}%"


def printable(text: str) -> str:
    """`text` with pictures for its control characters (tab and newline stay), of the same length."""
    return text.translate(_PICTURES)
