"""Where a run starts from: the folders that `init` names, and the sizes a model has by them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from electra_fast.data.checksum import file_sha256
from electra_fast.models.joint_files import OTHER_WEIGHTS_FILE
from electra_fast.models.tower_files import TowerFiles, find_tower
from electra_fast.pretraining.config import ConfigError, InitConfig, ModelConfig, PretrainConfig, TowerConfig
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.distributed import Ranks

Section = TypeVar("Section")

ROLES = ("generator", "discriminator")  # in the order in which they are filled: "gdes" needs the generator's tables
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_OF_BOTH = ("type_vocab_size", "hidden_act", "layer_norm_eps")


@dataclass(frozen=True)
class Sources:
    """Where the towers start from, and the file of what else a run had."""

    towers: dict[str, TowerFiles]
    others: Path | None

    @classmethod
    def find(cls, init: InitConfig) -> Sources:
        """Raises ConfigError for a folder that holds no tower."""
        named = {role: getattr(init, role) or init.run for role in ROLES}
        towers = {}
        for role, path in named.items():
            if path is None:
                continue
            key = "init.run" if init.run else f"init.{role}"
            try:
                towers[role] = find_tower(_folder_of(Path(path), role, is_run=init.run is not None))
            except ValueError as error:
                raise ConfigError(f"{key}: {error}") from error
        others = None if init.run is None else Path(init.run) / OTHER_WEIGHTS_FILE
        return cls(towers, others if others is not None and others.is_file() else None)

    def sha256(self) -> str:
        """One name for all weights, wherever the folders lie."""
        files = [file for role in ROLES if role in self.towers for file in self.towers[role].files]
        digests = [file_sha256(file) for file in [*files, *([self.others] if self.others else [])]]
        return hashlib.sha256(" ".join([*self.towers, *digests]).encode()).hexdigest()


def _folder_of(path: Path, role: str, *, is_run: bool) -> Path:
    """A tower's own folder: `path`, or in that of a run the one of `role`."""
    if (path / role / "config.json").is_file():
        return path / role
    if (path / "checkpoints").is_dir():
        raise ValueError(f"the run in {path} is not finished, so it holds no {role}: go on with --resume")
    if is_run and path.is_dir():
        raise ValueError(
            f"{path} holds no {role}: give the folder of a finished run, or init.discriminator or init.generator for "
            "a tower by itself"
        )
    return path


def resolve_init(config: PretrainConfig, *, resume: bool = False, overwrite: bool = False) -> PretrainConfig:
    """`config` with the sizes of the weights that it starts from in place of null. Reads no weights.

    A run that is resumed knows them itself, so that what it started from need not be there any more.

    Raises:
        ConfigError: no such weights, a setting that contradicts them, or `overwrite` would delete them.
    """
    if not config.init.is_given:
        return config
    output = Path(config.output)
    before = _settings_of_run(output / "config.yaml") if resume else None
    if before is not None:
        generator = _filled(config.model.generator, before.model.generator)
        model = _filled(replace(config.model, generator=generator), before.model)
        return replace(config, model=model, init=_filled(config.init, before.init, ["sha256"]))
    if overwrite:
        for path in filter(None, (config.init.run, config.init.discriminator, config.init.generator)):
            if Path(path).resolve().is_relative_to(output.resolve()):
                raise ConfigError(f"--overwrite would delete {path}, from which to start: give another output")
    return replace(config, model=_with_sizes(config.model, Sources.find(config.init).towers))


def _settings_of_run(file: Path) -> PretrainConfig | None:
    """None where it is not there or can't be read: `check_output` will say so."""
    try:
        return read_config(file) if file.is_file() else None
    except (OSError, ConfigError):
        return None


def _filled(section: Section, before: Section, names: Iterable[str] | None = None) -> Section:
    """A section with what is null in it taken from `before`."""
    names = [name for name in names or vars(section) if getattr(section, name) is None]
    return replace(section, **{name: getattr(before, name) for name in names})


def _with_sizes(model: ModelConfig, towers: Mapping[str, TowerFiles]) -> ModelConfig:
    """Raises ConfigError where a setting and a checkpoint, or two checkpoints, contradict each other."""
    generator, theirs = model.generator, towers.get("generator")
    ours = towers.get("discriminator")
    first = ours or theirs
    table = model.max_position_embeddings or first.config.max_position_embeddings
    model = replace(model, max_position_embeddings=table)
    for tower in filter(None, (ours, theirs)):
        model = _taken(model, tower, "model", _OF_BOTH)
    if ours is None and model.embedding_size is None:
        model = replace(model, embedding_size=theirs.config.embedding_size)  # so that the tables fit both
    model = _taken(model, ours, "model", ("embedding_size",))
    model = _taken(model, ours, "model", _SIZES)
    if theirs is not None and model.tie != "untied" and theirs.config.embedding_size != model.embedding_size:
        raise ConfigError(
            f"model.tie is {model.tie}, which needs one embedding_size, but {theirs.folder} has "
            f"{theirs.config.embedding_size} and the discriminator {model.embedding_size}: give model.tie untied"
        )
    generator = _taken(generator, theirs, "model.generator", (*_SIZES, "embedding_size"))
    if model.tie == "all":  # one encoder: who has no checkpoint has the other's size
        generator, model = _other_sizes(generator, model), _other_sizes(model, generator)
    elif ours is not None and theirs is None:
        generator = _smaller(generator, model)
    return replace(model, generator=generator).filled()


def _taken(section: Any, tower: TowerFiles | None, name: str, keys: Iterable[str]) -> Any:
    """A section with those sizes of a checkpoint that are null."""
    sizes = {}
    for key in keys if tower is not None else ():
        given, size = getattr(section, key), getattr(tower.config, key)
        if given is not None and given != size:
            raise ConfigError(
                f"{name}.{key} is {given!r}, and {tower.folder} has {size!r}: leave the setting out (the recipe "
                "`continue` sets no sizes), or start from another checkpoint"
            )
        sizes[key] = size
    return replace(section, **sizes)


def _other_sizes(section: Any, other: Any) -> Any:
    return replace(section, **{key: getattr(other, key) for key in _SIZES if getattr(section, key) is None})


def _smaller(generator: TowerConfig, model: ModelConfig) -> TowerConfig:
    """A generator for a discriminator: a third of its heads, at most 4, which of 4, 12 and 16 heads gives the paper's
    (table 6)."""
    heads = generator.num_attention_heads or max(1, min(4, model.num_attention_heads // 3))
    width = generator.hidden_size or heads * (model.hidden_size // model.num_attention_heads)
    return replace(
        generator,
        num_attention_heads=heads,
        hidden_size=width,
        intermediate_size=generator.intermediate_size or 4 * width,
        num_hidden_layers=generator.num_hidden_layers or model.num_hidden_layers,
    )


def resolve_on_first(config: PretrainConfig, ranks: Ranks, *, resume: bool, overwrite: bool) -> PretrainConfig:
    """`resolve_init` by rank 0, for all: the others need not see the folders."""
    if not config.init.is_given:
        return config

    def resolve() -> tuple[dict[str, Any], str | None]:
        resolved = resolve_init(config, resume=resume, overwrite=overwrite)
        return asdict(resolved.model), resolved.init.sha256

    model, sha256 = ranks.from_first(resolve)
    model = ModelConfig(**model | {"generator": TowerConfig(**model["generator"])})
    return replace(config, model=model, init=replace(config.init, sha256=sha256))
