"""Reads a recipe or config file as strictly as the command line: unknown keys and wrong types are errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from electra_fast.arguments import ArgumentParser, UsageError, nearest
from electra_fast.pretraining.config import ConfigError, PretrainConfig, recipe_path


def read_config(name: str | Path, overrides: Mapping[str, Any] | None = None) -> PretrainConfig:
    """The configuration of a recipe or YAML file.

    Args:
        name: a file, or a recipe that comes with the package, e.g. "small".
        overrides: dotted keys and what they are instead, e.g. `{"training.steps": 10}`.

    Raises:
        ConfigError: a file that is not there or not YAML, a key that does not exist, a value of another type or out of
            range; the message names the file, or the key where it is an override.
    """
    path = recipe_path(str(name))
    parser = ArgumentParser()
    parser.add_config(PretrainConfig)
    types = dict(_types(PretrainConfig))
    try:
        settings = dict(_flat(_read_mapping(path), types))
        _parse(parser, settings)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        for key, value in (overrides or {}).items():
            _check_key(key, value, types)
            settings[key] = value
        return PretrainConfig(**vars(parser.instantiate(_parse(parser, settings))))
    except UsageError as error:
        raise ConfigError(str(error)) from error


def _types(config: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a nested dataclass with its type; sections have a dataclass for a type."""
    hints = get_type_hints(config)
    for field in fields(config):
        yield prefix + field.name, hints[field.name]
        if is_dataclass(hints[field.name]):
            yield from _types(hints[field.name], f"{prefix}{field.name}.")


def _read_mapping(path: Path) -> dict[Any, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}: save it as UTF-8") from error
    if not isinstance(tree or {}, dict):
        raise ConfigError(f"expected keys and values, e.g. `training: {{steps: 1000}}`; got {str(tree)[:80]!r}")
    return tree or {}


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
        raise ConfigError(f"unknown config key {key}{nearest(key, types)}")
    if is_dataclass(types[key]):
        below = [name for name in types if name.startswith(f"{key}.")]
        raise ConfigError(f"{key} is a section and takes keys, e.g. {below[0]}; got {value!r}")
    if value is None and types[key] in (int, float, bool, str):  # jsonargparse would take the default
        raise ConfigError(f"{key} must not be null: give a value, or leave it out")


def _parse(parser: ArgumentParser, settings: dict[str, Any]) -> Any:
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return parser.parse_object(tree)
