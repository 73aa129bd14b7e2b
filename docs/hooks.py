"""MkDocs hook: fills in what pages take from the program itself, each time the site is built.

A line `<!-- commands -->` becomes the commands with their options, `<!-- settings -->` the settings of `pretrain`, and
`<!-- recipes -->` what the recipes that come with the package set.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from electra_fast.arguments import ArgumentParser
from electra_fast.cli import COMMANDS
from electra_fast.pretraining.config import PhaseConfig, recipe_names
from electra_fast.pretraining.config_file import read_config


def on_config(config: Any) -> Any:
    """Called by MkDocs when its plugins are there: the search cuts Chinese with jieba where that is installed."""
    logging.getLogger("jieba").setLevel(logging.WARNING)  # else it tells on every build how long its dictionary took
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for each page."""
    for name, make in (("commands", commands), ("settings", settings), ("recipes", recipes)):
        marker = f"<!-- {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return markdown


def commands() -> str:
    """A section for each command: what it does, usage, arguments, examples."""
    return "\n\n".join(_command(name) for name in COMMANDS)


def settings() -> str:
    """A table for each section of a config file."""
    parser = COMMANDS["pretrain"].parser()
    tables = [
        f"### {group.title}\n\n{_table(parser, actions)}"
        for group in parser._action_groups
        if (actions := [action for action in _shown(group._group_actions) if _is_setting(action)])
    ]
    phase = ArgumentParser()
    phase.add_config(PhaseConfig)
    keys = [action for group in phase._action_groups for action in _shown(group._group_actions)]
    return "\n\n".join([*tables, f"### schedule: keys of a phase\n\n{_table(phase, keys)}"]).replace("| `--", "| `")


def recipes() -> str:
    """One column for each recipe, one row for each setting in which two of them differ."""
    names = [name for name in recipe_names() if name != "continue"]  # whose sizes are those of a checkpoint
    order = sorted(names, key=lambda name: read_config(name).model.hidden_size * 100 + len(name))
    columns = [dict(_leaves(asdict(read_config(name)))) for name in order]
    rows = [key for key in columns[0] if key != "output" and len({str(column[key]) for column in columns}) > 1]
    lines = [f"| setting | {' | '.join(f'`{name}`' for name in order)} |", "|---" * (len(order) + 1) + "|"]
    lines += [f"| `{key}` | {' | '.join(_figure(column[key]) for column in columns)} |" for key in rows]
    return "\n".join(lines)


def _command(name: str) -> str:
    parser = COMMANDS[name].parser()
    parts = [f"## {name}", _prose(parser.description), f"```text\n{parser.usage}\n```"]
    shown = [action for action in _shown(parser._actions) if not _is_setting(action)]
    parts.append(_table(parser, sorted(shown, key=lambda action: bool(action.option_strings))))
    if name in ("estimate", "pretrain"):
        parts.append("Every setting of [the recipe](recipe.md#every-setting) is an option too.")
    if parser.epilog:
        title, *lines = parser.epilog.splitlines()
        examples = "\n".join(line.strip() for line in lines)
        parts.append(f"{title.capitalize()}\n\n```sh\n{examples}\n```")
    return "\n\n".join(parts)


def _prose(text: str) -> str:
    return text.replace("<", "&lt;").strip()


def _is_setting(action: argparse.Action) -> bool:
    return "." in action.dest


def _shown(actions: list[argparse.Action]) -> Iterator[argparse.Action]:
    return (a for a in actions if a.help is not argparse.SUPPRESS and a.dest != "help")


def _table(parser: ArgumentParser, actions: list[argparse.Action]) -> str:
    """In the words of the terminal's help, from the formatter that writes it."""
    formatter = parser._get_formatter()
    rows = ["| name | meaning |", "|---|---|"]
    for action in actions:
        value = action.metavar or formatter._get_default_metavar_for_optional(action)
        words = [*action.option_strings[-1:], *([] if action.nargs == 0 else [value])]
        name = " ".join(map(str, words)).removeprefix("--" if _is_setting(action) else "")
        meaning = " ".join(formatter._get_help_string(action).split())
        rows.append(f"| `{_cell(name)}` | {_prose(_cell(meaning))} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _figure(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return ", ".join(item.get("objective", str(item)) for item in value) or "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
