"""From a model's folder to a package for other programs: written aside, checked, and only then put in its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import electra_fast
from electra_fast.arguments import nearest
from electra_fast.data.tokenizer import load_tokenizer, save_tokenizer
from electra_fast.deployment import FORMATS, readme
from electra_fast.deployment.accuracy import HEADS, Accuracy, measure
from electra_fast.deployment.check import Check, compare, raise_if_wrong, random_features, text_features
from electra_fast.deployment.graph import ports
from electra_fast.deployment.manifest import Manifest, Port, write_manifest
from electra_fast.deployment.runtime import load
from electra_fast.files import flush
from electra_fast.finetuning.model import FineTuned, check_tokenizer, find_pretrained, load_finetuned
from electra_fast.finetuning.task import TASK_FILE, Example, Feature, Task, load_task
from electra_fast.models.optimize import optimize
from electra_fast.twins import draw_seed, has_tokenizer, load_stock

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TABLES = (".csv", ".tsv", ".jsonl")
_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """A package that was written: what was compared, and how large it is."""

    folder: Path
    check: Check
    accuracy: Accuracy | None
    bytes_before: int
    bytes_after: int


def export_model(
    model: str | Path,
    output: str | Path,
    *,
    format: str = "onnx",
    data: str | Path | None = None,
    per_channel: bool = True,
    weight_bits: int = 8,
    seed: int | None = None,
) -> Exported:
    """Write a model as a package, after running the package and the model on the same inputs.

    In float32 outputs must agree within 1e-4, times the largest output where that is above 1. The package is in the
    folder `output` if and only if they do. Sequences are padded, [B, S], of any number and length.

    Args:
        model: folder of an ELECTRA or BERT checkpoint with any head, of a fine-tuning run or of a run; or the name of a
            model in the Hugging Face cache.
        output: a new folder: graph, config, tokenizer, the task where it was fine-tuned here, `deployment.json`.
        format: key of `FORMATS`.
        data: what to compare on: UTF-8 text, a text a line; or, for a model that was fine-tuned here, labelled examples
            as its task reads them, on which the task's metric is measured too. None: random tokens.
        per_channel: for "onnx-int8": a scale for each column of a weight.
        weight_bits: for "onnx-int8": 8, or 7 for x86 processors without VNNI.
        seed: of random tokens; None: a fresh one.

    Raises:
        ValueError: an argument is wrong, the model can't be read or exported, the outputs differ, or packages of the
            extra `export` are not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}{nearest(format, FORMATS)} (formats: {', '.join(FORMATS)})")
    if weight_bits not in (7, 8):
        raise ValueError(f"weight_bits must be 7 or 8; got {weight_bits}")
    output = Path(output)
    if output.exists() or output.is_symlink():
        raise ValueError(f"{output} exists: choose a new folder")
    write = _writer(format, per_channel=per_channel, weight_bits=weight_bits)
    fast, tokenizer, task, folder = _load(model)
    inputs = _inputs(fast, folder, tokenizer, task, None if data is None else Path(data), draw_seed(seed))

    aside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # of a call that was cut short
    try:
        aside.mkdir(parents=True)
        of_inputs, of_outputs = ports(fast)
        manifest = Manifest(
            kind=format,
            file=write(fast, of_outputs, aside),
            architecture=type(fast).__name__,
            inputs=of_inputs,
            outputs=of_outputs,
            max_length=fast.config.max_position_embeddings,
            pad_token_id=fast.config.pad_token_id or 0,
            versions=_versions(),
            check={},
        )
        write_manifest(manifest, aside)
        deployed = load(aside)
        check = compare(fast, deployed, inputs.features[: inputs.compared], inputs.source)
        raise_if_wrong(check, exact=format != "onnx-int8")
        accuracy = None
        if inputs.examples is not None:
            accuracy = measure(FineTuned(fast, tokenizer, task), deployed, inputs.examples, inputs.features)
        figures = {"check": asdict(check), "accuracy": None if accuracy is None else asdict(accuracy)}
        manifest = Manifest(**(vars(manifest) | figures))
        write_manifest(manifest, aside)
        fast.config.save_pretrained(aside)
        if tokenizer is not None:
            save_tokenizer(tokenizer, aside)
        if task is not None:
            task.save(aside)
        readme.write(manifest, aside)
        size = (aside / manifest.file).stat().st_size
        aside.rename(output)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    flush(output.parent)
    return Exported(output, check, accuracy, 4 * fast.num_parameters(), size)


@dataclass(frozen=True)
class _Inputs:
    features: list[Feature]
    compared: int  # as many of them, from the front
    source: str
    examples: list[Example] | None = None  # labelled


def _load(name: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None, Task | None, Path]:
    """A fast model with what its folder holds beside it.

    Raises:
        ValueError: there is none, or one that can't be exported.
    """
    folder = find_pretrained(str(name))
    if (folder / TASK_FILE).is_file():
        task = load_task(folder)
        if task.head not in HEADS:
            raise ValueError(
                f"{folder} was fine-tuned for {task.name} with the head {task.head}, which can't be exported"
            )
        return *load_finetuned(folder), folder
    model, _ = load_stock(str(folder))
    if model.config.is_decoder or type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        raise ValueError(f"{folder} holds a decoder, {type(model).__name__}: only encoders can be exported")
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    if tokenizer is not None:
        check_tokenizer(tokenizer, model.config, folder)
    return optimize(model), tokenizer, None, folder


def _writer(
    format: str, *, per_channel: bool, weight_bits: int
) -> Callable[[PreTrainedModel, tuple[Port, ...], Path], str]:
    """What writes the graph; raises ValueError where a package that it needs is not installed."""
    if format == "torch-export":
        from electra_fast.deployment.torch_program import write_torch_program

        return write_torch_program
    from electra_fast.deployment.onnx_graph import require_onnx, write_onnx
    from electra_fast.deployment.onnx_int8 import write_onnx_int8

    require_onnx()
    if format == "onnx":
        return write_onnx
    return lambda model, outputs, folder: write_onnx_int8(
        model, outputs, folder, per_channel=per_channel, bits=weight_bits
    )


def _inputs(
    model: PreTrainedModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    task: Task | None,
    data: Path | None,
    seed: int,
) -> _Inputs:
    longest = model.config.max_position_embeddings
    if data is None:
        features = random_features(model, longest, seed)
        return _Inputs(features, len(features), f"{len(features)} sequences of random tokens, seed {seed}")
    if tokenizer is None:
        raise ValueError(f"{folder} holds no tokenizer: put it there, or leave out --data")
    if task is not None and data.suffix in task.endings:
        examples = task.read(data, "dev")
        features = task.encode(examples, tokenizer, training=False)
        compared = min(200, len(features))
        return _Inputs(features, compared, f"the first {compared} examples of {data}", examples)
    if data.suffix in _TABLES:
        raise ValueError(
            f"{data}: {folder} holds no {TASK_FILE} that says how to read it: give a model that electra-fast has "
            "fine-tuned, or text with a text a line"
        )
    features = text_features(model, tokenizer, data, longest)
    return _Inputs(features, len(features), f"{len(features)} lines of {data}")


def _versions() -> dict[str, str]:
    versions = {"electra-fast": electra_fast.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # of a format that does not need it
            continue
    return versions
