"""Which variable of Google's ELECTRA is which weight of transformers', and the sizes that the shapes tell.

Source: google-research/electra, model/modeling.py, run_pretraining.py and model/optimization.py. A dense layer's kernel
is [in, out] there and [out, in] in PyTorch; nothing else differs but names.

A checkpoint's variables come as a mapping from name to array: whatever has `shape` and `dtype` and becomes a NumPy
array by `np.asarray`, which is asked of those only that are taken. So a plain dict of arrays serves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

GLOBAL_STEP = "global_step"
HEAD_SIZE = 64  # util/training_utils.py: as many heads as 64 goes into the hidden size, at least one
LISTED = 20  # names of a kind that a message shows

Variables = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a weight comes from: a variable, and whether it is transposed."""

    variable: str
    transposed: bool = False


@dataclass(frozen=True)
class Tower:
    """One model of a checkpoint.

    Args:
        config: arguments of its `ElectraConfig`: the sizes.
        sources: by the weights' names in transformers.
    """

    config: dict[str, int]
    sources: dict[str, Source]

    def weight(self, name: str, variables: Variables) -> np.ndarray:
        """The weight `name` as PyTorch lays it out, in memory of its own; the bits are the variable's."""
        source = self.sources[name]
        array = np.asarray(variables[source.variable])
        return np.array(array.T if source.transposed else array, order="C")


@dataclass(frozen=True)
class Layout:
    """What a checkpoint holds.

    Args:
        towers: "discriminator" and "generator", or those of them that are there; or "encoder" alone.
        tie: how generator and discriminator share weights, in the words of `ElectraForJointPreTraining`.
        slots: the optimizer's variables.
        left_out: other variables that are not taken, but for the number of steps.
    """

    towers: dict[str, Tower]
    tie: str
    slots: list[str]
    left_out: list[str]


def read_layout(variables: Variables, checkpoint: str, *, encoder_only: bool = False) -> Layout:
    """Tell by names and shapes what is in a checkpoint.

    Args:
        checkpoint: its name in messages.
        encoder_only: take the discriminator's encoder alone, and leave out what else there is: a generator, heads of
            tasks.

    Raises:
        ValueError: it is no checkpoint of Google's ELECTRA in TensorFlow 1, it lacks variables or holds unknown ones,
            or the sizes can't be read.
    """
    _check_kind(variables, checkpoint)
    parts = {"encoder": _Part("electra", "electra", {})} if encoder_only else _parts(variables)
    if not parts:
        raise ValueError(
            f"{checkpoint} holds no head of pretraining{_named(_heads_of_tasks(variables))}: --encoder_only converts "
            "its encoder alone"
        )
    sources = {kind: part.sources(variables) for kind, part in parts.items()}
    used = {source.variable for names in sources.values() for source in names.values()}
    slots = sorted(name for name in variables if name not in used and name.rpartition("/")[0] in variables)
    others = sorted(set(variables) - used - set(slots) - {GLOBAL_STEP})
    strange = [name for name in others if name.startswith("electra/")] if encoder_only else others
    if used - set(variables) or strange:
        raise ValueError(
            f"{checkpoint} holds other variables than Google's ELECTRA: {_difference(used - set(variables), strange)}"
        )
    towers = {kind: Tower(_sizes(variables, checkpoint, part), sources[kind]) for kind, part in parts.items()}
    generator = parts.get("generator")
    tie = "all" if generator and generator.encoder == "electra" else "shared"
    tie = "untied" if generator and generator.embeddings == "generator" else tie
    return Layout(towers, tie, slots, others)


@dataclass(frozen=True)
class _Part:
    """A model by the scopes of its encoder and its embeddings, and its head."""

    encoder: str
    embeddings: str
    head: dict[str, Source]

    @property
    def width(self) -> str:
        """A variable [hidden_size, intermediate_size]."""
        return f"{self.encoder}/encoder/layer_0/intermediate/dense/kernel"

    @property
    def words(self) -> str:
        """A variable [vocab_size, embedding_size]."""
        return f"{self.embeddings}/embeddings/word_embeddings"

    def sources(self, variables: Variables) -> dict[str, Source]:
        theirs = f"{self.embeddings}/embeddings"
        found = {
            f"electra.embeddings.{table}.weight": Source(f"{theirs}/{table}")
            for table in ("word_embeddings", "position_embeddings", "token_type_embeddings")
        }
        found |= _norm("electra.embeddings.LayerNorm", f"{theirs}/LayerNorm")
        if self._projects(variables):
            found |= _dense("electra.embeddings_project", f"{self.encoder}/embeddings_project")
        for index in range(self.num_layers(variables)):
            ours, theirs = f"electra.encoder.layer.{index}", f"{self.encoder}/encoder/layer_{index}"
            for layer in ("self/query", "self/key", "self/value", "output/dense"):
                found |= _dense(f"{ours}.attention.{layer.replace('/', '.')}", f"{theirs}/attention/{layer}")
            found |= _norm(f"{ours}.attention.output.LayerNorm", f"{theirs}/attention/output/LayerNorm")
            found |= _dense(f"{ours}.intermediate.dense", f"{theirs}/intermediate/dense")
            found |= _dense(f"{ours}.output.dense", f"{theirs}/output/dense")
            found |= _norm(f"{ours}.output.LayerNorm", f"{theirs}/output/LayerNorm")
        return found | self.head

    def num_layers(self, variables: Variables) -> int:
        layer = re.compile(rf"{self.encoder}/encoder/layer_(\d+)/")
        return max(1, len({match[1] for match in map(layer.match, variables) if match}))

    def _projects(self, variables: Variables) -> bool:
        if self.words in variables and self.width in variables:
            return _shape(variables, self.words)[-1:] != _shape(variables, self.width)[:1]
        return _any(variables, f"{self.encoder}/embeddings_project/")


