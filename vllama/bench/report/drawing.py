"""A figure in which plots are drawn: its colours, its axes, its labels, and marks that say what they show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_WIDTH, _TITLE = 7.6, 0.32
"""Inches of a figure's width and of its heading."""

_LABEL_GAP = 12.0
"""Least distance of two labels' middles, in points."""

_ROUND = ((8.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)), (200.0, (1.0, 2.0, 5.0)), (math.inf, (1.0,)))
"""The first digits of the numbers on a logarithmic axis that spans less than a factor."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """Colours as #rrggbb. Systems take `series` in turns."""

    ink: str
    muted: str
    grid: str
    paper: str
    series: tuple[str, ...]


PAPER = Scheme(
    ink="#1c2128",
    muted="#656d76",
    grid="#dfe3e8",
    paper="#ffffff",
    series=("#2563c9", "#c2570c", "#0b7d6b", "#8a3fc0", "#b3344f", "#5d6a00"),
)
"""Readable on white; neighbours differ in hue and lightness, so that they do for the colour-blind, too."""


@dataclass(slots=True)
class Drawing:
    """A drawn plot. `tips` are texts for single marks, by the id that the mark has in the SVG."""

    figure: Figure
    scheme: Scheme
    tips: dict[str, str] = field(default_factory=dict)

    def mark(self, axes: Axes, x: float, y: float, tip: str, **style: Any) -> None:
        """Draw a mark that shows a text when one points at it."""
        name = f"tip-{len(self.tips)}"
        self.tips[name] = tip
        axes.plot([x], [y], gid=name, linestyle="none", **{"marker": "o", "markersize": 4.5, **style})


def canvas(scheme: Scheme, heights: Sequence[float]) -> tuple[Drawing, list[Axes]]:
    """Return a figure with one plain set of axes above the other, heights in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, sum(heights)), facecolor=scheme.paper)
    _fill(figure, 1)
    rows = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=list(heights))[:, 0]
    for axes in rows:
        axes.set_facecolor("none")
        axes.grid(visible=True, axis="y", color=scheme.grid, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=scheme.muted, length=0, labelsize=9)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(scheme.grid)
    return Drawing(figure, scheme), list(rows)


def add_title(drawing: Drawing, title: str) -> None:
    """Make the figure higher by a heading."""
    figure = drawing.figure
    height = figure.get_figheight()
    figure.set_figheight(height + _TITLE)
    _fill(figure, height / (height + _TITLE))
    figure.suptitle(
        title, x=0.02, y=1 - 0.1 / height, ha="left", va="top", fontsize=11, fontweight="bold", color=drawing.scheme.ink
    )


def _fill(figure: Figure, height: float) -> None:
    """Let the axes fill the lower part of the figure, up to `height` of it."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure.set_layout_engine(ConstrainedLayoutEngine(rect=(0.01, 0, 0.98, height)))


def saved(drawing: Drawing, kind: str, **options: Any) -> bytes:
    """Return the file of this kind (png, svg)."""
    import matplotlib as mpl

    buffer = BytesIO()
    # Text stays text, and equal results give equal files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vllama"}):
        drawing.figure.savefig(buffer, format=kind, facecolor=drawing.scheme.paper, **options)
    return buffer.getvalue()


def scale_loads(drawing: Drawing, axes: Axes, loads: Sequence[float], label: str, *, is_open: bool) -> None:
    """Give the axis of loads a tick for each: concurrencies on a logarithm of base 2, rates on a plain scale."""
    if not is_open:
        axes.set_xscale("log", base=2)
    axes.set_xticks(loads, [f"{load:g}" for load in loads])
    axes.minorticks_off()
    axes.set_xlabel(label, color=drawing.scheme.muted)


def rows_axis(drawing: Drawing, axes: Axes, names: Sequence[str]) -> None:
    """Make the vertical axis one of named rows, the first on top, and let the grid be of the other axis."""
    axes.set_yticks(range(len(names)), names, color=drawing.scheme.ink)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=drawing.scheme.grid, linewidth=0.8)


def scale_latency(axis: Axis) -> None:
    """Make it an axis of ms on a logarithm of base 10 that spans a factor of 4 or more."""
    is_x = axis is axis.axes.xaxis
    (axis.axes.set_xscale if is_x else axis.axes.set_yscale)("log")
    low, high = axis.get_view_interval()
    low, high = max(low, 1e-3), max(high, 2e-3)
    if high / low < 4:
        middle = math.sqrt(low * high)
        (axis.axes.set_xlim if is_x else axis.axes.set_ylim)(middle / 2.2, middle * 2.2)
    _set_log_ticks(axis, milliseconds)


def scale_ratio(axes: Axes) -> None:
    """Make the vertical axis one of ratios, on a logarithm."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 4:
        axes.set_ylim(min(low, 0.5), max(high, 2.0))
    _set_log_ticks(axes.yaxis, lambda ratio: f"{ratio:g} ×")


def _set_log_ticks(axis: Axis, text: Callable[[float], str]) -> None:
    """Put a few round numbers on a logarithmic axis, however much it spans."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    span = high / max(low, 1e-6)
    axis.set_major_locator(
        LogLocator(base=10, subs=next(digits for most, digits in _ROUND if span < most), numticks=20)
    )
    axis.set_major_formatter(lambda value, _: text(value))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def label_ends(axes: Axes, ends: Iterable[tuple[str, float, float, str]]) -> None:
    """Write each curve's name beside its end, moved up or down where names would overlap."""
    to_points = 72 / axes.figure.dpi
    placed: list[float] = []
    middle = [(axes.transData.transform((x, y))[1] * to_points, label, x, y, color) for label, x, y, color in ends]
    for height, label, x, y, color in sorted(middle):
        at = max(height, placed[-1] + _LABEL_GAP) if placed else height
        placed.append(at)
        axes.annotate(
            label, (x, y), (8, at - height), textcoords="offset points", va="center", color=color, fontweight="bold",
            annotation_clip=False,
        )  # fmt: skip


def label_medians(axes: Axes, medians: Sequence[tuple[str, float, str]]) -> None:
    """Write each distribution's name at its median, on lines of their own where they would overlap."""
    last_end, level = -math.inf, 0
    for label, x, color in sorted(medians, key=lambda entry: entry[1]):
        left = axes.transData.transform((x, 50))[0] * 72 / axes.figure.dpi
        level = level + 1 if left < last_end else 0
        last_end = left + 6.5 * len(label) + 10
        axes.annotate(
            label, (x, 50), (6, -9 - _LABEL_GAP * level), textcoords="offset points", color=color, fontweight="bold"
        )


def milliseconds(value: float) -> str:
    """Return a time as people write it: `12.3 ms`, `1.23 s`."""
    return f"{value / 1000:.3g} s" if value >= 1000 else f"{value:.3g} ms"
