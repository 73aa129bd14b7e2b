"""Pages that load nothing: texts with coloured words, for the eye, the keyboard and a screen reader."""

from __future__ import annotations

import base64
import hashlib
import os
from html import escape
from pathlib import Path

LIGHT_TEXT, DARK_TEXT = "#1d1b18", "#eceae4"

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


def to_page(
    *, title: str, heading: str, about: str, legend_title: str, legend: str, how: str, body: str, rules: str, dark: str
) -> str:
    """An HTML page in light and dark that needs nothing from outside.

    Args:
        title, legend_title: plain text.
        heading, about: inner HTML of the heading and of the paragraph under it.
        legend: <li> elements.
        how: <p class="how"> elements under the legend.
        body: <p> elements, whose words are `<span class="w" tabindex="...">`, with an <i> of figures.
        rules, dark: CSS of the colours, on a light and on a dark page.
    """
    style = f"{_STYLE}{rules}\n@media screen and (prefers-color-scheme:dark){{{_DARK}{dark}}}\n"
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(_SCRIPT)}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<meta name="generator" content="electra-fast">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<h1>{heading}</h1>
<p class="about">{about}</p>
<ol class="legend" aria-label="{legend_title}">{legend}</ol>
{how}<input type="checkbox" id="figures"> <label for="figures">Show all figures</label>
<main lang="">
{body}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raises ValueError where `write_page` would refuse to write: worth knowing before the model is read."""
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise ValueError(f"{path} is no file: name the page to write, e.g. {path / 'page.html'}")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: choose another name for the page, or --overwrite to replace it")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder: make it, or choose another one for {path.name}")


def write_page(page: str, path: Path, *, overwrite: bool = False) -> None:
    """Write a page into the file `path`, whole or not at all.

    Raises:
        ValueError: `path` exists (without `overwrite`), is no file, or its folder is not there.
        OSError: it can't be written; it is as before.
    """
    check_target(path, overwrite=overwrite)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(page.encode())
        unfinished.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def color_rule(selector: str, background: str, text: str) -> str:
    """CSS of a coloured word, kept on paper and in high contrast too."""
    kept = "print-color-adjust:exact;forced-color-adjust:none"
    return f"{selector}{{background:{background};color:{text};{kept}}}"


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
