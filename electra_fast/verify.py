"""Is the fast model right? Its logits and gradients beside stock transformers, and both beside float64.

For `electra-fast verify`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from electra_fast.console import standard_console
from electra_fast.twins import (
    Arguments,
    Batch,
    check_length,
    check_positive,
    choose_device,
    describe,
    draw_seed,
    fast_twin,
    inputs_of,
    labels_of,
    load_stock,
    on_device_of,
    random_batch,
    read_batches,
    versions,
)

if TYPE_CHECKING:
    from rich.console import Console

BATCH_SIZE = 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# In float32 the fast model is this near to stock: logits where they are of size 1, gradients by their norm.
LOGITS_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-4
ROUNDINGS = 4  # that the fast model's error may have above twice stock's
# Of the whole gradient's norm; what is smaller may be nothing but rounding. Times the tolerance it is 8 roundings in
# float32: a gradient of one number is a sum whose terms may cancel, and rounding goes with the terms.
SMALL_SHARE = 1e-2

Models = tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel]  # stock, fast, float64


class Errors(NamedTuple):
    """Over all batches: of logits the largest, of a parameter's gradients the norms."""

    difference: float  # of fast to stock
    stock: float  # of stock to float64
    fast: float
    size: float  # of the truth


class Check(NamedTuple):
    """A line of the table; NaN passes nothing."""

    what: str
    difference: float  # of fast to stock
    allowed_difference: float | None  # None: any, in half precision
    stock_error: float  # to float64
    fast_error: float
    allowed_error: float

    @property
    def severity(self) -> float:
        """At most 1 where it passes."""
        ratios = [_ratio(self.fast_error, self.allowed_error)]
        if self.allowed_difference is not None:
            ratios.append(_ratio(self.difference, self.allowed_difference))
        return math.inf if any(map(math.isnan, ratios)) else max(ratios)

    @property
    def passed(self) -> bool:
        return self.severity <= 1


@dataclass(frozen=True)
class Verification:
    """What was compared, how, and what was found."""

    model: str
    setting: str
    checks: list[Check]
    left_out: list[str]  # logits and parameters for which stock itself gives NaN or infinities

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)


def verify(
    model: str,
    *,
    data: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    batches: int = 4,
    max_length: int | None = None,
    seed: int | None = None,
) -> Verification:
    """Compare a checkpoint's fast model with stock transformers, both in `dtype` with dropout off, and with float64.

    Three rules, of which the first two are for float32 only:

    - logits differ from stock's by at most 2e-5, times the largest logit if that is above 1;
    - the gradient of each parameter differs from stock's by at most 1e-4 of its own norm and a hundredth of the whole
      gradient's: of a gradient that is zero in theory, such as a key bias's, rounding is all there is;
    - the error to float64, whose weights are those of `dtype`, is at most twice stock's, plus four roundings in `dtype`
      of the largest logit (of 1, if that is more), or of the whole gradient, since stock's error of a few logits, or of
      a gradient of one number, may be small by chance.

    Args:
        model: a checkpoint's folder, a run of ours, or the name of a model that the hub's cache holds.
        data: a UTF-8 file, a text a line; None: random tokens in sequences of random length, padded on the right and
            on the left in turn.
        dtype: "float32", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda", ...
        batches: how many, of 8 sequences each.
        max_length: the longest sequence; None: 128, or what the model takes.
        seed: of the random tokens and labels; None: a fresh one.

    Raises:
        ValueError: an option is out of range, or the model or the data can't be read.
    """
    if dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    check_positive(batches=batches)
    where = choose_device(device)
    stock, folder = load_stock(model)
    longest = check_length(stock.config, max_length)
    seed = draw_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    if data is None:
        texts = list(_random_batches(stock, batches, longest, generator))
    else:
        texts = read_batches(data, folder, stock.config, batch_size=BATCH_SIZE, max_length=longest, most=batches)

    stock.to(where, DTYPES[dtype])
    models = (stock, fast_twin(stock), copy.deepcopy(stock).double())
    logits: dict[str, Errors] = {}
    gradients: dict[str, Errors] = {}
    for batch in texts:
        inputs = _inputs(stock, batch, generator)
        labels = labels_of(stock, batch, generator)
        for name, errors in _logit_errors(models, inputs):
            logits[name] = Errors(*map(_larger, logits.get(name, errors), errors))
        for name, errors in _gradient_errors(models, inputs, labels, seed):
            gradients[name] = Errors(*map(math.hypot, gradients.get(name, Errors(0, 0, 0, 0)), errors))
    what = f"{len(texts)} batches of {BATCH_SIZE} {'random sequences' if data is None else f'lines of {data}'}"
    setting = f"{dtype} on {where}, {what} of up to {longest} tokens, seed {seed}; {versions()}"
    left_out = [name for name, errors in (*logits.items(), *gradients.items()) if not math.isfinite(errors.stock)]
    checks = [_check_logits(name, logits[name], stock.dtype) for name in logits if name not in left_out]
    gradients = {name: errors for name, errors in gradients.items() if name not in left_out}
    checks += _check_gradients(gradients, stock.dtype) if gradients else []
    return Verification(describe(stock), setting, checks, left_out)


