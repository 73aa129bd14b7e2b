"""The weights of a checkpoint in transformers' layout, ELECTRA's or BERT's, under ELECTRA's names."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig
from transformers.models.electra.configuration_electra import ElectraConfig

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
WORD_EMBEDDINGS = "electra.embeddings.word_embeddings.weight"
PROJECTION = "generator_lm_head.weight"
PROJECTION_BIAS = "generator_lm_head.bias"

# As TensorFlow called what PyTorch calls weight and bias: in old checkpoints.
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
_PREFIXES = {
    "bert.": "electra.",
    "cls.predictions.transform.": "generator_predictions.",
    "cls.predictions.decoder.": "generator_lm_head.",
    "cls.predictions.bias": PROJECTION_BIAS,
}
_BARE = ("embeddings.", "embeddings_project.", "encoder.", "pooler.")  # of a model that was saved without a head
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_OTHERS = ("hidden_act", "layer_norm_eps", "max_position_embeddings", "type_vocab_size", "vocab_size")


@dataclass(frozen=True)
class TowerFiles:
    """A tower as it lies in `folder`: its config as ELECTRA's, and the files of its weights."""

    folder: Path
    config: ElectraConfig
    files: tuple[Path, ...]
    has_our_head: bool  # whether a head for masked language modelling would be computed as ELECTRA's

    def read(self) -> dict[str, Tensor]:
        """The weights, float32, under ELECTRA's names; what it has no name for keeps its own.

        The word embeddings are the generator's output projection too, which has no name here.

        Raises:
            ValueError: a file is damaged, holds what is no floating-point number, or an output projection of its own.
        """
        weights: dict[str, Tensor] = {}
        for file in self.files:
            for theirs, tensor in read_tensors(file).items():
                name = _our_name(theirs) if self.has_our_head or not theirs.startswith("cls.") else theirs
                if name in weights and not torch.equal(weights[name], tensor):
                    raise ValueError(f"{file}: {theirs} is there twice, under another name too, and not the same")
                weights[name] = tensor
        projection = weights.pop(PROJECTION, None)
        if projection is not None and not torch.equal(projection, weights.get(WORD_EMBEDDINGS, projection)):
            raise ValueError(
                f"{self.folder} has an output projection that is not its word embeddings (tie_word_embeddings is "
                "false), which a generator here can't have"
            )
        return weights


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The weights of a safetensors file in float32; not its buffers.

    Raises:
        ValueError: it is damaged, or holds other than finite floating-point numbers.
    """
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from error
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(_BUFFERS)}
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise ValueError(f"{file}: {name} is {tensor.dtype}: give a checkpoint that is not quantised")
        if not tensor.isfinite().all():
            raise ValueError(f"{file}: {name} holds infinite numbers or NaN")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _our_name(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        name = re.sub(rf"{re.escape(old)}$", new, name)
    for theirs, ours in _PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return f"electra.{name}" if name.startswith(_BARE) else name


def find_tower(folder: Path) -> TowerFiles:
    """What is in a folder: of `ElectraModel`, `BertModel`, or either with any head on it. Reads no weights.

    Raises:
        ValueError: there is no such folder, no config.json or safetensors in it, or it is of another kind of model.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder: download the model first, e.g. `hf download NAME --local-dir FOLDER`, and give "
            "its folder; nothing is downloaded here"
        )
    config, kind = _read_config(folder)
    has_our_head = kind == "electra" or config.hidden_act == "gelu"  # BERT's takes hidden_act, ELECTRA's is always gelu
    if (folder / WEIGHTS_FILE).is_file():
        return TowerFiles(folder, config, (folder / WEIGHTS_FILE,), has_our_head)
    if (folder / INDEX_FILE).is_file():
        return TowerFiles(folder, config, _shards(folder), has_our_head)
    others = [path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt*", "*.h5") for path in folder.glob(pattern)]
    if not others:
        raise ValueError(f"{folder} holds no weights: {WEIGHTS_FILE} is missing")
    raise ValueError(
        f"{folder} holds no {WEIGHTS_FILE} but {min(others)}, which is not read: loading a pickle can run code. Where "
        "you trust it, convert it: load it with transformers and save_pretrained() it into another folder; "
        "`electra-fast convert` reads TensorFlow's checkpoints"
    )


def _read_config(folder: Path) -> tuple[ElectraConfig, str]:
    """As ELECTRA's, and of which kind it was."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no config.json, so it is no checkpoint of transformers")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind = content.get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from error
    if kind not in ("electra", "bert"):
        raise ValueError(f"{folder} is of model_type {str(kind)[:40]}: a tower can start from ELECTRA or BERT")
    if content.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"{folder} has {content['position_embedding_type']} positions: only absolute ones are here")
    # What config.json leaves out is the default of its kind of model.
    given = {**(ElectraConfig if kind == "electra" else BertConfig)().to_dict(), **content}
    try:
        embedding_size = given["embedding_size" if kind == "electra" else "hidden_size"]
        names = (*_SIZES, *_OTHERS)
        return ElectraConfig(embedding_size=embedding_size, **{name: given[name] for name in names}), kind
    except Exception as error:  # huggingface_hub's validation raises errors of its own
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from error


def _shards(folder: Path) -> tuple[Path, ...]:
    file = folder / INDEX_FILE
    try:
        names = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
        shards = tuple(folder / name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from error
    for name, shard in zip(names, shards, strict=True):
        if Path(name).name != name or not name.endswith(".safetensors"):  # it could lead anywhere
            raise ValueError(f"{file} names {name[:80]}, which is no safetensors file of that folder")
        if not shard.is_file():
            raise ValueError(f"{shard} is missing")
    return shards
