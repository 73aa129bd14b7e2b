"""The charts of docs/performance.md, in middle tones on no background: readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.rows import FLOOR, REST, Row, duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from benchmarks.report import Result

GREY = "#808080"
COLOURS = ("#1f9e8f", "#d98032", "#8f7fd1", "#5b8fd6", "#c4607c", "#8a9a3b", "#a9743a", "#4fa3c7", "#b06fb8", "#7a7a4f")
_CONTESTANTS = {"ours": "#1f9e8f", "plain": "#d98032", "strong": "#8f7fd1", "stock": "#d98032"}
_OTHERS = "#5b8fd6"
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_POINTS_IN_ALL = 26  # more labels would lie on each other


class _Bar(NamedTuple):
    label: str
    value: float
    asked: float | None
    colour: str
    note: str = ""  # beside the value


def draw_all(result: Result, folder: Path) -> list[Path]:
    """Writes the charts that a result has the figures for, `performance-DEVICE-NAME.png`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (_, chart) in CHARTS.items():
        figure = chart(result)
        if figure is not None:
            paths.append(folder / image_name(result, name))
            figure.savefig(paths[-1], dpi=150, transparent=True, metadata={"Software": None})
    return paths


def image_name(result: Result, chart: str) -> str:
    return f"performance-{result.slug}-{chart}.png"


def names(result: Result) -> list[str]:
    """Of the charts that `draw_all` writes."""
    has = {
        "jobs": bool(_jobs(result)),
        "operators": bool(_operators(result)),
        "roofline": bool(_points(result)),
        "breakdown": bool(_breakdowns(result)),
        "memory": bool(_peaks(result)),
    }
    return [name for name in CHARTS if has[name]]


def _jobs(result: Result) -> list[_Bar]:
    """A bar for each job and rival."""
    bars = []
    for row in result.jobs:
        for rival in ("plain", *row.rivals):
            if rival != FLOOR:
                colour, note = _CONTESTANTS.get(rival, _OTHERS), row.named(rival)
                label = f"{row.operator}\n{row.shape}{row.direction_in_words}"
                bars.append(_Bar(label, row.ratio(rival), row.targets.get(rival), colour, note))
    return bars


def _operators(result: Result) -> list[_Bar]:
    """A bar for each operator's row, in the device's main dtype, forward alone only where there is no backward."""
    rows = [row for row in result.operators if row.dtype not in _minor_dtypes(result)]
    both = {(row.operator, row.shape) for row in rows if row.direction == "forward + backward"}
    rows = [row for row in rows if row.direction != "forward" or (row.operator, row.shape) not in both]
    return [_Bar(f"{row.operator} {row.shape}", row.ratio(), row.targets.get("plain"), COLOURS[0]) for row in rows]


def _minor_dtypes(result: Result) -> set[str]:
    """Of the floating-point ones all but that which the device trains in."""
    main = "float32" if result.kind == "cpu" else "bfloat16"
    return {"float32", "bfloat16", "float16"} - {main}


def ratio_bars(bars: list[_Bar], footer: str) -> Figure | None:
    """From 1 outwards, so that what is slower points the other way; a tick where a ratio is asked for.

    Bars of one label stand together.
    """
    from matplotlib.ticker import NullLocator

    if not bars:
        return None
    figure, axes = _figure(1.2 + 0.24 * len(bars), footer)
    for height, bar in enumerate(bars):
        axes.barh(height, bar.value - 1, left=1, color=bar.colour, height=0.75)
        text = f"{bar.value:.3g} {bar.note}".rstrip()
        if bar.asked is not None:
            axes.plot([bar.asked] * 2, [height - 0.45, height + 0.45], color=GREY, linewidth=2)
        _note(axes, text, (max(1.0, bar.value, bar.asked or 0.0), height), 5)
    axes.set_xscale("log")
    values = [bar.value for bar in bars]
    axes.set_xlim(min(0.8, min(values) / 1.2), max(2.0, max(values) * (2.5 if bars[0].note else 1.4)))
    axes.axvline(1, color=GREY, linewidth=1)
    _name_groups(axes, [bar.label for bar in bars])
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in _TICKS if low <= tick <= high])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("times as fast (| asked)", color=GREY, fontsize=8)
    return figure


def _points(result: Result) -> list[Row]:
    """Rows that say what they compute and move; of one operator and dtype the largest shape."""
    largest: dict[tuple[str, str, str], Row] = {}
    for row in result.rows:
        if row.intensity is not None and row.dtype not in _minor_dtypes(result):
            key = (row.operator, row.dtype, row.direction)
            if key not in largest or largest[key].flops < row.flops:
                largest[key] = row
    return list(largest.values())[:_POINTS_IN_ALL]