def _parts(variables: Variables) -> dict[str, _Part]:
    parts = {}
    of_its_own = _any(variables, "generator/")
    if of_its_own or _any(variables, "discriminator_predictions/"):
        head = _dense("discriminator_predictions.dense", "discriminator_predictions/dense")
        # The layers have no names there: the second of a scope is dense_1.
        head |= _dense("discriminator_predictions.dense_prediction", "discriminator_predictions/dense_1")
        parts["discriminator"] = _Part("electra", "electra", head)
    if of_its_own or _any(variables, "generator_predictions/"):
        head = _dense("generator_predictions.dense", "generator_predictions/dense")
        head |= _norm("generator_predictions.LayerNorm", "generator_predictions/LayerNorm")
        head["generator_lm_head.bias"] = Source("generator_predictions/output_bias")
        encoder = "generator" if of_its_own else "electra"
        embeddings = "generator" if _any(variables, "generator/embeddings/") else "electra"
        parts["generator"] = _Part(encoder, embeddings, head)
    return parts


def _dense(ours: str, theirs: str) -> dict[str, Source]:
    return {f"{ours}.weight": Source(f"{theirs}/kernel", transposed=True), f"{ours}.bias": Source(f"{theirs}/bias")}


def _norm(ours: str, theirs: str) -> dict[str, Source]:
    return {f"{ours}.weight": Source(f"{theirs}/gamma"), f"{ours}.bias": Source(f"{theirs}/beta")}


def _sizes(variables: Variables, checkpoint: str, part: _Part) -> dict[str, int]:
    tables = [f"{part.embeddings}/embeddings/{name}_embeddings" for name in ("position", "token_type")]
    for name in (part.words, part.width, *tables):
        if len(_shape(variables, name)) != 2:
            raise ValueError(f"{checkpoint}: {name} has shape {_shape(variables, name)}, where a matrix is expected")
    vocab_size, embedding_size = _shape(variables, part.words)
    hidden_size, intermediate_size = _shape(variables, part.width)
    return {
        "vocab_size": vocab_size,
        "embedding_size": embedding_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": part.num_layers(variables),
        "num_attention_heads": max(1, hidden_size // HEAD_SIZE),
        "intermediate_size": intermediate_size,
        "max_position_embeddings": _shape(variables, tables[0])[0],
        "type_vocab_size": _shape(variables, tables[1])[0],
    }


def _check_kind(variables: Variables, checkpoint: str) -> None:
    """Raises ValueError with a word of what it is instead."""
    if _any(variables, "electra/"):
        return
    if "_CHECKPOINTABLE_OBJECT_GRAPH" in variables:
        what = "was written by TensorFlow 2 (tf.train.Checkpoint or Keras, as NVIDIA's ELECTRA); only Google's is read"
    elif _any(variables, "bert/"):
        what = "is a BERT"
    else:
        what = f"holds {listed(sorted(variables)) or 'no variables'}"
    raise ValueError(f"{checkpoint} is no checkpoint of Google's ELECTRA in TensorFlow 1: it {what}")


def _any(variables: Iterable[str], scope: str) -> bool:
    return any(name.startswith(scope) for name in variables)


def _shape(variables: Variables, name: str) -> tuple[int, ...]:
    return tuple(variables[name].shape)


def _heads_of_tasks(variables: Iterable[str]) -> list[str]:
    """The tasks that a fine-tuned checkpoint has heads for."""
    scope = re.compile(r"task_specific/([^/]+)/")
    return sorted({match[1] for match in map(scope.match, variables) if match})


def _named(tasks: list[str]) -> str:
    return f" but heads of tasks ({', '.join(tasks)}), which transformers has in another form" if tasks else ""


def _difference(missing: Iterable[str], unknown: Iterable[str]) -> str:
    parts = {"missing": sorted(missing), "unknown": sorted(unknown)}
    return "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in parts.items() if names)


def listed(names: list[str]) -> str:
    """The first of `names` and how many more there are, for a message."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
