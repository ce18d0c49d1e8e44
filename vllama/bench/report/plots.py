"""The plots of a result: for paper as PNG, or as SVG for a page that brings its own colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from vllama.bench.metrics import e2e_ms, tpot_ms, ttft_ms
from vllama.bench.report import curves
from vllama.bench.report.curves import Curve, Distribution, Group, Point
from vllama.bench.report.drawing import (
    PAPER,
    Drawing,
    Scheme,
    add_title,
    canvas,
    label_ends,
    label_medians,
    milliseconds,
    rows_axis,
    saved,
    scale_latency,
    scale_loads,
    scale_ratio,
)
from vllama.bench.report.figures import FIGURES
from vllama.bench.report.timeline import Panel, Stretch, panels, stretches
from vllama.bench.result import Comparison, ExperimentResult, Mode
from vllama.errors import RequestError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class PlotsUnavailable(RequestError):
    """The library that draws is not installed."""

    def __init__(self) -> None:
        super().__init__("plots need matplotlib: pip install 'vllama-server[bench]'")


class _Heading(NamedTuple):
    name: str
    title: str
    caption: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot to be drawn: `name` for its file, `title` for its heading, `caption` for how to read it."""

    name: str
    title: str
    caption: str
    draw: Callable[[Scheme], Drawing]

    def png(self) -> bytes:
        """Return it as a picture of 1140 pixels width, on white, with its title."""
        drawing = self._drawn(PAPER)
        add_title(drawing, self.title)
        return saved(drawing, "png", dpi=150)

    def svg(self, scheme: Scheme) -> tuple[str, Mapping[str, str]]:
        """Return it as SVG without its title, and the texts of its marks by their ids."""
        drawing = self._drawn(scheme)
        return saved(drawing, "svg", transparent=True, metadata={"Date": None}).decode(), drawing.tips

    def _drawn(self, scheme: Scheme) -> Drawing:
        import matplotlib as mpl

        # A dollar sign in a name is no formula.
        with mpl.rc_context({"font.family": "DejaVu Sans", "text.parse_math": False}):
            return self.draw(scheme)


def require_matplotlib() -> None:
    """Raise PlotsUnavailable now rather than after minutes of measuring."""
    if find_spec("matplotlib") is None:
        raise PlotsUnavailable


def plots_of(result: ExperimentResult) -> list[Plot]:
    """Return the plots that this result has data for. Raises PlotsUnavailable."""
    require_matplotlib()
    found: list[Plot] = []
    members = curves.groups(result)
    for group in members:
        suffix = "" if len(members) == 1 else f"-{group.title.replace(', ', '-').replace(' ', '-')}"
        where = "" if len(members) == 1 else f" ({group.title})"
        found += [_renamed(plot, suffix, where) for plot in _of_group(result, group)]
    for mode, title in _STARTS.items():
        if values := curves.starts(result, mode):
            found.append(_starts_plot(mode, title, values))
    found += _ratio_plots(result)
    if lines := panels(result):
        found.append(_timeline_plot(result, lines))
    return found


def _renamed(plot: Plot, suffix: str, where: str) -> Plot:
    return Plot(plot.name + suffix, plot.title + where, plot.caption, plot.draw)


def _of_group(result: ExperimentResult, group: Group) -> list[Plot]:
    palette = {system.name: i for i, system in enumerate(result.systems)}
    heading = _Heading(
        "throughput",
        "Throughput, output tokens per second",
        "Mean of the repetitions, and its 95 % interval where there are several.",
    )
    found = [_curve_plot(heading, group, palette, [(curves.throughput(group), "-")], is_latency=False)]
    for name, title, figure in _LATENCIES:
        median, tail = curves.percentile(group, figure, 0.5), curves.percentile(group, figure, 0.95)
        if median:
            heading = _Heading(name, title, _LATENCY_CAPTION)
            found.append(_curve_plot(heading, group, palette, [(median, "-"), (tail, "--")], is_latency=True))
    for name, title, figure in _LATENCIES:
        if values := curves.distributions(group, figure):
            found.append(
                _distribution_plot(
                    f"{name}-distribution", f"Distribution: {title.lower()}", values, palette, is_open=group.is_open
                )
            )
    return found


