"""`electra-fast info`."""

from __future__ import annotations

from typing import Any

from electra_fast.arguments import ArgumentParser
from electra_fast.commands import Command, command_parser

SUMMARY = "Show versions, devices, and which backend each operator and attention use"


def _parser() -> ArgumentParser:
    parser = command_parser("info", SUMMARY, "[--json]", "")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


def _run(args: Any, _: list[str]) -> int:
    from electra_fast.info import collect, render

    render(collect(), as_json=args.json)
    return 0


COMMAND = Command(SUMMARY, _parser, _run)
