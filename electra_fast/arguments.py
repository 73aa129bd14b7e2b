"""The argument parser of the command line: jsonargparse with help one can read and errors in plain words."""

from __future__ import annotations

import argparse
import difflib
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import jsonargparse

_TYPE_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}
_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", int | None: "INT", float | None: "FLOAT", str | None: "TEXT"}


class UsageError(ValueError):
    """A mistake on the command line or in a config; the message says what was expected."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name most like `name`, else the empty string."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {match[0]}?" if match else ""


def shown(value: Any) -> str:
    """A value as a message quotes it: one line of at most 80 characters."""
    return reprlib.repr(value)[:80]


def type_words(kind: Any) -> str:
    """A scalar type or a union of them in a user's words, e.g. "a whole number or null"."""
    return " or ".join(_TYPE_WORDS[part.__name__] for part in get_args(kind) or (kind,))


def list_item(kind: Any) -> type | None:
    """The dataclass D of a type list[D]; None for any other type."""
    item = get_args(kind)[0] if get_origin(kind) is list else None
    return item if is_dataclass(item) else None


def list_fields(config: type, prefix: str = "") -> dict[str, type]:
    """The dotted names of fields of type list[dataclass], those of the dataclasses in it too, with the dataclass."""
    found: dict[str, type] = {}
    for name, kind in get_type_hints(config).items():
        if item := list_item(kind):
            found[prefix + name] = item
        elif is_dataclass(kind):
            found |= list_fields(kind, f"{prefix}{name}.")
    return found


class ArgumentParser(jsonargparse.ArgumentParser):
    """Options are spelled in full, as in a config file, with `_`; errors raise `UsageError` and print nothing.

    Args:
        examples: command lines shown at the end of the help.
        kwargs: of `jsonargparse.ArgumentParser`.
    """

    def __init__(self, *, examples: Sequence[str] = (), **kwargs: Any) -> None:
        epilog = "\n".join(["examples:" if len(examples) > 1 else "example:", *(f"  {line}" for line in examples)])
        kwargs.setdefault("epilog", epilog if examples else None)
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, exit_on_error=False, **kwargs)
        self._positionals.title = "arguments"

    def add_config(self, config: type) -> None:
        """Add an option `--section.key` for each field of a dataclass and of the dataclasses in it.

        A field that is a list of dataclasses becomes an option that takes the list as YAML, and stays text here.
        """
        lists = list_fields(config)
        self.add_class_arguments(config, skip={name for name in lists if "." not in name})
        for action in list(self._actions):
            if action.dest in self.groups:  # `--section FILE`, in which a section stands in a file of its own
                action.help = argparse.SUPPRESS
            elif action.dest.removesuffix(".help") in lists:
                self._forget(action)
        for name, group in self.groups.items():
            group.title = "the run" if name == config.__name__ else f"{name}: {group.title}"
        for name, item in lists.items():
            keys = ", ".join(field.name for field in fields(item))
            self.groups.get(name.rpartition(".")[0] or config.__name__, self).add_argument(
                f"--{name}",
                type=str,
                metavar="YAML",
                default=argparse.SUPPRESS,
                help=f"a list of sections with keys {keys}",
            )

    def _forget(self, action: argparse.Action) -> None:
        action.container._remove_action(action)
        for option in action.option_strings:
            del self._option_string_actions[option]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        shown = {a.dest: a.option_strings[-1] if a.option_strings else a.metavar for a in self._actions}
        raise UsageError(_plain_words(message, shown)) from ex


def underscored(arguments: Iterable[str]) -> list[str]:
    """Spell option names with `_` where they were given with `-`; what follows `--` stays as it is."""
    result = list(arguments)
    for index, argument in enumerate(result):
        if argument == "--":
            break
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            result[index] = f"--{name.replace('-', '_')}{equals}{value}"
    return result


def given_value(arguments: Sequence[str], option: str) -> str | None:
    """What stands behind `option` (`--task NAME` or `--task=NAME`, the last one), before any parser; None: nothing."""
    value = None
    for word, following in zip(arguments, [*arguments[1:], None], strict=True):
        if word == "--":
            break
        if word == option:
            value = following
        elif word.startswith(f"{option}="):
            value = word.removeprefix(f"{option}=")
    return value


def _plain_words(message: str, shown: dict[str, str]) -> str:
    """jsonargparse's messages in a user's terms; one not known here is passed on. `shown` maps keys to option names."""
    if match := re.match(r"the following arguments are required: (.+)", message):
        return f"missing: {', '.join(shown.get(key, key) for key in match[1].split(', '))}"
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        unknown = match[1].partition("=")[0]
        if unknown.startswith("-"):
            return f"unknown option {unknown}{nearest(unknown, shown.values())}"
        return f"unexpected argument {unknown!r}"
    key = re.match(r'Parser key "(.+?)":', message)
    kinds = re.findall(r"Expected an? <class '(\w+)'>", message)
    value = re.search(r"(?:Got value|Given value): (.*)", message, re.DOTALL)
    if key and kinds and value:
        expected = " or ".join(_TYPE_WORDS.get(kind, kind) for kind in kinds)
        return f"{key[1]} must be {expected}; got {' '.join(value[1].split())[:80]}"
    return " ".join(message.split())[:300]


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """Types as metavars, defaults where there is one to tell, and lines of at most 100 characters."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, **{"max_help_position": 30, **kwargs})
        self._width = min(self._width, 98)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return _METAVARS.get(getattr(action, "_typehint", None) or action.type, "VALUE")

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.nargs == 0 or action.default in (None, "", argparse.SUPPRESS) or not action.option_strings:
            return text
        return (
            f"{text} (default: {str(action.default).lower() if isinstance(action.default, bool) else action.default})"
        )
