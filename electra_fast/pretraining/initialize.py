"""Starting from other weights: whose sizes a run has then, and how they get into its model.

A tower starts from a checkpoint of ELECTRA or BERT in transformers' layout. Its vocabulary and its position table may
be others than the run's: rows are then copied, averaged, repeated or interpolated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_fast.checkpoints import find_checkpoint
from electra_fast.data.checksum import file_sha256
from electra_fast.data.tokenizer import load_tokenizer, tokenizer_hash
from electra_fast.data.vocabulary import VocabularyMatch, match_vocabularies
from electra_fast.models.joint import TIED_EMBEDDINGS, ElectraForJointPreTraining
from electra_fast.models.joint_files import OTHER_WEIGHTS_FILE
from electra_fast.models.positions import resized_table
from electra_fast.models.tower_files import (
    PROJECTION,
    PROJECTION_BIAS,
    WORD_EMBEDDINGS,
    TowerFiles,
    find_tower,
    read_tensors,
)
from electra_fast.pretraining.config import ConfigError, InitConfig, ModelConfig, PretrainConfig, TowerConfig
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.distributed import Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Section = TypeVar("Section")

ROLES = ("generator", "discriminator")  # in the order in which they are filled: "gdes" needs the generator's tables
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_OF_BOTH = ("type_vocab_size", "hidden_act", "layer_norm_eps")
_EMBEDDINGS = tuple(f"electra.embeddings.{name}." for name in TIED_EMBEDDINGS)
_POSITIONS = "electra.embeddings.position_embeddings.weight"
_CONTINUE = "the recipe `continue` sets no sizes"


@dataclass(frozen=True)
class _Sources:
    """Where the towers start from, and the file of what else a run had."""

    towers: dict[str, TowerFiles]
    others: Path | None

    @classmethod
    def find(cls, init: InitConfig) -> _Sources:
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
    if (path / "checkpoints").is_dir():  # of a run that has not ended
        return find_checkpoint(path, "")
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
    return replace(config, model=_with_sizes(config.model, _Sources.find(config.init).towers))


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
    model = _taken(model, ours or (theirs if model.embedding_size is None else None), "model", ("embedding_size",))
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
                f"{name}.{key} is {given!r}, and {tower.folder} has {size!r}: leave the setting out ({_CONTINUE}), or "
                "start from another checkpoint"
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


def start_model(
    model: ElectraForJointPreTraining, config: PretrainConfig, tokenizer: PreTrainedTokenizerFast, ranks: Ranks
) -> tuple[PretrainConfig, list[str]]:
    """`initialize` by rank 0, whose weights all ranks get: the config with their hash, and what to print."""

    def start() -> tuple[str | None, list[str]]:
        init, lines = initialize(model, config.init, tokenizer, seed=config.training.seed)
        return init.sha256, lines

    sha256, lines = ranks.from_first(start)
    ranks.spread(parameter.data for parameter in model.parameters())
    return replace(config, init=replace(config.init, sha256=sha256)), lines


@torch.no_grad()
def initialize(
    model: ElectraForJointPreTraining,
    init: InitConfig,
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    seed: int = 0,
) -> tuple[InitConfig, list[str]]:
    """Let the towers of a fresh `model` start from what `init` names, in place.

    A tower without a checkpoint gets the other's embeddings and is fresh beyond. A head that its checkpoint lacks stays
    fresh; an encoder has to be there as a whole.

    Args:
        model: of the checkpoints' sizes, but for vocabulary and positions.
        tokenizer: the model's. None: that of the checkpoints, so that rows are taken as they are.
        seed: of what is drawn where `init.new_tokens` is random.

    Returns:
        `init` with the weights' hash, and lines that say what came from where and what is fresh.

    Raises:
        ConfigError: weights that are not there, don't fit `model` or each other, or have not `init.sha256`.
        ValueError: a damaged file.
    """
    sources = _Sources.find(init)
    sha256 = sources.sha256()
    if init.sha256 not in (None, sha256):
        raise ConfigError(
            f"the weights to start from are not those of init.sha256 ({init.sha256[:16]}...), but {sha256[:16]}...: "
            "give the folder as it was, or leave init.sha256 out"
        )
    start = _Start(model, init, tokenizer, seed)
    for role, tower in sources.towers.items():
        start.read(role, tower)
    others = {} if sources.others is None else read_tensors(sources.others)
    for role in ROLES:
        start.fill(role)
    start.fill_others(others, sources)
    return replace(init, sha256=sha256), start.lines


class _Start:
    """The weights of each tower as the model will have them, on their way into it."""

    def __init__(
        self,
        model: ElectraForJointPreTraining,
        init: InitConfig,
        tokenizer: PreTrainedTokenizerFast | None,
        seed: int,
    ) -> None:
        self.model, self.init, self.tokenizer, self.seed = model, init, tokenizer, seed
        self.towers: dict[str, TowerFiles] = {}
        self.weights: dict[str, dict[str, Tensor]] = {}
        self.rows: dict[str, _Rows] = {}
        self.lines: list[str] = []
        self._filled: dict[int, tuple[str, str]] = {}  # which role filled a parameter, and under which name

    def read(self, role: str, tower: TowerFiles) -> None:
        """Bring a checkpoint's tables to the model's sizes."""
        weights = tower.read()
        if WORD_EMBEDDINGS not in weights or _POSITIONS not in weights:
            raise ConfigError(f"{tower.folder} lacks {WORD_EMBEDDINGS}: it is damaged or of another kind")
        rows, line = self._vocabulary(tower, weights[WORD_EMBEDDINGS].shape[0])
        self._say_once(line)
        for name in (WORD_EMBEDDINGS, PROJECTION_BIAS):
            if name in weights:
                weights[name] = rows(weights[name])
        old, new = weights[_POSITIONS].shape[0], self.model.discriminator.config.max_position_embeddings
        if new != old:
            how = {"repeat": "repeated", "interpolate": "interpolated", "fresh": "fresh beyond"}[self.init.positions]
            self._say_once(f"positions: {old} of {tower.folder}, {how if new > old else 'cut'} for {new}")
        weights[_POSITIONS] = self._positions(weights[_POSITIONS], role)
        self.towers[role], self.weights[role], self.rows[role] = tower, weights, rows

    def _say_once(self, line: str) -> None:
        if line and line not in self.lines:
            self.lines.append(line)

    def _positions(self, table: Tensor, role: str) -> Tensor:
        length = getattr(self.model, role).config.max_position_embeddings
        if self.init.positions == "fresh" and length > table.shape[0]:
            fresh = getattr(self.model, role).electra.embeddings.position_embeddings.weight
            return torch.cat([table, fresh[table.shape[0] :].detach()])
        return resized_table(table, length, "repeat" if self.init.positions == "fresh" else self.init.positions)

    def _vocabulary(self, tower: TowerFiles, old_size: int) -> tuple[_Rows, str]:
        """How the rows of a table over the vocabulary are made, and a line about it."""
        size, name = self.model.discriminator.config.vocab_size, tower.folder
        as_they_are = _Rows(None, size, self.init.new_tokens, self.seed)
        if self.tokenizer is None and old_size == size:
            return as_they_are, ""
        if not any((tower.folder / file).is_file() for file in ("tokenizer.json", "vocab.txt")):
            if old_size == size:
                return as_they_are, f"vocabulary: {name} holds no tokenizer; taken to be the corpus's, of the same size"
            raise ConfigError(
                f"{name} has {old_size} tokens, the model {size}, and without a tokenizer.json or vocab.txt nobody "
                "knows which: put the tokenizer's files into that folder"
            )
        if self.tokenizer is None:
            raise ConfigError(f"{name} has {old_size} tokens, the model {size}: give the model's tokenizer")
        theirs = load_tokenizer(tower.folder)
        if tokenizer_hash(theirs) == tokenizer_hash(self.tokenizer) and old_size >= size:
            return as_they_are, ""
        match = match_vocabularies(
            theirs, self.tokenizer, old_size=old_size, with_pieces=self.init.new_tokens == "pieces"
        )
        rest = {"random": "drawn like those"}.get(self.init.new_tokens, "the mean of all")
        line = (
            f"vocabulary: {match.same:,} of {size:,} tokens as in {name}, {match.spelled:,} as spelled otherwise, "
            f"{match.pieces:,} from pieces, {size - match.same - match.spelled - match.pieces:,} {rest}"
        )
        return _Rows(match, size, self.init.new_tokens, self.seed), line

    def fill(self, role: str) -> None:
        """Put a tower's weights into it, or the other's embeddings where it has no checkpoint."""
        tower, other = self.towers.get(role), next(name for name in ROLES if name != role)
        parameters = {
            name: parameter
            for name, parameter in getattr(self.model, role).named_parameters(remove_duplicate=False)
            if name != PROJECTION  # the word embeddings
        }
        weights = self.weights.get(role)
        borrowed = weights is None
        if borrowed:
            shapes = {name.replace(".delta", ".weight"): p.shape for name, p in parameters.items()}
            shared = "electra." if self.model.tie == "all" else _EMBEDDINGS
            of_other = {name: w for name, w in self.weights[other].items() if name.startswith(shared)}
            weights = {name: w for name, w in of_other.items() if w.shape == shapes.get(name)}
        else:
            self._check_encoder(tower, parameters, weights)
        fresh = []
        for name, parameter in parameters.items():
            weight = weights.get(name.replace(".delta", ".weight"))
            if weight is None:
                if id(parameter) not in self._filled:
                    fresh.append(name)
                continue
            self._check_shape(tower, name, weight, parameter)
            if name.endswith(".delta"):
                weight = weight - self.model.generator.get_submodule(name.removesuffix(".delta")).weight
            self._put(role, name, weight, parameter)
        self._report(role, tower, len(parameters), fresh, borrowed)
        if not borrowed:
            self._fill_mlm_head(role, weights)
            self._report_left(role, tower, [name for name in weights if name not in self._used(parameters)])

    def _used(self, parameters: Mapping[str, nn.Parameter]) -> set[str]:
        return {name.replace(".delta", ".weight") for name in parameters}

    @staticmethod
    def _check_encoder(tower: TowerFiles, parameters: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """The encoder has to be there, and nothing more: any part of it that we don't know would change it."""
        ours = {name.replace(".delta", ".weight") for name in parameters if name.startswith("electra.")}
        theirs = {name for name in weights if name.startswith("electra.") and not name.startswith("electra.pooler.")}
        if missing := ours - theirs:
            raise ConfigError(f"{tower.folder} lacks {min(missing)}: it is damaged or of another kind")
        if unknown := theirs - ours:
            raise ConfigError(f"{tower.folder} holds {min(unknown)}, for which its config.json has no place")

    @staticmethod
    def _check_shape(tower: TowerFiles | None, name: str, weight: Tensor, parameter: Tensor) -> None:
        if weight.shape != parameter.shape:
            where = "" if tower is None else f"{tower.folder}: "
            shapes = f"{tuple(weight.shape)}, and in the model {tuple(parameter.shape)}"
            raise ConfigError(f"{where}{name} is {shapes}: give the model the checkpoint's sizes")

    def _put(self, role: str, name: str, weight: Tensor, parameter: nn.Parameter) -> None:
        if id(parameter) in self._filled and not torch.equal(weight, parameter):
            before, _ = self._filled[id(parameter)]
            difference = float((weight - parameter).abs().max())
            raise ConfigError(
                f"model.tie is {self.model.tie}, but {self.towers[before].folder} and {self.towers[role].folder} have "
                f"different {name} (by up to {difference:.3g}): give model.tie untied, or start one tower only"
            )
        parameter.copy_(weight)
        self._filled[id(parameter)] = (role, name)

    def _report(self, role: str, tower: TowerFiles | None, total: int, fresh: list[str], borrowed: bool) -> None:
        folder = self.towers[next(name for name in ROLES if name != role)].folder if tower is None else tower.folder
        line = f"{role}: {total - len(fresh)} of {total} weights from {folder}"
        if borrowed and len(fresh) < total:
            line += " (its encoder)" if self.model.tie == "all" else " (its embeddings)"
        self.lines.append(line + (f"; fresh: {', '.join(_parts(fresh))}" if fresh else ""))

    def _report_left(self, role: str, tower: TowerFiles, names: list[str]) -> None:
        if names:
            self.lines.append(f"{role}: left out of {tower.folder}: {', '.join(_parts(names))}")

    def _fill_mlm_head(self, role: str, weights: dict[str, Tensor]) -> None:
        """The objective "mlm" has a head of its own on the discriminator, to which that of a checkpoint goes."""
        if role != "discriminator" or self.model.mlm_head is None:
            return
        names = {f"generator_predictions.{name}": name for name, _ in self.model.mlm_head.named_parameters()}
        names[PROJECTION_BIAS] = names.pop("generator_predictions.bias")
        if not names.keys() <= weights.keys():
            return
        for theirs, ours in names.items():
            self._put(role, f"mlm_head.{ours}", weights.pop(theirs), self.model.mlm_head.get_parameter(ours))

    def fill_others(self, others: dict[str, Tensor], sources: _Sources) -> None:
        """What belongs to neither tower: heads and generators of other objectives, and the differences of "gdes"."""
        parameters = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if name.endswith(".delta") or not name.startswith(("generator.", "discriminator."))
        }
        taken = []
        for name, weight in others.items():
            if name not in parameters:
                continue
            if name.endswith(("word_embeddings.delta", "mlm_head.bias")):
                weight = self.rows["discriminator"](weight, new_tokens="mean")
            elif name.endswith("position_embeddings.delta"):
                weight = self._deltas(weight, parameters[name])
            if weight.shape != parameters[name].shape:
                shapes = f"{tuple(weight.shape)}, and in the model {tuple(parameters[name].shape)}"
                raise ConfigError(f"{sources.others}: {name} is {shapes}: give the model the run's sizes")
            parameters[name].copy_(weight)
            taken.append(name)
        own = [name for name in parameters if not name.endswith(".delta")]
        fresh = [name for name in own if name not in taken and id(parameters[name]) not in self._filled]
        if taken:
            self.lines.append(f"others: {len(taken)} of {len(taken) + len(fresh)} weights from {sources.others}")
        if fresh:
            self.lines.append(f"others: fresh: {', '.join(_parts(fresh))}")
        if left := [name for name in others if name not in parameters]:
            self.lines.append(f"others: left out of {sources.others}: {', '.join(_parts(left))}")

    def _deltas(self, table: Tensor, parameter: Tensor) -> Tensor:
        if self.init.positions == "fresh" and parameter.shape[0] > table.shape[0]:
            return F.pad(table, (0, 0, 0, parameter.shape[0] - table.shape[0]))  # with the generator's fresh rows
        return resized_table(
            table, parameter.shape[0], "repeat" if self.init.positions == "fresh" else self.init.positions
        )