def roofline(result: Result) -> Figure | None:
    """GFLOP/s over FLOP a byte, under what a copy and a large matrix product reach on the same machine."""
    rows = _points(result)
    if not rows:
        return None
    figure, axes = _figure(5.5, result.footer, left_aligned=False)
    copy, gemm = rows[0].copy_bandwidth, max(row.gemm_rate for row in rows)
    low, high = min(row.intensity for row in rows) / 2, max(max(row.intensity for row in rows), gemm / copy) * 3
    xs = [low, gemm / copy, high]
    axes.plot(xs, [min(copy * x, gemm) / 1e9 for x in xs], color=GREY, linewidth=1.5)
    middle = gemm / copy / 4
    _note(axes, f"a copy: {copy / 1e9:.3g} GB/s", (middle, copy * middle / 1e9), -6, ha="right", va="bottom", rise=0)
    _note(axes, f"a matrix product: {gemm / 1e9:.4g} GFLOP/s", (high, gemm / 1e9), 0, ha="right", va="bottom", rise=3)
    for number, row in enumerate(sorted(rows, key=lambda row: row.intensity)):
        axes.plot(row.intensity, row.rate / 1e9, "o", color=COLOURS[number % len(COLOURS)], markersize=5)
        label = row.operator + ("" if row.direction == "forward + backward" else f", {row.direction}")
        axes.plot([], [], "o", color=COLOURS[number % len(COLOURS)], markersize=5, label=f"{number + 1} {label}")
        _note(axes, str(number + 1), (row.intensity, row.rate / 1e9), 4, va="center")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations for each byte that must move", color=GREY, fontsize=8)
    axes.set_ylabel("GFLOP/s", color=GREY, fontsize=8)
    figure.legend(loc="outside right upper", fontsize=6, frameon=False, labelcolor=GREY)
    return figure


def _breakdowns(result: Result) -> dict[str, dict[str, float]]:
    """Of the first row that has one; contestant -> group -> seconds."""
    return next((row.breakdown for row in result.rows if row.breakdown), {})


def breakdown(result: Result) -> Figure | None:
    """Each contestant's step as one bar of its operators' times."""
    parts = _breakdowns(result)
    if not parts:
        return None
    figure, axes = _figure(1.9 + 0.55 * len(parts), result.footer)
    groups = list(dict.fromkeys(group for seconds in parts.values() for group in seconds))
    groups.sort(key=lambda group: group == REST)
    starts = dict.fromkeys(parts, 0.0)
    for number, group in enumerate(groups):
        widths = [seconds.get(group, 0.0) for seconds in parts.values()]
        faded = 1.0 if number < len(COLOURS) else 0.5  # the colours again
        colour = COLOURS[number % len(COLOURS)]
        axes.barh(range(len(parts)), widths, left=list(starts.values()), color=colour, alpha=faded, label=group)
        starts = {name: start + width for (name, start), width in zip(starts.items(), widths, strict=True)}
    for height, total in enumerate(starts.values()):
        _note(axes, duration(total), (total, height), 4, va="center")
    axes.set_yticks(range(len(parts)), parts, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(starts.values()))
    axes.set_xlabel("seconds a step, optimizer included, by PyTorch's profiler", color=GREY, fontsize=8)
    figure.legend(loc="outside lower center", ncols=3, fontsize=7, frameon=False, labelcolor=GREY)
    return figure


def _peaks(result: Result) -> dict[str, dict[str, int]]:
    """Job -> contestant -> bytes, of the jobs that train or infer."""
    peaks = {f"pretraining step\n{shape}": each for shape, each in result.memory.items()}
    for row in result.jobs:
        if row.room in ("step", "models"):
            known = {
                row.named(name): size for name, size in row.peak_memory.items() if size is not None and name != FLOOR
            }
            peaks[f"{row.operator}\n{row.shape}, {row.direction}"] = known
    return {job: sizes for job, sizes in peaks.items() if sizes}


def memory(result: Result) -> Figure | None:
    """What a call holds at its peak beside weights and inputs, by contestant."""
    peaks = _peaks(result)
    if not peaks:
        return None
    bars = [(job, name, size) for job, sizes in peaks.items() for name, size in sizes.items()]
    figure, axes = _figure(1.2 + 0.22 * len(bars), result.footer)
    for height, (_, name, size) in enumerate(bars):
        axes.barh(height, size / 1e6, color=_CONTESTANTS.get(name, _OTHERS), height=0.75)
        _note(axes, f"{name} {size / 1e6:,.0f}", (size / 1e6, height), 4, va="center")
    _name_groups(axes, [job for job, *_ in bars])
    axes.set_xlim(0, 1.25 * max(size for *_, size in bars) / 1e6)
    axes.set_xlabel("MB at the peak", color=GREY, fontsize=8)
    return figure


def _figure(height: float, footer: str, *, left_aligned: bool = True) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.tick_params(colors=GREY, labelsize=7, length=0 if left_aligned else 3)
    for spine in axes.spines.values():
        spine.set_visible(not left_aligned)
        spine.set_color(GREY)
    axes.set_title(footer, loc="right", fontsize=6, color=GREY)
    return figure, axes


def _name_groups(axes: Axes, labels: list[str]) -> None:
    """Each label once, in the middle of its bars, from the top."""
    places = {label: [at for at, each in enumerate(labels) if each == label] for label in labels}
    axes.set_yticks([sum(each) / len(each) for each in places.values()], places, fontsize=7)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _note(
    axes: Axes, text: str, at: Sequence[float], offset: float, *, ha: str = "left", va: str = "center", rise: float = 0
) -> None:
    place: dict[str, Any] = {"xytext": (offset, rise), "textcoords": "offset points", "ha": ha, "va": va}
    axes.annotate(text, at, color=GREY, fontsize=7, **place)


# Name -> what the page says of it, and what draws it.
CHARTS: dict[str, tuple[str, Callable[[Result], Figure | None]]] = {
    "jobs": ("Jobs: times as fast as each rival", lambda result: ratio_bars(_jobs(result), result.footer)),
    "breakdown": ("A pretraining step by operator", breakdown),
    "memory": ("Memory at the peak", memory),
    "operators": (
        "Operators: times as fast as plain PyTorch",
        lambda result: ratio_bars(_operators(result), result.footer),
    ),
    "roofline": ("Roofline: what operators reach of a copy's and a matrix product's speed", roofline),
}
