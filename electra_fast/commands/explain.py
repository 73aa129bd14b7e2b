"""`electra-fast explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from electra_fast.arguments import ArgumentParser, UsageError
from electra_fast.commands import Command, command_parser

SUMMARY = "Colour each word by what it adds to a classifier's decision"


def _parser() -> ArgumentParser:
    parser = command_parser(
        "explain",
        SUMMARY,
        'MODEL ["TEXT" ... | --file FILE] [--pair TEXT] [--label NAME] [--html FILE]',
        'runs/sentiment "A charming and often affecting journey."',
        "runs/sentiment --file reviews.txt --label negative --html why.html",
        more="\n\nBy integrated gradients (Captum: pip install 'electra-fast[explain]'): what the words add, in nats\n"
        "of the label's log-odds, sums to the difference between the text and a text without words.",
    )
    parser.add_argument("model", type=str, metavar="MODEL", help="folder of a fine-tuned classifier, or of its run")
    parser.add_argument("texts", type=str, nargs="*", metavar="TEXT", help="to explain, in quotes")
    parser.add_argument("--file", type=str, metavar="FILE", help="UTF-8 text to explain, a text a line")
    parser.add_argument("--pair", type=str, metavar="TEXT", help="the second text, of a model for pairs")
    parser.add_argument("--label", type=str, metavar="NAME", help="of which to explain the score, if not the likeliest")
    parser.add_argument("--html", type=str, metavar="FILE", help="write a page for the browser instead of printing")
    parser.add_argument("--overwrite", action="store_true", help="replace the page if there is one")
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.page import check_target, count, write_page

    if bool(args.texts) == (args.file is not None):
        raise UsageError("give what to explain: texts in quotes after MODEL, or --file with a text file")
    page = None if args.html is None else Path(args.html)
    if page is not None:
        check_target(page, overwrite=args.overwrite)
    from electra_fast.explanation.explain import explain_texts
    from electra_fast.explanation.html import to_html
    from electra_fast.explanation.text import render
    from electra_fast.inspection import read_paragraphs

    texts = args.texts if args.file is None else read_paragraphs(args.file)
    explanations = explain_texts(args.model, texts, text_pair=args.pair, label=args.label)
    if page is None:
        render(explanations)
        return 0
    write_page(to_html(explanations, model=Path(args.model).resolve().name), page, overwrite=args.overwrite)
    print(f"{page}: a page of {count(len(explanations), 'text')}; open it in a browser")
    return 0


COMMAND = Command(SUMMARY, _parser, _run)
