"""Reads a recipe or config file as strictly as the command line: unknown keys and wrong types are errors."""

from __future__ import annotations

import functools
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

from electra_fast.arguments import ArgumentParser, UsageError, list_item, nearest, shown, type_words
from electra_fast.pretraining.config import ConfigError, PretrainConfig, recipe_path

Item = TypeVar("Item")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def read_config(name: str | Path, overrides: Mapping[str, Any] | None = None) -> PretrainConfig:
    """The configuration of a recipe or YAML file.

    Args:
        name: a file, or a recipe that comes with the package, e.g. "small".
        overrides: dotted keys and what they are instead, e.g. `{"training.steps": 10}`.

    Raises:
        ConfigError: a file that is not there or not YAML, a key that does not exist or stands there twice, a value of
            another type or out of range; the message names the file, or the key where it is an override.
    """
    path = recipe_path(str(name))
    parser = _parser(PretrainConfig)
    types = dict(_types(PretrainConfig))
    settings: dict[str, Any] = {}
    try:
        for key, value in _flat(_read_mapping(path), types):
            if key in settings:
                raise ConfigError(f"{key} is given twice: leave one of the two out")
            settings[key] = value
        lists = _take_lists(settings, types)
        parsed = _parse(parser, settings)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        for key, value in (overrides or {}).items():
            _check_key(key, value, types)
            settings[key] = value
        lists |= _take_lists(settings, types)
        if overrides:
            parsed = _parse(parser, settings)
        made = vars(parser.instantiate(parsed))
        for section in {key.rpartition(".")[0] for key in lists}:
            values = {
                key.rpartition(".")[2]: value for key, value in lists.items() if key.rpartition(".")[0] == section
            }
            made |= {section: replace(made[section], **values)} if section else values
        return PretrainConfig(**made)
    except UsageError as error:
        raise ConfigError(str(error)) from error


@functools.cache  # building one takes almost as long as parsing with it
def _parser(config: type) -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_config(config)
    return parser


def _take_lists(settings: dict[str, Any], types: dict[str, Any]) -> dict[str, list[Any]]:
    """The settings that are lists of sections, taken out of `settings` and made."""
    keys = [key for key in settings if list_item(types[key])]
    return {key: _items(key, settings.pop(key), list_item(types[key])) for key in keys}


def _items(key: str, value: Any, kind: type[Item]) -> list[Item]:
    if isinstance(value, str):  # on the command line
        try:
            value = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"{key} is not YAML: {_problem(error)}") from error
        except RecursionError as error:
            raise ConfigError(f"{key} is nested too deeply") from error
    expected = "a list of sections, e.g. [{steps: 1000}, {steps: 500}]"
    if not isinstance(value, list):
        raise ConfigError(f"{key} must be {expected}; got {shown(value)}")
    items = []
    for index, tree in enumerate(value):
        name = f"{key}[{index}]"
        if not isinstance(tree, dict):
            raise ConfigError(f"{name} must be a section with keys: {key} is {expected}; got {shown(tree)}")
        settings = dict(_flat(tree, dict(_types(kind, f"{name}.")), f"{name}."))
        parser = _parser(kind)
        try:
            parsed = _parse(parser, {entry.removeprefix(f"{name}."): value for entry, value in settings.items()})
            items.append(kind(**vars(parser.instantiate(parsed))))
        except ValueError as error:
            raise ConfigError(f"{name}.{error}") from error
    return items


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, where PyYAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    problem = f"{key.value} is given twice: leave one of the two out"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _types(config: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a nested dataclass with its type; sections have a dataclass for a type."""
    hints = get_type_hints(config)
    for field in fields(config):
        yield prefix + field.name, hints[field.name]
        if is_dataclass(hints[field.name]):
            yield from _types(hints[field.name], f"{prefix}{field.name}.")


def _read_mapping(path: Path) -> dict[Any, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {_problem(error)}") from error
    except RecursionError as error:
        raise ConfigError("not a config: it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}: save it as UTF-8") from error
    if not isinstance(tree or {}, dict):
        raise ConfigError(f"expected keys and values, e.g. `training: {{steps: 1000}}`; got {shown(tree)}")
    return tree or {}


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, on one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    return " ".join(str(error).split())[:200]


def _flat(tree: dict[Any, Any], types: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and is_dataclass(types.get(key)):
            yield from _flat(value, types, f"{key}.")
        elif value is not None or not is_dataclass(types.get(key)):  # `model:` with nothing below is an empty section
            _check_key(key, value, types)
            yield key, value


def _check_key(key: str, value: Any, types: dict[str, Any]) -> None:
    if key not in types:
        raise ConfigError(f"unknown config key {' '.join(key.split())[:80]}{_nearest(key, types)}")
    if is_dataclass(types[key]):
        below = [name for name in types if name.startswith(f"{key}.")]
        raise ConfigError(f"{key} is a section and takes keys, e.g. {below[0]}; got {shown(value)}")
    if value is None and types[key] in (int, float, bool, str):  # jsonargparse would take the default
        raise ConfigError(f"{key} must not be null: give a value, or leave it out")
    if list_item(types[key]):  # `_items` checks it
        return
    if isinstance(value, str) and not _is_text_for(types[key], value):  # jsonargparse would read it as YAML once more
        raise ConfigError(f"{key} must be {type_words(types[key])}; got {' '.join(value.split())[:80]}")
    if isinstance(value, (dict, list, set)):  # quoted by jsonargparse in full, of any size
        raise ConfigError(f"{key} must be {type_words(types[key])}; got {shown(value)}")


def _is_text_for(kind: Any, value: str) -> bool:
    """Whether text can be a value of type `kind`: as text, or as a number like 5e-4, which YAML 1.1 takes for text."""
    kinds = get_args(kind) or (kind,)
    return str in kinds or (float in kinds and _NUMBER.fullmatch(value) is not None)


def _nearest(key: str, types: dict[str, Any]) -> str:
    """`; did you mean X?`: the same name in another section, else the key spelled most alike."""
    leaf = key.rpartition(".")[2]
    elsewhere = [known for known in types if known.rpartition(".")[2] == leaf]
    return f"; did you mean {elsewhere[0]}?" if elsewhere else nearest(key, types)


def _parse(parser: ArgumentParser, settings: dict[str, Any]) -> Any:
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return parser.parse_object(tree)
