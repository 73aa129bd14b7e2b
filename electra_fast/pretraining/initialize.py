"""The weights of other models in a run's: towers of ELECTRA and BERT in transformers' layout, and what else a run had.

Their vocabulary and their position table may be others than the run's: rows are then copied, averaged, repeated or
interpolated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_fast.data.tokenizer import load_tokenizer, tokenizer_hash
from electra_fast.data.vocabulary import match_vocabularies
from electra_fast.models.joint import TIED_EMBEDDINGS, ElectraForJointPreTraining
from electra_fast.models.positions import resized_table
from electra_fast.models.tower_files import PROJECTION, PROJECTION_BIAS, WORD_EMBEDDINGS, TowerFiles, read_tensors
from electra_fast.pretraining.config import ConfigError, InitConfig, PretrainConfig
from electra_fast.pretraining.cooccurrence import start_embeddings
from electra_fast.pretraining.distributed import Ranks
from electra_fast.pretraining.rows import VocabularyRows
from electra_fast.pretraining.sources import ROLES, Sources

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from electra_fast.data.corpus import Corpus

_EMBEDDINGS = tuple(f"electra.embeddings.{name}." for name in TIED_EMBEDDINGS)
_POSITIONS = "electra.embeddings.position_embeddings.weight"


def start_model(
    model: ElectraForJointPreTraining,
    config: PretrainConfig,
    corpora: Sequence[Corpus],
    tokenizer: PreTrainedTokenizerFast,
    ranks: Ranks,
) -> tuple[PretrainConfig, list[str]]:
    """What `config.init` asks for, by rank 0, whose weights all ranks get: the config with their hash, what to print.

    A model that starts from no checkpoint and no counts stays as it was drawn.
    """
    init, seed = config.init, config.training.seed

    def start() -> tuple[str | None, list[str]]:
        if init.is_given:
            found, lines = initialize(model, init, tokenizer, seed=seed)
            return found.sha256, lines
        return None, start_embeddings(model, corpora, seed=seed)

    if not init.is_given and init.embeddings == "random":
        return config, []
    sha256, lines = ranks.from_first(start)
    ranks.spread(parameter.data for parameter in model.parameters())
    return replace(config, init=replace(init, sha256=sha256)), lines


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
    sources = Sources.find(init)
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
        self.rows: dict[str, VocabularyRows] = {}
        self.lines: list[str] = []
        self._filled: dict[int, str] = {}  # which role filled a parameter, by the parameter's id

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

    def _vocabulary(self, tower: TowerFiles, old_size: int) -> tuple[VocabularyRows, str]:
        """How the rows of a table over the vocabulary are made, and a line about it."""
        size, name = self.model.discriminator.config.vocab_size, tower.folder
        as_they_are = VocabularyRows(None, size, self.init.new_tokens, self.seed)
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
        rest = "drawn like those" if self.init.new_tokens == "random" else "the mean of all"
        line = (
            f"vocabulary: {match.same:,} of {size:,} tokens as in {name}, {match.spelled:,} as spelled otherwise, "
            f"{match.pieces:,} from pieces, {size - match.same - match.spelled - match.pieces:,} {rest}"
        )
        return VocabularyRows(match, size, self.init.new_tokens, self.seed), line

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
            shapes = {_table(name): parameter.shape for name, parameter in parameters.items()}
            shared = "electra." if self.model.tie == "all" else _EMBEDDINGS
            of_other = {name: w for name, w in self.weights[other].items() if name.startswith(shared)}
            weights = {name: w for name, w in of_other.items() if w.shape == shapes.get(name)}
        else:
            self._check_encoder(tower, parameters, weights)
        fresh = []
        for name, parameter in parameters.items():
            weight = weights.get(_table(name))
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
            used = set(map(_table, parameters))
            self._report_left(role, tower, [name for name in weights if name not in used])

    @staticmethod
    def _check_encoder(tower: TowerFiles, parameters: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """The encoder has to be there, and nothing more: any part of it that we don't know would change it."""
        ours = {_table(name) for name in parameters if name.startswith("electra.")}
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
            before = self._filled[id(parameter)]
            difference = float((weight - parameter).abs().max())
            raise ConfigError(
                f"model.tie is {self.model.tie}, but {self.towers[before].folder} and {self.towers[role].folder} have "
                f"different {name} (by up to {difference:.3g}): give model.tie untied, or start one tower only"
            )
        parameter.copy_(weight)
        self._filled[id(parameter)] = role

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

    def fill_others(self, others: dict[str, Tensor], sources: Sources) -> None:
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


def _table(name: str) -> str:
    """What a checkpoint calls the sum that a difference of tie="gdes" belongs to; other names stay."""
    return f"{name.removesuffix('.delta')}.weight" if name.endswith(".delta") else name


def _parts(names: Iterable[str]) -> list[str]:
    """Names of modules for those of their weights: two levels are enough to tell."""
    return list(dict.fromkeys(".".join(name.split(".")[: 2 if name.startswith("electra.") else 1]) for name in names))
