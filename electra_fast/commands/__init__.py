"""The commands of `electra-fast`: each module holds one, its parser and what it runs, as `COMMAND`.

`electra_fast.cli` lists them. PyTorch and transformers are imported by the commands that compute, when they run: help
and mistakes are quick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from electra_fast.arguments import ArgumentParser

PROG = "electra-fast"


class Command(NamedTuple):
    """One command.

    Attributes:
        summary: its line in the list of commands.
        parser: makes its parser.
        run: runs it with (parsed, given) arguments and returns the exit code.
        defaults: whether the parsed arguments hold defaults; else only what was given.
        more_options: adds the options that depend on the given arguments to the parser, e.g. those of `--task NAME`.
    """

    summary: str
    parser: Callable[[], ArgumentParser]
    run: Callable[[Any, list[str]], int]
    defaults: bool = True
    more_options: Callable[[ArgumentParser, list[str]], None] | None = None


def command_parser(name: str, summary: str, usage: str, *examples: str, more: str = "") -> ArgumentParser:
    """A parser with a command's help: usage and examples without the program and its name, which come before."""
    return ArgumentParser(
        prog=f"{PROG} {name}",
        usage=f"{PROG} {name} {usage}",
        description=f"{summary}.{more}",
        examples=[f"{PROG} {name} {example}".rstrip() for example in examples],
    )
