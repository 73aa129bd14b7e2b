"""`electra-fast data`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from electra_fast.arguments import ArgumentParser, UsageError
from electra_fast.commands import Command, command_parser

SUMMARY = "Show what is in a prepared corpus"


def _parser() -> ArgumentParser:
    parser = command_parser(
        "data",
        SUMMARY,
        "stats FOLDER [--png FILE] [--overwrite] [--json]",
        "stats corpus",
        "stats corpus --png lengths.png",
        more="\n\nDocuments, tokens, unused entries of the vocabulary, the share of [UNK], lengths, and examples.",
    )
    parser.add_argument("action", type=str, choices=["stats"], metavar="stats", help="what to show: figures")
    parser.add_argument("folder", type=str, metavar="FOLDER", help="a prepared corpus, or its URL")
    parser.add_argument("--png", type=str, metavar="FILE", help="draw the documents' lengths")
    parser.add_argument("--overwrite", action="store_true", help="replace the picture if there is one")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.data.stats import corpus_stats, plot_lengths, render

    picture = None if args.png is None else Path(args.png)
    if picture is not None and (picture.suffix.lower() != ".png" or not picture.absolute().parent.is_dir()):
        raise UsageError(f"--png {picture}: name a file that ends in .png, in a folder that exists")
    if picture is not None and picture.exists() and not args.overwrite:
        raise UsageError(f"--png {picture} exists: name another file, or --overwrite to replace it")
    stats = corpus_stats(args.folder)
    if picture is not None:
        plot_lengths(args.folder, picture)
    if args.json:
        print(json.dumps(asdict(stats), indent=2, ensure_ascii=False))
        return 0
    render(stats)
    if picture is not None:
        print(f"\n{picture}: a picture of the lengths")
    return 0


COMMAND = Command(SUMMARY, _parser, _run)