_LATENCY_CAPTION = "Full: median, with its 95 % interval. Dashed or hollow: 95th percentile. Logarithmic."
_LATENCIES: tuple[tuple[str, str, Callable[[Any], float | None]], ...] = (
    ("ttft", "Time to first token", ttft_ms),
    ("tpot", "Time per output token", tpot_ms),
    ("e2e", "Time to the whole reply", e2e_ms),
)


def _curve_plot(
    heading: _Heading,
    group: Group,
    palette: Mapping[str, int],
    families: Sequence[tuple[Sequence[Curve], str]],
    *,
    is_latency: bool,
) -> Plot:
    every = [(curve, style) for family, style in families for curve in family]

    def draw(scheme: Scheme) -> Drawing:
        if len(group.loads) == 1:
            return _draw_rows(scheme, every, palette, is_latency=is_latency)
        drawing, [axes] = canvas(scheme, [3.7])
        for curve, style in every:
            color = _color(scheme, palette, curve.system)
            _draw_curve(drawing, axes, curve, style, color, is_latency=is_latency, is_open=group.is_open)
        scale_loads(drawing, axes, group.loads, group.axis, is_open=group.is_open)
        if is_latency:
            scale_latency(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ends = [(curve.label, curve.points[-1], _color(scheme, palette, curve.system)) for curve, _ in every]
        label_ends(axes, [(label, point.load, point.value, color) for label, point, color in ends])
        return drawing

    if len(group.loads) == 1:
        heading = heading._replace(title=f"{heading.title} at {_load(group.loads[0], group.is_open)}")
    return Plot(*heading, draw)


def _draw_curve(
    drawing: Drawing, axes: Axes, curve: Curve, style: str, color: str, *, is_latency: bool, is_open: bool
) -> None:
    loads = [point.load for point in curve.points]
    dashed = style != "-"
    axes.plot(loads, [point.value for point in curve.points], style, color=color, linewidth=1.3 if dashed else 2)
    if not dashed:
        lows = [point.interval[0] if point.interval else math.nan for point in curve.points]
        highs = [point.interval[1] if point.interval else math.nan for point in curve.points]
        axes.fill_between(loads, lows, highs, color=color, alpha=0.18, linewidth=0)
    for point in curve.points:
        tip = f"{curve.label}, {_load(point.load, is_open)}: {_estimate(point, is_latency)}"
        drawing.mark(axes, point.load, point.value, tip, color=color, markersize=3.5 if dashed else 5)


def _draw_rows(
    scheme: Scheme, every: Sequence[tuple[Curve, str]], palette: Mapping[str, int], *, is_latency: bool
) -> Drawing:
    """Draw one load: a row for each system, with bars from zero, or from the median to the tail."""
    systems = list(dict.fromkeys(curve.system for curve, _ in every))
    drawing, [axes] = canvas(scheme, [0.9 + 0.5 * len(systems)])
    for row, system in enumerate(systems):
        color = _color(scheme, palette, system)
        mine = [curve.points[0] for curve, _ in every if curve.system == system]
        if is_latency:
            axes.plot([point.value for point in mine], [row] * len(mine), color=color, linewidth=2, alpha=0.5)
        else:
            axes.barh(row, mine[0].value, height=0.55, color=color, alpha=0.85)
        for (curve, style), point in zip([e for e in every if e[0].system == system], mine, strict=True):
            hollow = style != "-"
            tip = f"{curve.label}: {_estimate(point, is_latency)}"
            drawing.mark(axes, point.value, row, tip, color=color, markerfacecolor="none" if hollow else color)
            if point.interval and not hollow:
                axes.plot(point.interval, [row, row], color=scheme.ink, linewidth=1.2, marker="|", markersize=7)
        values = [_value(point.value, is_latency) for point in mine]
        text = f"p50 {values[0]}, p95 {values[-1]}" if is_latency else values[0]
        axes.annotate(
            text, (mine[-1].value, row), (9, 0), textcoords="offset points", va="center", color=color, fontweight="bold"
        )
    rows_axis(drawing, axes, systems)
    if is_latency:
        scale_latency(axes.xaxis)
    else:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.margins(x=0.12)
    return drawing


def _distribution_plot(
    name: str, title: str, distributions: Sequence[Distribution], palette: Mapping[str, int], *, is_open: bool
) -> Plot:
    one_system = len({d.system for d in distributions}) == 1
    loads = sorted({d.load for d in distributions})

    def draw(scheme: Scheme) -> Drawing:
        drawing, [axes] = canvas(scheme, [3.4])
        ends = []
        for distribution in distributions:
            values = distribution.values
            n = len(values)
            color = _color(scheme, palette, distribution.system)
            # One system: its loads are told apart by weight, the highest being the strongest.
            strength = (loads.index(distribution.load) + 1) / len(loads) if one_system else 1.0
            axes.step(
                *curves.cumulated(values),
                where="post",
                color=color,
                linewidth=1 + strength,
                alpha=0.35 + 0.65 * strength,
            )
            load = _load(distribution.load, is_open)
            for p in (0.5, 0.9, 0.95, 0.99):
                value = curves.quantile(values, p)
                tip = f"{distribution.system}, {load}, p{100 * p:g}: {milliseconds(value)}, n = {n}"
                drawing.mark(axes, value, 100 * p, tip, color=color, markersize=3.5)
            ends.append((load if one_system else distribution.system, curves.quantile(values, 0.5), color))
        scale_latency(axes.xaxis)
        axes.set_ylim(0, 101)
        axes.set_yticks([0, 25, 50, 75, 90, 100], ["0 %", "25 %", "50 %", "75 %", "90 %", "100 %"])
        label_medians(axes, ends)
        return drawing

    where = "at each load" if one_system and len(loads) > 1 else f"at {_load(loads[-1], is_open)}"
    caption = f"Share of requests that took at most so long, {where}. Points: p50, p90, p95, p99."
    return Plot(name, title, caption, draw)


_STARTS: dict[Mode, str] = {
    "coldstart": "Cold start: from the request to the first token, the load included",
    "switch": "Switch: from the request to the first token, while another model is loaded",
}


def _starts_plot(name: str, title: str, distributions: Sequence[Distribution]) -> Plot:
    def draw(scheme: Scheme) -> Drawing:
        drawing, [axes] = canvas(scheme, [0.9 + 0.45 * len(distributions)])
        for row, distribution in enumerate(distributions):
            color = scheme.series[row % len(scheme.series)]
            median = curves.quantile(distribution.values, 0.5)
            axes.plot([median, median], [row - 0.25, row + 0.25], color=color, linewidth=2.5)
            for value in distribution.values:
                drawing.mark(axes, value, row, f"{distribution.system}: {milliseconds(value)}", color=color, alpha=0.7)
            axes.annotate(
                milliseconds(median), (distribution.values[-1], row), (9, 0), textcoords="offset points", va="center",
                color=color, fontweight="bold",
            )  # fmt: skip
        rows_axis(drawing, axes, [distribution.system for distribution in distributions])
        scale_latency(axes.xaxis)
        axes.margins(x=0.12)
        return drawing

    return Plot(name, title, "A point for each; the bar and the figure are the median. Logarithmic.", draw)


def _ratio_plots(result: ExperimentResult) -> list[Plot]:
    """Return a plot for each pair of systems and mode that was compared at two concurrencies or more."""
    pairs: dict[tuple[str, str, str], list[Comparison]] = {}
    for one in result.comparisons:
        if one.concurrency is not None and one.metric in _RATIO_COLORS:
            pairs.setdefault((one.system, one.baseline, one.mode), []).append(one)
    swept = {pair: found for pair, found in pairs.items() if len({one.concurrency for one in found}) > 1}
    return [
        _ratio_plot(f"ratio-{number}" if len(swept) > 1 else "ratio", *pair, found)
        for number, (pair, found) in enumerate(swept.items(), 1)
    ]


def _ratio_plot(name: str, system: str, baseline: str, mode: str, compared: Sequence[Comparison]) -> Plot:
    def draw(scheme: Scheme) -> Drawing:
        drawing, [axes] = canvas(scheme, [3.2])
        axes.axhline(1, color=scheme.muted, linewidth=1)
        ends = []
        for metric, number in _RATIO_COLORS.items():
            points = [(float(c.concurrency or 1), c) for c in compared if c.metric == metric]
            color = scheme.series[number]
            for load, c in points:
                axes.plot([load, load], [c.low, c.high], color=color, linewidth=1.2, marker="_", markersize=7)
                tip = f"{FIGURES[metric]}, C = {load:g}: {c.ratio:.3g} × ({c.low:.3g} to {c.high:.3g}), {c.verdict}"
                drawing.mark(axes, load, c.ratio, tip, color=color)
            if points:
                axes.plot([load for load, _ in points], [c.ratio for _, c in points], color=color, linewidth=1.5)
                ends.append((FIGURES[metric], points[-1][0], points[-1][1].ratio, color))
        loads = sorted({float(c.concurrency or 1) for c in compared})
        scale_loads(drawing, axes, loads, "concurrent requests", is_open=False)
        scale_ratio(axes)
        label_ends(axes, ends)
        return drawing

    caption = "With the bootstrap interval at 95 %; where it holds 1, no difference is claimed. Logarithmic."
    return Plot(name, f"{system} over {baseline}, {mode}", caption, draw)


_RATIO_COLORS = {"output_tokens_per_second": 2, "ttft_ms": 3, "e2e_ms": 4}
"""The metrics whose ratios are drawn, and the places of their colours; the first two are those of systems."""


def _timeline_plot(result: ExperimentResult, lines: Sequence[Panel]) -> Plot:
    palette = {system.name: i for i, system in enumerate(result.systems)}
    windows = stretches(result)

    def draw(scheme: Scheme) -> Drawing:
        drawing, rows = canvas(scheme, [panel.height for panel in lines])
        for axes, panel in zip(rows, lines, strict=True):
            for stretch in windows:
                color = _color(scheme, palette, stretch.system)
                axes.axvspan(stretch.begin, stretch.end, color=color, alpha=0.07, linewidth=0)
            for line in panel.lines:
                color = _color(scheme, palette, line.system)
                axes.plot(line.times, line.values, color=color, linewidth=1.1)
                tip = f"{line.system}, {line.load}: {line.mean:,.4g} {panel.unit} on average ({panel.title})"
                drawing.mark(axes, (line.times[0] + line.times[-1]) / 2, line.mean, tip, color=color, alpha=0)
            for system, idle in panel.idle.items():
                axes.axhline(idle, color=_color(scheme, palette, system), linewidth=0.9, linestyle=":")
            axes.set_ylim(0, panel.top)
            axes.set_title(f"{panel.title}, {panel.unit}", loc="left", fontsize=9, color=scheme.muted, pad=4)
            axes.margins(x=0)
            axes.locator_params(axis="y", nbins=4)
        rows[-1].set_xlabel("seconds since the first run began", color=scheme.muted)
        _label_stretches(rows[0], windows, scheme, palette)
        return drawing

    caption = (
        "Shaded: a run, in its system's colour, with its load above. Dotted: with the model loaded and nobody asking."
    )
    return Plot("machine", "The machine over time", caption, draw)


def _label_stretches(axes: Axes, windows: Sequence[Stretch], scheme: Scheme, palette: Mapping[str, int]) -> None:
    """Write the load above the runs that follow each other with it, where there is room, and the systems' names."""
    span = (windows[-1].end - windows[0].begin) or 1.0
    for load, members in groupby(windows, lambda stretch: stretch.load):
        group = list(members)
        if (group[-1].end - group[0].begin) / span > 0.012 * len(load):
            axes.annotate(
                load, ((group[0].begin + group[-1].end) / 2, 1), (0, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", fontsize=8, color=scheme.muted,
            )  # fmt: skip
    axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=9, color=scheme.muted, pad=14)
    position = 1.0
    for system in reversed(list(dict.fromkeys(stretch.system for stretch in windows))):
        axes.annotate(
            system, (position, 1), (0, 15), xycoords="axes fraction", textcoords="offset points", ha="right",
            color=_color(scheme, palette, system), fontweight="bold",
        )  # fmt: skip
        position -= 0.02 + 0.0115 * len(system)


def _color(scheme: Scheme, palette: Mapping[str, int], system: str) -> str:
    return scheme.series[palette.get(system, 0) % len(scheme.series)]


def _load(load: float, is_open: bool) -> str:
    return f"{load:g} requests/s" if is_open else f"C = {load:g}"


def _value(value: float, is_latency: bool) -> str:
    return milliseconds(value) if is_latency else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _estimate(point: Point, is_latency: bool) -> str:
    interval = [_value(end, is_latency) for end in point.interval or ()]
    unit = "" if is_latency else " tokens/s"
    between = f" ({interval[0]} to {interval[1]})" if interval else ""
    return f"{_value(point.value, is_latency)}{unit}{between}, n = {point.n}"
