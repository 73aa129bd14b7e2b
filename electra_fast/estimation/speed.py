"""How fast hardware computes a run's FLOPs, and who says so: what was measured, or an assumption that is named one."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from importlib.resources import files

import torch

from electra_fast.arguments import nearest
from electra_fast.estimation.work import BERT_VOCABULARY, Work, meta_model
from electra_fast.info import cpu_model
from electra_fast.pretraining.config import ConfigError
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.hardware import GPUS, Gpu, find_gpu
from electra_fast.pretraining.throughput import flops_of_sequences

# Published pretraining of encoders on H100 reaches 15 to 33%: NeoBERT (appendix A) 15, ModernBERT (table 3) base 26 and
# large 33; NVIDIA's ELECTRA-base on A100 22 (arithmetic on their figures, 3 times the forward pass's products).
ASSUMED_MFU = 0.25
HERE, CPU = "here", "cpu"
DEFAULT_GPUS = ("RTX-4090", "A100-80GB", "H100", "H200")


@dataclass(frozen=True)
class Speed:
    """What one device does.

    Attributes:
        hardware: its name.
        flops_per_second: in pretraining.
        peak_flops: by its data sheet; None where none is known.
        memory_bytes: that it has; None where nobody says.
        is_measured: whether flops_per_second was measured on such a device, here or before.
        source: where flops_per_second comes from, in words.
        on_cpu: whether it is a CPU.
        gpu: what is known of it, of a GPU.
    """

    hardware: str
    flops_per_second: float
    peak_flops: float | None
    memory_bytes: int | None
    is_measured: bool
    source: str
    on_cpu: bool = False
    gpu: Gpu | None = None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation."""
        return None if self.peak_flops is None else self.flops_per_second / self.peak_flops


@dataclass(frozen=True)
class Measurement:
    """A pretraining step, forward and backward without the optimizer, in a file of benchmarks/results/.

    `threads` of a CPU; None for a GPU. `seconds` a step of `sequences` x `length` tokens of a recipe's model.
    """

    processor: str
    threads: int | None
    precision: str
    recipe: str
    sequences: int
    length: int
    seconds: float
    date: str
    commit: str
    file: str

    @property
    def flops_per_second(self) -> float:
        model = meta_model(read_config(self.recipe), BERT_VOCABULARY)
        return flops_of_sequences(model, [self.length] * self.sequences, "joint") / self.seconds

    def source(self, work: Work) -> str:
        """Where, when and of what; and whether the run is something else."""
        shape = f"{self.recipe}, {self.sequences} x {self.length}"
        said = f"measured ({self.date}, commit {self.commit}, {self.file}: {shape}, without the optimizer)"
        return said if self._is_of(work) else f"{said}, scaled by FLOPs"

    def distance(self, work: Work) -> float:
        """How unlike the run it is: none where it is of the run, else by the model's size."""
        return 0.0 if self._is_of(work) else 1 + abs(math.log(meta_parameters(self.recipe) / work.parameters))

    def _is_of(self, work: Work) -> bool:
        same = {(part.objective, part.max_length) for part in work.parts} == {("joint", self.length)}
        return same and meta_parameters(self.recipe) == work.parameters


def meta_parameters(recipe: str) -> int:
    """Parameters of a recipe's model with BERT's vocabulary."""
    return sum(p.numel() for p in meta_model(read_config(recipe), BERT_VOCABULARY).parameters())


def measurements() -> list[Measurement]:
    """Those that come with the package."""
    text = (files("electra_fast.estimation") / "measured.json").read_text(encoding="utf-8")
    return [Measurement(**record) for record in json.loads(text)]


def find_hardware(name: str) -> Gpu:
    """A GPU by its name, in any case.

    Raises:
        ConfigError: there is none of that name.
    """
    for gpu in GPUS:
        if gpu.name.lower() == name.lower():
            return gpu
    names = [HERE, CPU, *(gpu.name for gpu in GPUS)]
    raise ConfigError(f"hardware {name!r} is not known{nearest(name, names)}; known are {', '.join(names)}")


def gpu_speed(gpu: Gpu, work: Work, precision: str, mfu: float | None = None) -> Speed:
    """A GPU's, measured where the package has a measurement of it and `mfu` is not given, else assumed."""
    peak = gpu.peak_flops(precision)
    known = _closest([m for m in measurements() if _is_of_gpu(m, gpu) and m.precision == precision], work)
    if known is not None and mfu is None:
        rate, source = known.flops_per_second, known.source(work)
    else:
        rate = peak * (ASSUMED_MFU if mfu is None else mfu)
        source = f"assumed {rate / peak:.0%} MFU" + (", as given" if mfu is not None else "")
    return Speed(gpu.name, rate, peak, gpu.memory_gb * 10**9, known is not None and mfu is None, source, gpu=gpu)


def _is_of_gpu(measurement: Measurement, gpu: Gpu) -> bool:
    found = find_gpu(measurement.processor)
    return measurement.threads is None and found is not None and found.model == gpu.model


def cpu_speed(work: Work, precision: str) -> Speed | None:
    """This machine's CPU, by a measurement of one of its name with as many threads; None where there is none."""
    here = (cpu_model(), torch.get_num_threads(), precision)
    known = _closest([m for m in measurements() if (m.processor, m.threads, m.precision) == here], work)
    if known is None:
        return None
    name = f"{CPU}, {known.threads} threads"
    return Speed(name, known.flops_per_second, None, physical_memory(), True, known.source(work), on_cpu=True)


def _closest(known: list[Measurement], work: Work) -> Measurement | None:
    return min(known, key=lambda measurement: measurement.distance(work), default=None)


def physical_memory() -> int | None:
    """Bytes of this machine; None where the system doesn't say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None
