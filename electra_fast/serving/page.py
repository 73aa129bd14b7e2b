"""The page at /: to try a model by hand, with eyes, keyboard or screen reader, without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from electra_fast import __version__
from electra_fast.finetuning.task import Task
from electra_fast.inspection_shades import SHADES
from electra_fast.page import DARK_TEXT, LIGHT_TEXT, color_rule
from electra_fast.serving.page_script import SCRIPT
from electra_fast.serving.page_style import DARK, STYLE

if TYPE_CHECKING:
    from electra_fast.serving.services import Service


class Page(NamedTuple):
    """A page and what its reply's head says."""

    html: str
    headers: dict[str, str]


class Field(NamedTuple):
    """A field of the form: it fills `key` of an example; `kind` is text, lines (a list), or json (the example).

    An optional one is left out of the example where nothing is in it.
    """

    key: str
    label: str
    kind: str = "text"
    optional: bool = False


def page_of(services: Sequence[Service], *, name: str) -> Page:
    """The page for a model and what it can be asked."""
    forms = "\n".join(_form(service) for service in services)
    style = f"{STYLE}{_shades()}\n@media (prefers-color-scheme:dark){{{DARK}{_shades(dark=True)}}}\n"
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(SCRIPT)}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    html = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(name)}: try it</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<h1>{escape(name)}</h1>
<p class="about">Served by electra-fast {__version__}. <a href="health">State</a>, <a href="metrics">figures</a>,
<a href="openapi.json">description for programs</a>.</p>
<noscript><p class="error">This page needs JavaScript; the service itself does not.</p></noscript>
{forms}
<script>{SCRIPT}</script>
</body>
</html>
"""
    return Page(html, {"content-security-policy": policy, "referrer-policy": "no-referrer"})


def _form(service: Service) -> str:
    fields = _fields(service)
    about = {"route": service.route, "asks": service.asks, "answers": service.answers}
    about["fields"] = [field._asdict() for field in fields]
    inputs = "\n".join(
        f'<label for="{service.route}-{number}">{escape(field.label)}</label>\n'
        f'<textarea id="{service.route}-{number}" name="{escape(field.key)}" rows="{_rows(field)}" dir="auto" '
        f'spellcheck="false"{"" if field.optional else " required"}></textarea>'
        for number, field in enumerate(fields)
    )
    return f"""<section aria-labelledby="{service.route}-title">
<h2 id="{service.route}-title">{service.route.capitalize()}</h2>
<p class="about">{escape(service.about)}</p>
<form data-about="{escape(json.dumps(about))}">
{inputs}
<p class="do"><button>Ask the model</button> <kbd>Ctrl</kbd> + <kbd>Enter</kbd></p>
</form>
<div class="reply" role="status" aria-live="polite"></div>
<details hidden><summary>The reply as JSON</summary><pre tabindex="0"></pre></details>
</section>"""


def _rows(field: Field) -> int:
    return 6 if field.key in ("context", "json") else 3


def _fields(service: Service) -> list[Field]:
    """What the form asks for; of a task that is not known here the example as JSON."""
    if service.asks == "texts":
        return [Field("text", "Text")]
    task = service.task  # type: ignore[attr-defined]
    known = _fields_of(task)
    return known or [Field("json", "The example, a JSON object", "json")]


def _fields_of(task: Task) -> list[Field]:
    from electra_fast.finetuning.tasks import choice, classification, events, glue, qa, regression, seq2seq, tagging

    options: Any = task
    if isinstance(task, (classification.Classification, regression.Regression)):
        pair = [] if options.text_pair is None else [Field(options.text_pair, "Second text")]
        return [Field(options.text, "Text"), *pair]
    if isinstance(task, glue.Glue):
        return [Field(column, column.capitalize()) for column in options.texts]
    if isinstance(task, (tagging.Tagging, events.Events)):
        return [Field("text", "Text")]
    if isinstance(task, qa.QuestionAnswering):
        return [Field("question", "Question"), Field("context", "Text that holds the answer")]
    if isinstance(task, choice.Choice):
        return [
            Field(options.question, "Question"),
            Field(options.context, "Context, if there is one", optional=True),
            Field(options.choices, "Choices, one a line", "lines"),
        ]
    if isinstance(task, seq2seq.Seq2Seq):
        return [Field(options.source, "Text")]
    return []


def _shades(*, dark: bool = False) -> str:
    """Rules of the classes s0, s1, ... : backgrounds for the probability that a token was replaced."""
    text = DARK_TEXT if dark else LIGHT_TEXT
    backgrounds = [shade.dark if dark else shade.light for shade in SHADES]
    return "".join(color_rule(f".s{i}", color, text) for i, color in enumerate(backgrounds) if color)


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
