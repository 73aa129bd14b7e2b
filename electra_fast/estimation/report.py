"""What `electra-fast estimate` tells: the run in figures, and a row for each kind of hardware."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from electra_fast.console import standard_console
from electra_fast.data.loader import open_loader
from electra_fast.data.remote import is_url
from electra_fast.estimation.memory import TOLERANCE, Memory, fitting_micro_batch, memory_of
from electra_fast.estimation.speed import (
    ASSUMED_MFU,
    CPU,
    DEFAULT_GPUS,
    HERE,
    Speed,
    cpu_speed,
    find_hardware,
    gpu_speed,
)
from electra_fast.estimation.trial import measure_here
from electra_fast.estimation.work import BERT_VOCABULARY, Work, work_of
from electra_fast.pretraining.config import ConfigError, PretrainConfig

if TYPE_CHECKING:
    from rich.console import Console

_NARROW = 512  # hidden sizes below it multiply matrices too small for a large GPU's arithmetic to be the limit


@dataclass(frozen=True)
class Row:
    """The run on one kind of hardware.

    Attributes:
        hardware: its name.
        devices: how many share each batch.
        is_measured: whether the efficiency was measured.
        efficiency: where it comes from, in words.
        mfu: model FLOPs utilisation; None where no peak is known.
        tokens_per_second: of all devices, over the whole run.
        seconds: of the whole run.
        memory: on each device, in bytes.
        memory_available: bytes of a device; None where nobody says.
        fits: "yes", "tight" within the tolerance of the memory's formula, "no"; None where nobody says.
        micro_batch_tokens: with which it fits, where it doesn't as it is.
        cost: of all devices; None without a price.
    """

    hardware: str
    devices: int
    is_measured: bool
    efficiency: str
    mfu: float | None
    tokens_per_second: float
    seconds: float
    memory: Memory
    memory_available: int | None
    fits: str | None
    micro_batch_tokens: int | None
    cost: float | None


@dataclass(frozen=True)
class Estimate:
    """A run, the hardware asked for, and what should be known about the figures."""

    precision: str
    work: Work
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def estimate(
    config: PretrainConfig,
    *,
    hardware: Sequence[str] | None = None,
    gpus: int = 1,
    mfu: float | None = None,
    price: float | None = None,
    vocab_size: int | None = None,
) -> Estimate:
    """How long a run takes, and what it needs.

    Args:
        config: the run. Of a corpus that is on this machine, the vocabulary and the steps of an epoch count.
        hardware: names of GPUs; "cpu", this one by measurements that come with the package; "here", measured now on
            the run's device. None: some well-known GPUs, and the CPU if there is a measurement of it.
        gpus: GPUs that share each batch; a CPU's row is always of one.
        mfu: the share of a GPU's peak in use, in place of what is measured or assumed.
        price: of a device an hour.
        vocab_size: entries of the vocabulary; None: the corpus's, else BERT's.

    Raises:
        ConfigError: numbers out of range, unknown hardware, a schedule of epochs without a corpus.
    """
    _check(1 <= gpus < 2**16, f"--gpus must be between 1 and 65,535; got {gpus}")
    _check(mfu is None or 0 < mfu <= 1, f"--mfu must be above 0 and at most 1, e.g. 0.3 for 30%; got {mfu}")
    _check(price is None or 0 <= price < 1e9, f"--price must be 0 or more, of a device an hour; got {price}")
    loader = open_loader(config.data, config.training.seed, verify=False) if _has_corpus_here(config) else None
    corpus_vocabulary = loader.corpora[0].meta.vocab_size if loader else None
    work = work_of(
        config,
        vocab_size=next(size for size in (vocab_size, corpus_vocabulary, BERT_VOCABULARY) if size is not None),
        steps_per_epoch=loader.steps_per_epoch if loader else None,
    )
    speeds = _speeds(hardware, config, work, mfu)
    rows = tuple(_row(speed, config, work, 1 if speed.on_cpu else gpus, price) for speed in speeds)
    notes = _notes(config, work, speeds, rows, knows_vocabulary=bool(vocab_size or corpus_vocabulary))
    return Estimate(config.training.precision, work, rows, tuple(notes))


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _has_corpus_here(config: PretrainConfig) -> bool:
    return all(path and not is_url(path) for path in config.data.train_corpora)


def _speeds(names: Sequence[str] | None, config: PretrainConfig, work: Work, mfu: float | None) -> list[Speed]:
    precision = config.training.precision
    if names is None:
        cpu = cpu_speed(work, precision)
        return [
            *([cpu] if cpu else []),
            *(gpu_speed(find_hardware(name), work, precision, mfu) for name in DEFAULT_GPUS),
        ]
    # A name that is wrong is told before anything is measured.
    gpus = {name: find_hardware(name) for name in names if name.lower() not in (HERE, CPU)}
    speeds = []
    for name in names:
        if name in gpus:
            speed = gpu_speed(gpus[name], work, precision, mfu)
        elif name.lower() == HERE:
            speed = measure_here(config, work)
        else:
            speed = cpu_speed(work, precision)
            _check(
                speed is not None,
                f"no measurement of this CPU with so many threads in {precision} comes with the package: "
                f"--hardware {HERE} measures it, in some seconds",
            )
        speeds.append(speed)
    return speeds


def _row(speed: Speed, config: PretrainConfig, work: Work, devices: int, price: float | None) -> Row:
    memory = memory_of(config, work, gpus=devices, on_cpu=speed.on_cpu)
    seconds = work.flops / (speed.flops_per_second * devices)
    fits, pieces = None, None
    if speed.memory_bytes is not None:
        fits = _fits(memory.total, speed.memory_bytes)
        if fits == "no":
            least = speed.memory_bytes / (1 + TOLERANCE)
            pieces = fitting_micro_batch(config, work, least, gpus=devices, on_cpu=speed.on_cpu)
    return Row(
        hardware=speed.hardware,
        devices=devices,
        is_measured=speed.is_measured,
        efficiency=speed.source,
        mfu=speed.mfu,
        tokens_per_second=work.tokens / seconds,
        seconds=seconds,
        memory=memory,
        memory_available=speed.memory_bytes,
        fits=fits,
        micro_batch_tokens=pieces,
        cost=None if price is None else price * devices * seconds / 3600,
    )


def _fits(needed: int, available: int) -> str:
    if needed * (1 + TOLERANCE) <= available:
        return "yes"
    return "tight" if needed <= available * (1 + TOLERANCE) else "no"


def _notes(
    config: PretrainConfig, work: Work, speeds: Sequence[Speed], rows: Sequence[Row], *, knows_vocabulary: bool
) -> list[str]:
    """What a reader of the figures should know, the most useful first."""
    precision, on_gpus = config.training.precision, [speed for speed in speeds if not speed.on_cpu]
    notes = []
    if precision == "float32" and on_gpus:
        notes.append("GPUs multiply 16-bit numbers several times as fast: --training.precision bfloat16")
    old = [speed.hardware for speed in on_gpus if speed.gpu and not speed.gpu.has_bfloat16]
    if precision == "bfloat16" and old:
        notes.append(f"{', '.join(old)}: no tensor cores for bfloat16; the figures are float16's")
    pieces = {row.micro_batch_tokens for row in rows if row.fits == "no"}
    if pieces - {None}:
        most = max(pieces - {None})
        notes.append(
            f"Where a batch does not fit, --training.micro_batch_tokens {min(pieces - {None})}"
            + (f" to {most}, as the row says," if len(pieces - {None}) > 1 else "")
            + " computes it in pieces, for the same result"
        )
    if None in pieces and config.training.parallel != "fsdp":
        notes.append("Where not even one sequence fits, --training.parallel fsdp shares weights out among GPUs")
    assumed = [speed for speed in on_gpus if not speed.is_measured]
    if assumed:
        notes.append(
            "Nobody has measured the rows that say assumed: published encoders reach 15 to 33% MFU on H100, of which "
            f"{ASSUMED_MFU:.0%} is taken; --mfu sets another, --hardware here measures"
        )
    if assumed and work.model.discriminator.config.hidden_size < _NARROW:
        notes.append("Matrices as narrow as this model's keep large GPUs waiting for memory: expect less than assumed")
    if any(row.devices > 1 for row in rows):
        notes.append("Several GPUs count as so many times one: what they send one another takes no time here")
    if any(phase.patience is not None for phase in config.phases):
        notes.append("Phases with patience may end sooner")
    if not knows_vocabulary:
        notes.append(f"A vocabulary of {work.vocab_size:,}, BERT's, is taken: --vocab_size or --data.train say another")
    notes.append("Sequences count as full: shorter documents make less work. Evaluations and checkpoints come on top")
    notes.append(
        f"Memory is a formula, within {TOLERANCE:.0%} of peaks measured on a CPU, not checked on a GPU; the process "
        "and CUDA's libraries come on top"
    )
    return notes


def as_json(result: Estimate) -> dict[str, Any]:
    """All figures, under names with units; bytes, seconds and FLOPs are whole units."""
    work = result.work
    parts = [asdict(part) | {"flops_per_step": part.flops_per_step, "tokens": part.tokens} for part in work.parts]
    rows = [asdict(row) | {"hours": row.seconds / 3600, "memory_bytes": row.memory.total} for row in result.rows]
    return {
        "precision": result.precision,
        "vocab_size": work.vocab_size,
        "parameters": {"all": work.parameters, "generator": work.generator, "discriminator": work.discriminator},
        "steps": work.steps,
        "tokens": work.tokens,
        "flops": work.flops,
        "parts": parts,
        "hardware": rows,
        "notes": list(result.notes),
    }


def render(result: Estimate, *, console: Console | None = None) -> None:
    """Print it as tables. `console`: default standard output."""
    console = console or standard_console()
    work = result.work
    console.print(
        f"{work.parameters / 1e6:.1f} million parameters (generator {work.generator / 1e6:.1f}, discriminator "
        f"{work.discriminator / 1e6:.1f}, what they share in both), {result.precision}"
    )
    console.print(f"{work.tokens:.3g} tokens in {work.steps:,} steps, {work.flops:.3g} FLOPs\n")
    console.print(
        _table(
            {
                "part": part.objective,
                "steps": f"{part.steps:,}",
                "length": str(part.max_length),
                "tokens a step": f"{part.tokens_per_step:,}",
                "MFLOP a token": f"{part.flops_per_token / 1e6:,.1f}",
                "TFLOP a step": f"{part.flops_per_step / 1e12:,.3g}",
            }
            for part in work.parts
        )
    )
    console.print()
    console.print(_table(_cells(row) for row in result.rows))
    for note in result.notes:
        console.print(f"- {note}", markup=False)


def _cells(row: Row) -> Mapping[str, str]:
    cells = {
        "hardware": row.hardware if row.devices == 1 else f"{row.devices} x {row.hardware}",
        "tokens/s": f"{row.tokens_per_second:,.0f}",
        "takes": _duration(row.seconds),
        "memory": f"{row.memory.total / 1e9:.1f} GB",
        "fits": _fits_cell(row),
    }
    if row.cost is not None:
        cells["cost"] = f"{row.cost:,.2f}"
    return cells | {"efficiency": row.efficiency}


def _fits_cell(row: Row) -> str:
    if row.fits is None:
        return "?"
    said = row.fits if row.micro_batch_tokens is None else f"no; {row.micro_batch_tokens} tokens at once do"
    return f"{said} (of {row.memory_available / 1e9:.0f})"


def _duration(seconds: float) -> str:
    """Hours, with days where there are many, minutes where there are few."""
    hours = seconds / 3600
    if hours < 1:
        return f"{seconds / 60:.1f} min"
    return f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h = {hours / 24:,.1f} d"


def _table(rows: Any) -> Any:
    from rich.table import Table

    rows = list(rows)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for number, title in enumerate(rows[0]):
        is_text = number == 0 or title in ("fits", "efficiency")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=title != "efficiency")
    for row in rows:
        table.add_row(*row.values())
    return table


def print_json(result: Estimate) -> None:
    print(json.dumps(as_json(result), indent=2))
