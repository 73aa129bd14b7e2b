"""Google's ELECTRA in NumPy and TensorFlow, written from its code and sharing nothing with ours.

Which variables it makes, what it computes of them in float64, and how it saves them; and our weights under its names.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """The hparams that decide which variables there are; `sharing` is by `untied_generator` and
    `untied_generator_embeddings`: "embeddings" (Google's default), "nothing", "all"."""

    vocab: int = 90
    positions: int = 24
    embedding: int = 32
    hidden: int = 128
    layers: int = 2
    generator_hidden: int = 64
    generator_layers: int = 2
    sharing: str = "embeddings"


SMALL = Sizes()
# The released small model has a generator of the discriminator's size.
SMALL_PLUS = Sizes(generator_hidden=128)
BASE = Sizes(embedding=128, generator_layers=3)
UNTIED = Sizes(embedding=128, sharing="nothing")
SMALL_UNTIED = Sizes(sharing="nothing")
ALL_TIED = Sizes(sharing="all")
BY_NAME = {
    "small": SMALL,
    "small++": SMALL_PLUS,
    "base": BASE,
    "base untied": UNTIED,
    "small untied": SMALL_UNTIED,
    "small all tied": ALL_TIED,
    "base all tied": Sizes(embedding=128, sharing="all"),
}


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The variables of a pretrained model (model/modeling.py, run_pretraining.py), in the order of the graph."""
    found: dict[str, tuple[int, ...]] = {}

    def embeddings(scope: str, width: int) -> None:
        found[f"{scope}/embeddings/word_embeddings"] = (sizes.vocab, width)
        found[f"{scope}/embeddings/token_type_embeddings"] = (2, width)
        found[f"{scope}/embeddings/position_embeddings"] = (sizes.positions, width)
        norm(f"{scope}/embeddings/LayerNorm", width)

    def norm(scope: str, width: int) -> None:
        found[f"{scope}/beta"] = found[f"{scope}/gamma"] = (width,)

    def dense(scope: str, inputs: int, outputs: int) -> None:
        found[f"{scope}/kernel"], found[f"{scope}/bias"] = (inputs, outputs), (outputs,)

    def encoder(scope: str, embedding: int, hidden: int, layers: int) -> None:
        if embedding != hidden:
            dense(f"{scope}/embeddings_project", embedding, hidden)
        for layer in (f"{scope}/encoder/layer_{index}" for index in range(layers)):
            for name in ("query", "key", "value"):
                dense(f"{layer}/attention/self/{name}", hidden, hidden)
            dense(f"{layer}/attention/output/dense", hidden, hidden)
            norm(f"{layer}/attention/output/LayerNorm", hidden)
            dense(f"{layer}/intermediate/dense", hidden, 4 * hidden)
            dense(f"{layer}/output/dense", 4 * hidden, hidden)
            norm(f"{layer}/output/LayerNorm", hidden)

    embeddings("electra", sizes.embedding)
    generator_embedding, generator_hidden = sizes.embedding, sizes.generator_hidden
    if sizes.sharing == "nothing":
        generator_embedding = generator_hidden
        embeddings("generator", generator_embedding)
    if sizes.sharing == "all":
        generator_hidden = sizes.hidden
    else:
        encoder("generator", generator_embedding, generator_hidden, sizes.generator_layers)
    dense("generator_predictions/dense", generator_hidden, generator_embedding)
    norm("generator_predictions/LayerNorm", generator_embedding)
    found["generator_predictions/output_bias"] = (sizes.vocab,)
    encoder("electra", sizes.embedding, sizes.hidden, sizes.layers)
    dense("discriminator_predictions/dense", sizes.hidden, sizes.hidden)
    dense("discriminator_predictions/dense_1", sizes.hidden, 1)
    return found


def random_weights(sizes: Sizes, rng: np.random.Generator) -> Arrays:
    """No two alike, and large enough that each shows in the logits."""

    def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("gamma"):
            return rng.uniform(0.5, 1.5, shape)
        deviation = 1 / math.sqrt(shape[0]) if name.endswith("kernel") else 0.2 if len(shape) == 1 else 0.05
        return deviation * rng.standard_normal(shape)

    return {name: drawn(name, shape).astype(np.float32) for name, shape in shapes(sizes).items()}


def with_optimizer(weights: Arrays, rng: np.random.Generator, step: int = 1_000_000) -> Arrays:
    """`weights` and what else a checkpoint of training holds (model/optimization.py)."""
    slots = {
        f"{name}/{slot}": rng.standard_normal(array.shape).astype(np.float32)
        for name, array in weights.items()
        for slot in ("adam_m", "adam_v")
    }
    return weights | slots | {"global_step": np.array(step, dtype=np.int64)}


# The forward pass.


class Electra:
    """Both towers' logits from Google's variables, in float64, without dropout."""

    def __init__(self, weights: Arrays, *, heads: int | None = None) -> None:
        self.weights = {name: array.astype(np.float64) for name, array in weights.items()}
        self.heads = heads  # of the discriminator; None: Google's rule

    def rtd_logits(self, ids: np.ndarray, mask: np.ndarray, types: np.ndarray) -> np.ndarray:
        """[B, S]: large where a token was replaced."""
        hidden = self.encode("electra", ids, mask, types, self.heads)
        hidden = gelu(self.dense("discriminator_predictions/dense", hidden))
        return self.dense("discriminator_predictions/dense_1", hidden)[..., 0]

    def mlm_logits(self, ids: np.ndarray, mask: np.ndarray, types: np.ndarray) -> np.ndarray:
        """[B, S, V]."""
        scope = self.generator
        hidden = self.encode(scope, ids, mask, types, self.heads if scope == "electra" else None)
        hidden = self.norm("generator_predictions/LayerNorm", gelu(self.dense("generator_predictions/dense", hidden)))
        table = self.weights[f"{self.embeddings(scope)}/embeddings/word_embeddings"]
        return hidden @ table.T + self.weights["generator_predictions/output_bias"]

    @property
    def generator(self) -> str:
        own = any(name.startswith("generator/encoder/") for name in self.weights)
        return "generator" if own else "electra"

    def embeddings(self, scope: str) -> str:
        return scope if f"{scope}/embeddings/word_embeddings" in self.weights else "electra"

    def encode(self, scope: str, ids: np.ndarray, mask: np.ndarray, types: np.ndarray, heads: int | None) -> np.ndarray:
        tables = f"{self.embeddings(scope)}/embeddings"
        hidden = self.weights[f"{tables}/word_embeddings"][ids]
        hidden = hidden + self.weights[f"{tables}/token_type_embeddings"][types]
        hidden = hidden + self.weights[f"{tables}/position_embeddings"][: ids.shape[1]]
        hidden = self.norm(f"{tables}/LayerNorm", hidden)
        if f"{scope}/embeddings_project/kernel" in self.weights:
            hidden = self.dense(f"{scope}/embeddings_project", hidden)
        heads = heads or max(1, hidden.shape[-1] // 64)
        index = 0
        while f"{scope}/encoder/layer_{index}/output/dense/kernel" in self.weights:
            hidden = self.layer(f"{scope}/encoder/layer_{index}", hidden, mask, heads)
            index += 1
        return hidden

    def layer(self, scope: str, hidden: np.ndarray, mask: np.ndarray, heads: int) -> np.ndarray:
        def split(name: str) -> np.ndarray:  # [B, heads, S, D]
            projected = self.dense(f"{scope}/attention/self/{name}", hidden)
            return projected.reshape(*hidden.shape[:2], heads, -1).transpose(0, 2, 1, 3)

        query, key, value = map(split, ("query", "key", "value"))
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(query.shape[-1])
        scores = scores - 10000.0 * (1 - mask[:, None, None, :])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        context = (weights @ value).transpose(0, 2, 1, 3).reshape(hidden.shape)
        attended = self.dense(f"{scope}/attention/output/dense", context)
        hidden = self.norm(f"{scope}/attention/output/LayerNorm", attended + hidden)
        inner = gelu(self.dense(f"{scope}/intermediate/dense", hidden))
        return self.norm(f"{scope}/output/LayerNorm", self.dense(f"{scope}/output/dense", inner) + hidden)

    def dense(self, scope: str, hidden: np.ndarray) -> np.ndarray:
        return hidden @ self.weights[f"{scope}/kernel"] + self.weights[f"{scope}/bias"]

    def norm(self, scope: str, hidden: np.ndarray) -> np.ndarray:
        centred = hidden - hidden.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * self.weights[f"{scope}/gamma"] + self.weights[f"{scope}/beta"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


# Our weights under Google's names.

_RENAMED = [
    (r"^electra\.", "SCOPE/"),
    (r"\.layer\.(\d+)\.", r"/layer_\1/"),
    (r"dense_prediction\.", "dense_1."),
    (r"generator_lm_head\.bias$", "generator_predictions/output_bias"),
    (r"LayerNorm\.weight$", "LayerNorm/gamma"),
    (r"LayerNorm\.bias$", "LayerNorm/beta"),
    (r"_embeddings\.weight$", "_embeddings"),
    (r"\.weight$", "/kernel"),
    (r"\.", "/"),
]


def google_weights(generator: nn.Module | None, discriminator: nn.Module | None, *, sharing: str) -> Arrays:
    """The variables of ElectraForMaskedLM and ElectraForPreTraining as Google's code names and lays them out."""
    found: Arrays = {}
    for model, scope in ((generator, "generator"), (discriminator, "electra")):
        for name, tensor in {} if model is None else model.state_dict().items():
            if name == "generator_lm_head.weight":
                continue  # the word embeddings
            for pattern, replacement in _RENAMED:
                name = re.sub(pattern, replacement, name)
            in_electra = sharing == "all" or (sharing == "embeddings" and name.startswith("SCOPE/embeddings/"))
            name = name.replace("SCOPE", "electra" if in_electra else scope)
            array = tensor.detach().numpy()
            array = np.ascontiguousarray(array.T if name.endswith("/kernel") else array)
            assert name not in found or found[name].tobytes() == array.tobytes(), f"{name} is not one"
            found[name] = array
    return found


# TensorFlow's files.


def write_checkpoint(folder: Path, variables: Arrays) -> Path:
    """Save as TensorFlow 1 does: model.ckpt-STEP.index, .data and .meta, and `checkpoint`. Returns the prefix."""
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default(), tf.Session() as session:
        made = [
            tf.get_variable(name, initializer=tf.placeholder(array.dtype, array.shape), use_resource=False)
            for name, array in variables.items()
        ]
        feeds = {variable.initializer.inputs[1]: variables[variable.op.name] for variable in made}
        session.run([variable.initializer for variable in made], feeds)
        return Path(tf.train.Saver(made).save(session, str(folder / "model.ckpt"), int(variables["global_step"])))


def read_checkpoint(prefix: Path) -> Arrays:
    """Every variable of a checkpoint."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(prefix))
    return {name: np.asarray(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()}
