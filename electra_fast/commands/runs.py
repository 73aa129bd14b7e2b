"""`electra-fast runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from electra_fast.arguments import ArgumentParser, UsageError
from electra_fast.commands import Command, command_parser

SUMMARY = "Compare runs on one picture and in a table, or list them"


def _parser() -> ArgumentParser:
    parser = command_parser(
        "runs",
        SUMMARY,
        "compare RUN RUN ... [--png FILE] [--overwrite] | list FOLDER",
        "compare runs/small runs/small_lr1e-3 --png curves.png",
        "list runs",
        more="\n\ncompare prints the last held-out metrics and the settings that differ, and draws the curves on one\n"
        "picture; list prints a line for each run in a folder. Runs may be unfinished.",
    )
    parser.add_argument("action", type=str, choices=["compare", "list"], metavar="{compare,list}", help="what to do")
    parser.add_argument("folders", type=str, nargs="+", metavar="FOLDER", help="of runs; for list, one that holds runs")
    parser.add_argument("--png", type=str, default="compare.png", metavar="FILE", help="the picture of compare")
    parser.add_argument("--overwrite", action="store_true", help="replace the picture if there is one")
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.pretraining.comparison import compare_runs, list_runs

    folders = [Path(folder) for folder in args.folders]
    if args.action == "list":
        if len(folders) != 1:
            raise UsageError(
                "runs list takes one folder that holds runs; to see several beside each other: runs compare"
            )
        list_runs(folders[0])
        return 0
    if len(folders) < 2:
        raise UsageError("runs compare takes two runs or more; for one: its curves.png, or runs list")
    compare_runs(folders, Path(args.png), overwrite=args.overwrite)
    print(f"Curves: {args.png}")
    return 0


COMMAND = Command(SUMMARY, _parser, _run)
