"""A row of the benchmarks: what was measured, and how it reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

REST = "rest"  # the group of a breakdown that takes what is left
FLOOR = "floor"  # a job's matrix products alone: not a rival but what no rival could pass
_OLD_FLOOR = "three products alone"
SLOWER = "▼"  # marks a figure of a rival that is faster than ours
_OF_STOCK = ("models", "exported")  # rooms whose plain form is stock transformers itself
# What was compiled to be faster than another contestant; slower than that one, it was set up wrongly. (Fused losses
# that save memory are none of these: to sample they make the logits again.)
_PLAIN_FORMS = {"strong": ("plain",), "stock compiled": ("stock", "plain")}
_NOISE = 1.05  # medians of one run differ by that


@dataclass(frozen=True)
class Row:
    """One operator or job on one shape. Dictionaries are by contestant: "ours", "plain" and the rivals.

    Fields with a default came later: older files of results lack them.
    """

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
    bandwidth: float | None  # bytes a second, of the fewest that must move
    copy_bandwidth: float  # bytes a second, of a plain copy on this device
    targets: dict[str, float] = field(default_factory=dict)  # the least ratio asked for, by rival
    rounds: dict[str, int] = field(default_factory=dict)
    flops: float | None = None  # of one call
    gemm_rate: float | None = None  # FLOP/s, of a large matrix product in this dtype on this device
    tokens: int | None = None  # real ones a call goes through
    breakdown: dict[str, dict[str, float]] = field(default_factory=dict)  # seconds by group; see `breakdown`
    launches: dict[str, int] = field(default_factory=dict)  # of CUDA kernels and graphs in one call

    @classmethod
    def of(cls, extra_info: dict[str, Any]) -> Row | None:
        """The row in what pytest-benchmark stored; None for a benchmark of another kind."""
        required = {each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING}
        if not required <= extra_info.keys():
            return None
        values = {each.name: extra_info[each.name] for each in fields(cls) if each.name in extra_info}
        # The first files knew one rival that a ratio was asked to, and another name for one of the floors.
        if extra_info.get("target") is not None:
            values["targets"] = {"plain": extra_info["target"]}
        for name in ("median", "spread", "peak_memory"):
            values[name] = {FLOOR if key == _OLD_FLOOR else key: value for key, value in values[name].items()}
        return cls(**values)

    def ratio(self, rival: str = "plain") -> float:
        """How many times as fast a rival ours is."""
        return self.median[rival] / self.median["ours"]

    def named(self, contestant: str) -> str:
        """A contestant in words: what "plain" is differs."""
        return "stock" if contestant == "plain" and self.room in _OF_STOCK else contestant

    @property
    def rivals(self) -> list[str]:
        return [name for name in self.median if name not in ("ours", "plain")]

    @property
    def fraction_of_copy(self) -> float | None:
        return None if self.bandwidth is None else self.bandwidth / self.copy_bandwidth

    @property
    def rate(self) -> float | None:
        """FLOP/s."""
        return None if self.flops is None else self.flops / self.median["ours"]

    @property
    def intensity(self) -> float | None:
        """FLOP for each byte that must move."""
        if self.flops is None or self.bandwidth is None:
            return None
        return self.flops / (self.bandwidth * self.median["ours"])

    @property
    def targets_met(self) -> dict[str, bool]:
        return {rival: self.ratio(rival) >= asked for rival, asked in self.targets.items()}

    @property
    def target_met(self) -> bool | None:
        """Whether all ratios asked for are reached; None where none is."""
        return all(self.targets_met.values()) if self.targets else None

    @property
    def name(self) -> str:
        """Operator, shape, dtype and direction, in words."""
        return f"{self.operator} {self.shape} {self.dtype}{self.direction_in_words}"

    @property
    def direction_in_words(self) -> str:
        """ ", inference"; "" for what most rows are."""
        return "" if self.direction == "forward + backward" else f", {self.direction}"


def shows_slower(row: Row, rival: str) -> bool:
    """Whether a rival, which the floor is not, is faster than ours."""
    return rival != FLOOR and row.ratio(rival) < 1


def slower_rows(rows: Iterable[Row]) -> list[str]:
    """A line for each row and rival that is faster than ours."""
    return [
        f"{row.name}: {row.ratio(rival):.2f} times as fast as {row.named(rival)}"
        for row in rows
        for rival in ("plain", *row.rivals)
        if shows_slower(row, rival)
    ]


def missed_targets(rows: Iterable[Row]) -> list[str]:
    """A line for each ratio that is asked for and not reached."""
    return [
        f"{row.name}: {_against(row, rival, row.ratio(rival))}; asked is {_asked(rival, row.targets[rival])}"
        for row in rows
        for rival, met in row.targets_met.items()
        if not met
    ]


def unfair_rivals(rows: Iterable[Row]) -> list[str]:
    """A line for each rival that is slower than its own plain form: the benchmark's fault, not a success of ours."""
    lines = []
    for row in rows:
        for rival, forms in _PLAIN_FORMS.items():
            form = next((name for name in forms if name in row.median), None)
            if rival in row.median and form is not None and row.median[rival] > _NOISE * row.median[form]:
                slower = row.median[rival] / row.median[form]
                lines.append(f"{row.name}: {rival} takes {slower:.2f} times as long as {row.named(form)}")
    return lines


