"""The page at /: that it loads nothing, and in a real browser that it asks the service and shows the reply."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from electra_fast.finetuning.task import TASKS, Example, Feature, Output, task_class
from electra_fast.serving.page import page_of
from electra_fast.serving.services import Predictions
from tests.serving.small import PATIENCE, Echo, Running, served

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Told(Predictions):
    """Answers of a task that a test writes down, for each text of an example."""

    def __init__(self, task: str, reply: Mapping[str, Any], **options: Any) -> None:
        self.task = task_class(task)(**options)
        self.about = self.task.title
        self.reply = reply

    def encode(self, examples: Sequence[Example]) -> list[Feature]:
        return [{"input_ids": [1], "example": number} for number, _ in enumerate(examples)]

    def infer(self, features: Sequence[Feature]) -> list[Output]:
        return [None for _ in features]

    def encode_again(self, *_: object) -> list[Feature]:
        return []

    def decode(self, examples: Sequence[Example], *_: object) -> list[Mapping[str, Any]]:
        return [self.reply for _ in examples]


def _browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser found: none of {', '.join(BROWSERS)}")
    return found


def _visit(running: Running, profile: Path, **fields: str) -> str:
    """What the page holds for its reader after it was asked, as HTML."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000", "--dump-dom"]
    url = f"http://{running.host}:{running.port}/?{urlencode(fields)}"
    command = [_browser(), *options, f"--user-data-dir={profile}", url]
    dom = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE).stdout
    (reply,) = re.findall(r'<div class="reply"[^>]*>(.*?)</div>', dom, re.DOTALL)
    assert reply, dom
    return reply


def _words(reply: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", reply))


SHOWN: dict[str, tuple[Told, dict[str, str], list[str]]] = {
    "classification": (
        Told(
            "classification",
            {"label": "<b>good</b>", "probabilities": {"<b>good</b>": 0.98765, "bad": 0.0001}},
            labels=["<b>good</b>", "bad"],
            text="review",
        ),
        {"review": "A <i>fine</i> film & more"},
        [
            '<p class="main" dir="auto">&lt;b&gt;good&lt;/b&gt;</p>',
            '<th scope="row" dir="auto">&lt;b&gt;good&lt;/b&gt;</th>',
            "98.8%",
            "&lt;0.1%",
        ],
    ),
    "tagging": (  # 😀 is two for JavaScript and one for us
        Told(
            "tagging",
            {
                "tokens": ["😀", "Ada", "é", "Rome"],
                "tags": ["O", "B-person", "O", "B-place"],
                "entities": [
                    {"type": "person", "start": 2, "end": 5, "text": "Ada"},
                    {"type": "place", "start": 8, "end": 12, "text": "Rome"},
                ],
            },
            labels=["O", "B-person", "I-person", "B-place", "I-place"],
        ),
        {"text": "😀 Ada é Rome"},
        [
            "2 entities.",
            '😀 <mark class="k0">Ada<small> person</small></mark> é <mark class="k1">Rome<small> place</small></mark>',
        ],
    ),
    "qa": (
        Told("qa", {"id": "1", "text": "Rome", "start": 5, "probability": 0.9, "n_best": []}),
        {"question": "Where?", "context": "😀 in Rome."},
        ['<p class="main" dir="auto">Rome</p>', '😀 in <mark class="k0">Rome</mark>.'],
    ),
    "choice": (
        Told("choice", {"label": 1, "choice": "a dog", "probabilities": [0.25, 0.75]}),
        {"question": "Which?", "choices": "a fox\n\na dog"},
        ['<p class="main" dir="auto">a dog</p>', "25.0%", "75.0%", 'class="best"'],
    ),
    "a task without a form": (
        Told("relation", {"label": "of", "probabilities": {"of": 1.0}}, labels=["of", "in"]),
        {"json": '{"text": "Ada of Rome", "head": [0, 3], "tail": [7, 11]}'},
        ['<p class="main" dir="auto">of</p>', "&gt;99.9%"],
    ),
    "an error": (
        Told("classification", {}, labels=["a", "b"]),
        {"text": "   "},
        ['<p class="error">example 1: text is empty</p>'],
    ),
}


_MORE = ("classification", "choice", "a task without a form")


@pytest.mark.parametrize("case", SHOWN)
def test_the_page_in_a_browser(case: str, tmp_path: Path) -> None:
    if case in _MORE and os.environ.get("ELECTRA_FAST_TEST_ALL") != "1":
        pytest.skip("one of the slower sweeps, a second or two: set ELECTRA_FAST_TEST_ALL=1")
    service, fields, wanted = SHOWN[case]
    with served([service]) as running:
        reply = _visit(running, tmp_path, **fields)
    for part in wanted:
        assert part in reply


def test_inspections_in_a_browser(tmp_path: Path) -> None:
    class Shades(Echo):
        route, answers = "inspect", "inspections"

        def decode(self, examples: Sequence[Example], *_: object) -> list[Mapping[str, Any]]:
            tokens = [("un", 0, 2, 0.01), ("##able", 2, 6, 0.12), ("😀", 7, 8, 0.9)]
            keys = ("token", "start", "end", "probability")
            return [
                {
                    "text": example["text"],
                    "tokens": [dict(zip(keys, token, strict=True)) for token in tokens],
                    "words": [[0, 2], [2, 3]],
                    "cuts": [7],
                }
                for example in examples
            ]

    with served([Shades()]) as running:
        reply = _visit(running, tmp_path, text="unable 😀!")
    assert "One token looks replaced, underlined." in reply
    assert '<span class="s0">un</span><span class="s4">able</span>' in reply
    assert '<span class="s11 r">😀</span>' in reply
    assert "unable 1.0% 12.0% | 😀 90.0% !" in " ".join(_words(reply.replace('</span><span class="s4">', "")).split())


def test_the_page_loads_nothing_and_names_its_fields() -> None:
    with served([Echo()]) as running:
        status, headers, page = running.ask("GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    text = page.decode()
    assert "<title>a &lt;model&gt;: try it</title>" in text
    assert re.findall(r'(?:src|href)="(?:https?:)?//', text) == []
    for name in re.findall(r'<textarea id="([^"]+)"', text):
        assert f'<label for="{name}">' in text


def test_every_task_has_a_form() -> None:
    labels = {"classification": ["a", "b"], "tagging": ["O", "B-x", "I-x"], "relation": ["a", "b"], "events": ["O"]}
    for name in TASKS:
        told = Told(name, {}, **({"labels": labels[name]} if name in labels else {}))
        page = page_of([told], name="model").html
        assert ("a JSON object" in page) == (name == "relation"), name