def _parts(names: Iterable[str]) -> list[str]:
    """Names of modules for those of their weights: two levels are enough to tell."""
    return list(dict.fromkeys(".".join(name.split(".")[: 2 if name.startswith("electra.") else 1]) for name in names))


class _Rows:
    """How the rows of a table over one vocabulary become those of a table over another.

    Args:
        match: None: rows stay as they are, those beyond `size`, which pad, are dropped.
        size: rows of the new table.
        new_tokens: as in `InitConfig`.
        seed: of what is drawn.
    """

    def __init__(self, match: VocabularyMatch | None, size: int, new_tokens: str, seed: int) -> None:
        self.size, self.new_tokens, self.seed = size, new_tokens, seed
        self._old_ids = None
        if match is not None:
            self._old_ids = [*match.old_ids, *[()] * (size - len(match.old_ids))]

    def __call__(self, table: Tensor, *, new_tokens: str | None = None) -> Tensor:
        """[old, ...] -> [size, ...]. Of a row without an old one: see `new_tokens`; random is normal, with mean and
        deviation of the old table's columns."""
        if self._old_ids is None:
            return table[: self.size].clone()
        rows = table.reshape(table.shape[0], -1)
        counts = torch.tensor([len(ids) for ids in self._old_ids])
        flat = torch.tensor([index for ids in self._old_ids for index in ids], dtype=torch.long)
        result = F.embedding_bag(flat, rows, counts.cumsum(0) - counts, mode="mean")
        once = counts == 1
        result[once] = rows[flat[(counts.cumsum(0) - counts)[once]]]  # to the bit
        missing = counts == 0
        if (new_tokens or self.new_tokens) == "random":
            generator = torch.Generator().manual_seed(self.seed)
            noise = torch.randn((int(missing.sum()), rows.shape[1]), generator=generator)
            result[missing] = rows.mean(dim=0) + noise * rows.std(dim=0)
        else:
            result[missing] = rows.mean(dim=0)
        return result.reshape(self.size, *table.shape[1:])