def _against(row: Row, rival: str, ratio: float) -> str:
    return f"{1 / ratio:.3f} times the floor" if rival == FLOOR else f"{ratio:.3f} times as fast as {row.named(rival)}"


def _asked(rival: str, ratio: float) -> str:
    return f"at most {1 / ratio:.3g}" if rival == FLOOR else f"{ratio:.3g}"


def ratio_cell(row: Row, rival: str, *, show_target: bool = True) -> str:
    """The ratio to a rival, what is asked, and a mark where ours is slower or the target is missed; "" without one."""
    if rival not in row.median:
        return ""
    ratio = row.ratio(rival)
    text = f"{1 / ratio:.2f}" if rival == FLOOR else f"{ratio:.2f}"
    if shows_slower(row, rival):
        text = f"**{text}** {SLOWER}"
    if show_target and rival in row.targets:
        text += f" ({_asked(rival, row.targets[rival])}{'' if row.targets_met[rival] else ': **missed**'})"
    return text


def ratio_title(rival: str) -> str:
    return "times the floor" if rival == FLOOR else f"as fast as {rival}"


def cells(row: Row, rivals: list[str]) -> dict[str, str]:
    """Title -> text of each column; `rivals` are those that have one."""
    missed = {None: "", True: "yes", False: "**no**"}[row.target_met]
    return {
        "operator": row.operator,
        "shape": row.shape,
        "dtype": row.dtype,
        "direction": row.direction,
        "timed": "" if row.device == "cpu" else row.method,
        "rounds": str(row.rounds["ours"]) if row.rounds else "",
        "ours": duration(row.median["ours"]),
        "±": f"{row.spread['ours']:.0%}",
        "plain": duration(row.median["plain"]),
        "times as fast": ratio_cell(row, "plain", show_target=False),
        "asked": f"{row.targets['plain']:g}" if "plain" in row.targets else "",
        "met": missed,
        "as fast as": "; ".join(f"{ratio_cell(row, rival)} {rival}" for rival in row.rivals if rival != FLOOR),
        **{ratio_title(rival): ratio_cell(row, rival) for rival in rivals},
        "tokens/s": "" if row.tokens is None else f"{row.tokens / row.median['ours']:,.0f}",
        "GFLOP/s": "" if row.rate is None else f"{row.rate / 1e9:.3g}",
        "GB/s": "" if row.bandwidth is None else f"{row.bandwidth / 1e9:.3g}",
        "of copy": "" if row.fraction_of_copy is None else f"{row.fraction_of_copy:.0%}",
        "memory": size(row.peak_memory["ours"]),
        "plain's": size(row.peak_memory["plain"]),
        "launches": str(row.launches["ours"]) if row.launches else "",
    }


_TEXT = ("operator", "shape", "dtype", "direction", "timed")
_LEFT_OUT_OF_BRIEF = ("rounds", "tokens/s", "GFLOP/s", "GB/s", "memory", "plain's")


def format_table(rows: list[Row], *, markdown: bool = False, brief: bool = False) -> str:
    """The rows in columns, without those that are empty throughout.

    `brief` leaves out what the ratios do not need, and puts all rivals in one column.
    """
    rivals = list(dict.fromkeys(rival for row in rows for rival in row.rivals))
    table = [cells(row, [FLOOR] if brief else rivals) for row in rows]
    left_out = _LEFT_OUT_OF_BRIEF if brief else ("as fast as",)
    titles = [title for title in table[0] if title not in left_out and any(line[title] for line in table)]
    lines = [titles, *([line[title] for title in titles] for line in table)]
    if markdown:
        return markdown_table(lines, texts=_TEXT)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    plain = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join(plain).replace("**", "  ")


def markdown_table(lines: list[list[str]], *, texts: Iterable[str]) -> str:
    """The first line holds the titles; columns that are not among `texts` are set to the right."""
    rule = ["---" if title in texts else "---:" for title in lines[0]]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def duration(seconds: float) -> str:
    unit, factor = next(pair for pair in (("s", 1.0), ("ms", 1e-3), ("µs", 0.0)) if seconds >= pair[1])
    return f"{seconds / (factor or 1e-6):.3g} {unit}"


def size(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.3g} MB"
