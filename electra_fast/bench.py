"""Stock transformers beside the fast model, in inference and training. For `electra-fast bench`."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
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
    is_multiple_choice,
    labels_of,
    load_stock,
    on_device_of,
    packed,
    random_batch,
    read_batches,
    versions,
)

if TYPE_CHECKING:
    from rich.console import Console

# How many of the 872 sentences of SST-2's development set have 0, 1, 2, ... tokens, [CLS] and [SEP] included, in
# bert-base-uncased's vocabulary.
SENTENCE_LENGTHS = (
    *(0, 0, 0, 0, 2, 1, 2, 7, 12, 12, 22, 17, 28, 20, 28, 23, 23, 23, 34, 29, 38, 29, 31, 25, 30, 37, 31, 33),
    *(27, 26, 27, 23, 24, 16, 21, 21, 15, 13, 12, 17, 17, 18, 8, 4, 14, 3, 3, 5, 4, 5, 2, 1, 2, 4, 2, 1),
)
LEARNING_RATE = 1e-5
_BUSY = 1.0  # a load average above which others use the machine


class Call(NamedTuple):
    """One forward pass, or one training step."""

    inputs: Arguments
    labels: Arguments


class Timed(NamedTuple):
    """A line of the table: seconds a round of both, in the order of the rounds, and what a round does."""

    what: str
    stock: list[float]
    fast: list[float]
    batches: int
    tokens: int  # real ones

    @property
    def ratio(self) -> float:
        """How many times as fast the fast model is, by medians."""
        return statistics.median(self.stock) / statistics.median(self.fast)


@dataclass(frozen=True)
class Report:
    """What was timed, how, and the times."""

    model: str
    setting: str
    rows: list[Timed]
    load: float  # average number of others' and own threads at the start


def bench(
    model: str,
    *,
    data: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = 32,
    batches: int = 4,
    max_length: int | None = None,
    rounds: int = 5,
    seed: int | None = None,
    show_progress: bool = False,
) -> Report:
    """Time a checkpoint as stock transformers and as fast model, both in float32, in alternating rounds of one run.

    Inference and training steps (forward, backward, fused AdamW; dropout as configured), each on ragged batches padded
    to their longest text, on the same texts packed for the fast model (which stock can't have: it takes the padded
    ones), and on random batches of full length without padding, half as many sequences each.

    Args:
        model: a checkpoint's folder, a run of ours, or the name of a model that the hub's cache holds.
        data: a UTF-8 file, a text a line; None: random tokens in sequences as long as the sentences of SST-2.
        device: "auto", "cpu", "cuda", ...
        threads: of the CPU; None: as many as PyTorch takes.
        batch_size: texts a batch, in the file's order.
        batches: how many, spread evenly over the file.
        max_length: longer texts are cut, and the full length; None: 128, or what the model takes.
        rounds: each times every batch once.
        seed: of the random tokens and labels; None: a fresh one.
        show_progress: a bar over the rounds on standard error.

    Raises:
        ValueError: an option is out of range, or the model or the data can't be read.
    """
    check_positive(threads=threads, batch_size=batch_size, batches=batches, rounds=rounds)
    where = choose_device(device)
    stock, folder = load_stock(model)
    longest = check_length(stock.config, max_length)
    seed = draw_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if data is None:
        ragged = sentences(stock, batch_size, batches, longest, generator)
    else:
        ragged = read_batches(data, folder, stock.config, batch_size=batch_size, max_length=longest, most=batches)
    full_size = max(1, batch_size // 2)
    full = [random_batch(stock.config, [longest] * full_size, generator)]

    stock.to(where)
    with _threads(threads):
        contests = _contests(stock, fast_twin(stock), ragged, full, generator)
        rows = list(_time_all(contests, where, rounds, show_progress=show_progress))
        threads = torch.get_num_threads()
    source = "random sentences" if data is None else f"lines of {data}"
    setting = (
        f"float32 on {where}{f', threads: {threads}' if where.type == 'cpu' else ''}; "
        f"ragged: {len(ragged)} batches of {batch_size} {source}, {_padding(ragged):.0%} padding; "
        f"full length: {full_size} x {longest}; medians of {rounds} rounds, seed {seed}; {versions()}"
    )
    return Report(describe(stock), setting, rows, load)


def render(report: Report, *, console: Console | None = None) -> None:
    """Print the table, and what in it is not faster. `console`: default standard output."""
    from rich.table import Table

    console = console or standard_console()
    console.print(report.model, markup=False)
    console.print(report.setting, markup=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("a batch")
    for title in ("stock", "fast", "times as fast", "±", "stock tokens/s", "fast tokens/s"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in report.rows:
        stock, fast = statistics.median(row.stock), statistics.median(row.fast)
        table.add_row(
            row.what,
            f"{1e3 * stock / row.batches:.1f} ms",
            f"{1e3 * fast / row.batches:.1f} ms",
            f"{row.ratio:.2f}",
            f"{_spread(row):.0%}",
            f"{row.tokens / stock:,.0f}",
            f"{row.tokens / fast:,.0f}",
        )
    console.print(table)
    slower = [f"{row.what} ({row.ratio:.2f} times as fast)" for row in report.rows if row.ratio <= 1]
    if slower:
        console.print(f"Not faster: {'; '.join(slower)}", markup=False)
    else:
        console.print("The fast model is faster in every line.")
    if report.load > _BUSY and "on cpu" in report.setting:
        console.print(
            f"Others used this machine (load average {report.load:.1f} at the start): the figures say little. Waiting "
            "threads that spin make it worse; OMP_WAIT_POLICY=PASSIVE helps."
        )


def sentences(
    model: PreTrainedModel, batch_size: int, batches: int, longest: int, generator: torch.Generator
) -> list[Batch]:
    """Batches of random tokens in sequences as long as sentences are."""
    shares = torch.tensor(SENTENCE_LENGTHS, dtype=torch.float32)
    lengths = torch.multinomial(shares, batch_size * batches, replacement=True, generator=generator).clamp(max=longest)
    return [random_batch(model.config, row, generator) for row in lengths.view(batches, batch_size).tolist()]


def infer(model: PreTrainedModel, calls: Sequence[Call]) -> None:
    model.eval()
    with torch.inference_mode():
        for inputs, _ in calls:
            model(**inputs)


def train(model: PreTrainedModel, calls: Sequence[Call], optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for inputs, labels in calls:
        outputs = model(**inputs, **labels)
        loss = outputs.loss if labels else outputs.last_hidden_state.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def make_optimizer(model: PreTrainedModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)


class _Contest(NamedTuple):
    """What is timed in turn: stock, and the fast model once or twice, by the name of its line."""

    stock: Callable[[], None]
    fast: dict[str, Callable[[], None]]
    calls: list[Call]  # stock's


def _contests(
    stock: PreTrainedModel, fast: PreTrainedModel, ragged: list[Batch], full: list[Batch], generator: torch.Generator
) -> list[_Contest]:
    def calls(batches: list[Batch], *, with_mask: bool) -> list[Call]:
        made = ((inputs_of(stock, b, with_mask=with_mask), labels_of(stock, b, generator)) for b in batches)
        return [Call(*(on_device_of(stock, each) for each in call)) for call in made]

    padded, whole = calls(ragged, with_mask=True), calls(full, with_mask=False)
    of_ragged = {"ragged, padded": padded}
    if not is_multiple_choice(stock):
        without_padding = (packed(batch, call.labels) for batch, call in zip(ragged, padded, strict=True))
        of_ragged["ragged, packed"] = [Call(*(on_device_of(fast, x) for x in call)) for call in without_padding]
    cases = ((padded, of_ragged), (whole, {"full length": whole}))

    inference = [
        _Contest(
            partial(infer, stock, stock_calls),
            {f"inference, {name}": partial(infer, fast, each) for name, each in fast_calls.items()},
            stock_calls,
        )
        for stock_calls, fast_calls in cases
    ]
    stock_optimizer, fast_optimizer = make_optimizer(stock), make_optimizer(fast)
    training = [
        _Contest(
            partial(train, stock, stock_calls, stock_optimizer),
            {f"training, {name}": partial(train, fast, each, fast_optimizer) for name, each in fast_calls.items()},
            stock_calls,
        )
        for stock_calls, fast_calls in cases
    ]
    return inference + training


def _time_all(contests: list[_Contest], device: torch.device, rounds: int, *, show_progress: bool) -> Iterator[Timed]:
    """A round of each contest after the other, so that what disturbs the machine for a while disturbs all."""
    from rich.console import Console
    from rich.progress import track

    def seconds(run: Callable[[], None]) -> float:
        start = time.perf_counter()
        run()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - start

    times: list[dict[str, list[float]]] = [{name: [] for name in ("stock", *contest.fast)} for contest in contests]
    bar = {"console": Console(stderr=True), "transient": True, "disable": not show_progress}
    for turn in track(range(rounds + 1), "Timing", **bar):
        for contest, taken in zip(contests, times, strict=True):
            for name, run in {"stock": contest.stock, **contest.fast}.items():
                taken[name].append(seconds(run))
                if turn == 0:
                    taken[name].clear()  # it allocated, and started the threads
    for contest, taken in zip(contests, times, strict=True):
        tokens = sum(_real_tokens(call) for call in contest.calls)
        for name in contest.fast:
            yield Timed(name, taken["stock"], taken[name], len(contest.calls), tokens)


def _real_tokens(call: Call) -> int:
    mask = call.inputs.get("attention_mask")
    return call.inputs["input_ids"].numel() if mask is None else int(mask.sum())


def _padding(batches: list[Batch]) -> float:
    masks = [batch.attention_mask for batch in batches]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def _spread(row: Timed) -> float:
    """Of the two, the larger interquartile range over the median."""
    if len(row.stock) < 2:
        return 0.0
    quartiles = (statistics.quantiles(times, n=4, method="inclusive") for times in (row.stock, row.fast))
    return max((high - low) / middle for low, middle, high in quartiles)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