def render(result: Verification, *, console: Console | None = None) -> None:
    """Print the table and the verdict. `console`: default standard output."""
    from rich.table import Table

    console = console or standard_console()
    console.print(result.model, markup=False)
    console.print(result.setting, markup=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("largest")
    for title in ("fast to stock", "allowed", "stock to float64", "fast to float64", "allowed", ""):
        table.add_column(title, justify="right", no_wrap=True)
    for check in result.checks:
        numbers = (check.difference, check.allowed_difference, check.stock_error, check.fast_error, check.allowed_error)
        cells = ["" if number is None else f"{number:.1e}" for number in numbers]
        table.add_row(check.what, *cells, "pass" if check.passed else "FAIL")
    console.print(table)
    if result.left_out:
        count = len(result.left_out)
        console.print(f"Left out, since stock itself gives no finite numbers there: {result.left_out[0]}", end="")
        console.print(f" and {count - 1} more" if count > 1 else "")
    if result.passed:
        console.print("pass: the fast model gives stock's results")
    else:
        console.print("FAIL: the fast model is further off than it may be; please report it with these lines")


def _random_batches(model: PreTrainedModel, count: int, longest: int, generator: torch.Generator) -> Iterator[Batch]:
    for index in range(count):
        lengths = torch.randint(1, longest + 1, (BATCH_SIZE,), generator=generator).tolist()
        yield random_batch(model.config, [*lengths[1:], longest], generator, left=index % 2 == 1)


def _inputs(model: PreTrainedModel, batch: Batch, generator: torch.Generator) -> Arguments:
    inputs = inputs_of(model, batch)
    types = max(model.config.type_vocab_size, 1)
    inputs["token_type_ids"] = torch.randint(0, types, inputs["input_ids"].shape, generator=generator)
    return inputs


def _logit_errors(models: Models, inputs: Arguments) -> Iterator[tuple[str, Errors]]:
    """For each result of floats, e.g. "logits", without what is at padding."""
    with torch.no_grad():
        results = [model(**on_device_of(model, inputs)) for model in models]
    mask = inputs["attention_mask"].to(models[0].device)
    for name in results[0]:
        if isinstance(results[0][name], Tensor):
            stock, fast, truth = (_without_padding(result[name], mask).double() for result in results)
            sizes = (fast - stock, stock - truth, fast - truth, truth)
            yield name, Errors(*(float(torch.linalg.vector_norm(x, torch.inf)) if x.numel() else 0.0 for x in sizes))


def _gradient_errors(models: Models, inputs: Arguments, labels: Arguments, seed: int) -> Iterator[tuple[str, Errors]]:
    for model in models:
        _loss(model, on_device_of(model, inputs), on_device_of(model, labels), seed).backward()
    for name, truth in models[2].named_parameters():
        stock, fast = (model.get_parameter(name) for model in models[:2])
        s, f, t = (torch.zeros_like(truth) if x.grad is None else x.grad.double() for x in (stock, fast, truth))
        yield name, Errors(*(float(torch.linalg.vector_norm(x)) for x in (f - s, s - t, f - t, t)))
    for model in models:
        model.zero_grad()


def _loss(model: PreTrainedModel, inputs: Arguments, labels: Arguments, seed: int) -> Tensor:
    """That of the head; without one, the sum of all results with random weights."""
    outputs = model(**inputs, **labels)
    if labels:
        return outputs.loss
    generator = torch.Generator().manual_seed(seed)
    results = [_without_padding(x, inputs["attention_mask"]) for x in outputs.values() if isinstance(x, Tensor)]
    return sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in results)


def _without_padding(x: Tensor, mask: Tensor) -> Tensor:
    return x[mask == 1] if x.shape[: mask.dim()] == mask.shape else x


def _check_logits(name: str, errors: Errors, dtype: torch.dtype) -> Check:
    size = max(1.0, errors.size)
    return Check(
        what=name.replace("_", " "),
        difference=errors.difference,
        allowed_difference=LOGITS_TOLERANCE * size if dtype == torch.float32 else None,
        stock_error=errors.stock,
        fast_error=errors.fast,
        allowed_error=2 * errors.stock + ROUNDINGS * torch.finfo(dtype).eps * size,
    )


def _check_gradients(gradients: dict[str, Errors], dtype: torch.dtype) -> list[Check]:
    """The whole gradient, and the parameter that is nearest to what is allowed, or furthest beyond; all relative."""
    whole = Errors(*(math.hypot(*column) for column in zip(*gradients.values(), strict=True)))

    def check(what: str, errors: Errors) -> Check:
        size = errors.size + SMALL_SHARE * whole.size or 1.0
        return Check(
            what=what,
            difference=errors.difference / size,
            allowed_difference=GRADIENT_TOLERANCE if dtype == torch.float32 else None,
            stock_error=errors.stock / size,
            fast_error=errors.fast / size,
            allowed_error=(2 * errors.stock + ROUNDINGS * torch.finfo(dtype).eps * whole.size) / size,
        )

    parameters = [check(f"gradient of {name}", errors) for name, errors in gradients.items()]
    return [check("whole gradient", whole), max(parameters, key=lambda each: each.severity)]


def _larger(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def _ratio(value: float, allowed: float) -> float:
    if value == allowed == 0:
        return 0.0
    return value / allowed if allowed else math.inf
