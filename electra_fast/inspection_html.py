"""The page of `electra-fast inspect --html`: one file that loads nothing, for the eye, the keyboard and a reader."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from electra_fast.inspection import CUT_NOTE, InspectedText
from electra_fast.inspection_shades import SHADES, VERDICT, percent, printable, shade_index

# A word's figures are an <i> in it: in sight on hover and focus, for a screen reader always, never in copied text.
_STYLE = """
:root{color-scheme:light dark;--page:#fffefb;--text:#1d1b18;--soft:#67635a;--line:#dedacf}
body{margin:0 auto;padding:2.5rem 1.25rem 5rem;max-width:44rem;background:var(--page);color:var(--text);
  font:1rem/1.5 system-ui,sans-serif;overflow-x:clip}
h1{margin:0;font-size:1.5rem;line-height:1.25}
.about{margin:.25rem 0 1.5rem;color:var(--soft)}
.legend{position:sticky;top:0;z-index:1;display:flex;margin:0;padding:.5rem 0;background:var(--page);list-style:none;
  font-size:.875rem;text-align:center}
.legend li{flex:1;padding:.15rem 0}
.legend b{font-weight:400}
.legend li:first-child{box-shadow:inset 0 0 0 1px var(--line)}
.how{margin:.25rem 0 1rem;color:var(--soft);font-size:.875rem}
label{font-size:.875rem}
main{margin-top:1.5rem;padding-top:1.5rem;border-top:1px solid var(--line)}
main p{margin:0 0 1rem;font-size:1.125rem;line-height:2;white-space:pre-wrap;overflow-wrap:break-word}
.w{position:relative;cursor:default}
.w:hover,.w:focus{outline:2px solid;outline-offset:3px;border-radius:1px;z-index:2}
.w span{padding:.18em 0}
.r{text-decoration:underline .12em;text-underline-offset:.2em}
.w i{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap;
  font:600 .875rem/1.4 system-ui,sans-serif;-webkit-user-select:none;user-select:none}
.w:hover i,.w:focus i{left:50%;bottom:calc(100% + .55rem);width:auto;height:auto;padding:.15rem .5rem;clip-path:none;
  transform:translateX(-50%);border:1px solid transparent;background:var(--text);color:var(--page);
  border-radius:.25rem;pointer-events:none}
.cut{color:var(--soft);-webkit-user-select:none;user-select:none}
#figures:checked~main i{position:static;margin-left:.2em;padding:0;border:0;transform:none;clip-path:none;
  background:none;color:var(--soft);font-weight:400;font-size:.75rem}
@media (max-width:46rem){.legend b{display:none}.w:hover i,.w:focus i{position:fixed;left:0;right:0;bottom:0;
  padding:.75rem;border-radius:0;transform:none;text-align:center;white-space:normal}}
@media print{.legend{position:static}}
"""
_DARK = ":root{--page:#17181a;--text:#eceae4;--soft:#a6a196;--line:#3d3b36}"

_SCRIPT = """
addEventListener("keydown", (event) => {
  const word = document.activeElement.closest(".w");
  if (!word || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "Escape") return word.blur();
  const words = [...document.querySelectorAll(".w")];
  const firsts = words.filter((other) => other.tabIndex === 0);
  const ahead = getComputedStyle(word).direction === "rtl" ? -1 : 1;
  const first = firsts.indexOf(word.parentElement.querySelector(".w"));
  const next = {
    ArrowRight: words[words.indexOf(word) + ahead],
    ArrowLeft: words[words.indexOf(word) - ahead],
    ArrowDown: firsts[first + 1],
    ArrowUp: firsts[first - 1],
  }[event.key];
  if (!next) return;
  event.preventDefault();
  next.focus();
});
"""


def to_html(inspected: Sequence[InspectedText], *, model: str) -> str:
    """A page of `inspected` in light and dark that needs nothing from outside; `model` is the name in its heading."""
    style = (
        _STYLE + _shade_rules() + f"\n@media screen and (prefers-color-scheme:dark){{{_DARK}{_shade_rules(True)}}}\n"
    )
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(_SCRIPT)}"
    name = escape(printable(model))
    texts = _count(len(inspected), "text")
    tokens = _count(sum(len(item.tokens) for item in inspected), "token")
    legend = "".join(f'<li class="{_classes(s.percent / 100)}">{s.percent}<b>%</b></li>' for s in SHADES)
    cuts = f'<p class="how">{escape(CUT_NOTE)}</p>\n' if any(item.cuts for item in inspected) else ""
    paragraphs = "\n".join(f'<p dir="auto">{"".join(_words(item))}</p>' for item in inspected)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<meta name="generator" content="electra-fast">
<title>{name}: which words were replaced?</title>
<style>{style}</style>
</head>
<body>
<h1>Which words were replaced?</h1>
<p class="about">The answer of the discriminator <b>{name}</b>: {texts}, {tokens}.</p>
<ol class="legend" aria-label="Shades, each with the probability from which it is used">{legend}</ol>
<p class="how">The stronger the shade, the likelier that a token was replaced; each figure is where its shade begins.
Shades are finest around 15%, which a model that can't tell gives every token. Underlined from {VERDICT:.0%}: the
model says "replaced". For a word's own figures point at it, tap it, or go there with the Tab and arrow keys.</p>
{cuts}<input type="checkbox" id="figures"> <label for="figures">Show all figures</label>
<main lang="">
{paragraphs}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raises ValueError where `write_html` would refuse to write: worth knowing before the model is read."""
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise ValueError(f"{path} is no file: name the page to write, e.g. {path / 'page.html'}")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: choose another name for the page, or --overwrite to replace it")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder: make it, or choose another one for {path.name}")


def write_html(inspected: Sequence[InspectedText], path: str | Path, *, model: str, overwrite: bool = False) -> None:
    """Write `to_html` into the file `path`, whole or not at all.

    Raises:
        ValueError: `path` exists (without `overwrite`), is no file, or its folder is not there.
        OSError: it can't be written; it is as before.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    page = to_html(inspected, model=model).encode()
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(page)
        unfinished.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


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
    kept = "print-color-adjust:exact;forced-color-adjust:none"  # on paper and in high contrast too
    text = "#eceae4" if dark else "#1d1b18"
    colors = [shade.dark if dark else shade.light for shade in SHADES]
    return "".join(f".s{i}{{background:{color};color:{text};{kept}}}" for i, color in enumerate(colors) if color)


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
