"""`electra-fast inspect`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from electra_fast.arguments import ArgumentParser, UsageError
from electra_fast.commands import Command, command_parser

SUMMARY = "Colour each token by the probability that it was replaced"


def _parser() -> ArgumentParser:
    parser = command_parser(
        "inspect",
        SUMMARY,
        'MODEL ["SENTENCE" ... | --file FILE] [--html FILE] [--overwrite]',
        'runs/demo "This function returns a list of because."',
        "runs/demo --file letter.txt --html letter.html",
        more="\n\nTexts longer than the model takes are read in parts, cut between sentences or words.",
    )
    parser.add_argument("model", type=str, metavar="MODEL", help="a discriminator's folder, or a run that holds one")
    parser.add_argument("texts", type=str, nargs="*", metavar="SENTENCE", help="text to look at, in quotes")
    parser.add_argument("--file", type=str, metavar="FILE", help="UTF-8 text to look at, a paragraph a line")
    parser.add_argument("--html", type=str, metavar="FILE", help="write a page for the browser instead of printing")
    parser.add_argument("--overwrite", action="store_true", help="replace the page if there is one")
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.inspection import inspect_text, read_paragraphs, render
    from electra_fast.inspection_html import write_html
    from electra_fast.page import check_target

    if bool(args.texts) == (args.file is not None):
        raise UsageError("give what to look at: sentences in quotes after MODEL, or --file with a text file")
    page = None if args.html is None else Path(args.html)
    if page is not None:
        check_target(page, overwrite=args.overwrite)
        if args.file is not None and page.resolve() == Path(args.file).resolve():
            raise UsageError(f"--html would replace the text in {args.file}: name another file for the page")
    texts = args.texts if args.file is None else read_paragraphs(args.file)
    inspected = inspect_text(Path(args.model), texts, show_progress=len(texts) > 1 and sys.stderr.isatty())
    if page is None:
        render(inspected)
        return 0
    write_html(inspected, page, model=Path(args.model).resolve().name, overwrite=args.overwrite)
    print(f"{page}: a page of {len(inspected):,} {'text' if len(inspected) == 1 else 'texts'}; open it in a browser")
    return 0


COMMAND = Command(SUMMARY, _parser, _run)
