"""A row of the benchmarks: what was measured, and how it reads."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Row:
    """One operator on one shape. Dictionaries are by contestant: "ours", "plain" and the rivals."""

    room: str
    operator: str
    shape: str
    dtype: str
    direction: str
    device: str
    threads: int
    method: str  # of `timing.Timer`
    median: dict[str, float]  # seconds a call
    spread: dict[str, float]  # interquartile range over median
    peak_memory: dict[str, int | None]  # bytes beside the arguments
    target: float | None  # the ratio to plain that is asked for
    bandwidth: float | None  # bytes a second, of the fewest that must move
    copy_bandwidth: float  # bytes a second, of a plain copy on this device

    @classmethod
    def of(cls, extra_info: dict[str, Any]) -> Row | None:
        """The row in what pytest-benchmark stored; None for a benchmark of another kind."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: extra_info[name] for name in names}) if names <= extra_info.keys() else None

    def ratio(self, rival: str = "plain") -> float:
        """How many times as fast as a rival ours is."""
        return self.median[rival] / self.median["ours"]

    @property
    def rivals(self) -> list[str]:
        return [name for name in self.median if name not in ("ours", "plain")]

    @property
    def fraction_of_copy(self) -> float | None:
        return None if self.bandwidth is None else self.bandwidth / self.copy_bandwidth

    @property
    def target_met(self) -> bool | None:
        return None if self.target is None else self.ratio() >= self.target


def cells(row: Row, rivals: list[str]) -> dict[str, str]:
    """Title -> text of each column; `rivals` are those that have one."""
    missed = {None: "", True: "yes", False: "**no**"}[row.target_met]
    return {
        "operator": row.operator,
        "shape": row.shape,
        "dtype": row.dtype,
        "direction": row.direction,
        "timed": "" if row.device == "cpu" else row.method,
        "ours": _seconds(row.median["ours"]),
        "±": f"{row.spread['ours']:.0%}",
        "plain": _seconds(row.median["plain"]),
        "times as fast": f"{row.ratio():.2f}",
        "asked": "" if row.target is None else f"{row.target:g}",
        "met": missed,
        **{f"as fast as {rival}": f"{row.ratio(rival):.2f}" if rival in row.median else "" for rival in rivals},
        "GB/s": "" if row.bandwidth is None else f"{row.bandwidth / 1e9:.3g}",
        "of copy": "" if row.fraction_of_copy is None else f"{row.fraction_of_copy:.0%}",
        "memory": _bytes(row.peak_memory["ours"]),
        "plain's": _bytes(row.peak_memory["plain"]),
    }


_TEXT = ("operator", "shape", "dtype", "direction", "timed")
_LEFT_OUT_OF_BRIEF = ("±", "asked", "memory", "plain's")


def format_table(rows: list[Row], *, markdown: bool = False, brief: bool = False) -> str:
    """The rows in columns, without those that are empty throughout; `brief` leaves out what the ratio does not need."""
    rivals = list(dict.fromkeys(rival for row in rows for rival in row.rivals))
    table = [cells(row, rivals) for row in rows]
    titles = [title for title in table[0] if any(line[title] for line in table)]
    titles = [title for title in titles if not brief or title not in _LEFT_OUT_OF_BRIEF]
    lines = [titles, *([line[title] for title in titles] for line in table)]
    if markdown:
        lines.insert(1, ["---" if title in _TEXT else "---:" for title in titles])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    plain = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join(plain).replace("**", "  ")


def _seconds(seconds: float) -> str:
    unit, factor = next(pair for pair in (("s", 1.0), ("ms", 1e-3), ("µs", 0.0)) if seconds >= pair[1])
    return f"{seconds / (factor or 1e-6):.3g} {unit}"


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.3g} MB"
