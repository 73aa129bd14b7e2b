"""What runs here: versions, devices, and the backend of each operator, for `electra-fast info` and bug reports."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from electra_fast.console import standard_console

if TYPE_CHECKING:
    from rich.console import Console

FLASH_ATTN_NOTE = (
    "flash-attn has not been run with this code: its signature is checked where it is installed, and what is passed to "
    "it is tested with a stand-in."
)
_PACKAGES = ("torch", "transformers", "triton", "numpy", "tokenizers", "flash-attn")


@dataclass(frozen=True)
class OperatorBackend:
    """One operator on one type of device.

    Args:
        operator: its name in `electra_fast.ops`.
        device_type: "cpu" or "cuda".
        default: the backend that runs it when none is asked for.
        missing: every backend that can't run it, and why.
    """

    operator: str
    device_type: str
    default: str
    missing: dict[str, str]


@dataclass(frozen=True)
class AttentionBackend:
    """What attends in the models (`attn_implementation` as it comes, "sdpa") on one type of device.

    Args:
        device_type: "cpu" or "cuda".
        dtype: of the hidden states, e.g. "bfloat16".
        head_dim: the size of a head.
        has_dropout: whether attention has dropout, as in training.
        backend: one of `electra_fast.attention.BACKENDS`.
        missing: every backend that comes before it, and why it can't.
    """

    device_type: str
    dtype: str
    head_dim: int
    has_dropout: bool
    backend: str
    missing: dict[str, str]


@dataclass(frozen=True)
class Info:
    """Versions (None where a package is not installed), devices in words, the operators, and what attends."""

    versions: dict[str, str | None]
    devices: list[str]
    operators: list[OperatorBackend]
    attention: list[AttentionBackend]
    attention_note: str = FLASH_ATTN_NOTE


def collect() -> Info:
    """Look at this installation and machine; imports PyTorch, and Triton where the operators would."""
    import torch

    import electra_fast
    from electra_fast.attention import report
    from electra_fast.ops._backends import availability

    versions = {"electra-fast": electra_fast.__version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in _PACKAGES}
    versions["torch"] = torch.__version__  # with its build, e.g. +cpu, which the package's metadata may lack
    devices = [f"cpu: {cpu_model()}, {os.cpu_count()} logical cores, {torch.get_num_threads()} threads in use"]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        devices.append(
            f"cuda:{index}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
        )
    rows = availability()
    operators = []
    for row in rows:
        if row.is_default:
            same = [r for r in rows if (r.operator, r.device_type) == (row.operator, row.device_type)]
            missing = {r.backend: r.missing for r in same if r.missing is not None}
            operators.append(OperatorBackend(row.operator, row.device_type, row.backend, missing))
    attention = [
        AttentionBackend(
            device_type=use.device.type,
            dtype=str(use.dtype).removeprefix("torch."),
            head_dim=use.head_dim,
            has_dropout=use.has_dropout,
            backend=backend,
            missing=missing,
        )
        for use, backend, missing in report()
    ]
    return Info(versions, devices, operators, attention)


def render(info: Info, *, as_json: bool = False, console: Console | None = None) -> None:
    """Print `info` as tables, or as one JSON object. `console`: default standard output."""
    if as_json:
        print(json.dumps(asdict(info), indent=2))
        return
    from rich.table import Table

    console = console or standard_console()
    versions = Table.grid(padding=(0, 2))
    for name, version in info.versions.items():
        versions.add_row(name, version or "not installed")
    console.print("Versions", style="bold")
    console.print(versions)
    console.print("\nDevices", style="bold")
    for device in info.devices:
        console.print(device, markup=False)
    console.print("\nOperators", style="bold")
    operators = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("operator", "device", "runs on"):
        operators.add_column(column, no_wrap=True)
    operators.add_column("why not")
    for row in info.operators:
        operators.add_row(row.operator, row.device_type, row.default, _reasons(row.missing))
    console.print(operators)
    first = info.attention[0]
    console.print(f"\nAttention in the models, {first.dtype}, heads of {first.head_dim}", style="bold")
    attention = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("device", "dropout", "runs on"):
        attention.add_column(column, no_wrap=True)
    attention.add_column("why not those before it")
    for row in info.attention:
        dropout = "with" if row.has_dropout else "without"
        attention.add_row(row.device_type, dropout, row.backend, _reasons(row.missing))
    console.print(attention)
    console.print(info.attention_note, markup=False)
    forced = os.environ.get("ELECTRA_FAST_BACKEND")
    if forced:
        console.print(f"ELECTRA_FAST_BACKEND={forced} overrides the defaults above.", markup=False)


def _reasons(missing: dict[str, str]) -> str:
    return "\n".join(f"{backend}: {reason}" for backend, reason in missing.items())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name; what `platform` knows of it where there is no /proc/cpuinfo."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
