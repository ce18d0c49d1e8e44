"""The machine over the time of a bench, from the telemetry of its runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from vllama.bench.report.curves import SWEPT
from vllama.bench.result import ExperimentResult, Run, Telemetry

_SECOND = 1e9
_GB = 1e9
_LEAST_STEP = 0.2
"""Seconds. Below, one sees the ticks in which the kernel counts CPU time."""

_MOST_POINTS = 1500
"""Approximate maximum number of points in all lines of a panel; more than its pixels would only enlarge the file."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A run's window, in s since the first run began, and its load in words."""

    system: str
    load: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Line:
    """What one run's readings show: times in s since the first run began, NaN for what could not be read."""

    system: str
    load: str
    times: tuple[float, ...]
    values: tuple[float, ...]
    mean: float


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity over time.

    `idle` is its value without requests, by system; `top` the end of its axis; `height` the panel's height in inches.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    idle: dict[str, float]
    top: float
    height: float


@dataclass(frozen=True, slots=True)
class _Quantity:
    """`suffix` names the series: all that end with it are added up, or averaged."""

    title: str
    unit: str
    suffix: str
    scale: float = 1.0
    averaged: bool = False
    top: float | None = None
    height: float = 1.35


_QUANTITIES = (
    _Quantity("GPU utilisation", "%", "_utilization_percent", averaged=True, top=104.0),
    _Quantity("GPU power", "W", "_power_w"),
    _Quantity("GPU memory", "GB", "_memory_bytes", scale=_GB, height=0.85),
    _Quantity("Processors used by the server", "cores", "server_cpu_cores"),
    _Quantity("Memory of the server", "GB", "server_rss_bytes", scale=_GB, height=0.85),
)


def stretches(result: ExperimentResult) -> list[Stretch]:
    """Return the windows of all runs with telemetry, in order of time."""
    runs = _observed(result)
    origin = runs[0].window[0] if runs else 0
    return [
        Stretch(run.system, _load(run), (run.window[0] - origin) / _SECOND, (run.window[1] - origin) / _SECOND)
        for run in runs
    ]


def panels(result: ExperimentResult) -> list[Panel]:
    """Return what was read of the machine; nothing where there is no telemetry."""
    runs = _observed(result)
    span = (runs[-1].window[1] - runs[0].window[0]) / _SECOND if runs else 0.0
    step = max(span / _MOST_POINTS, _LEAST_STEP)
    found = []
    for quantity in _QUANTITIES:
        lines = tuple(_thinned(line, step) for run in runs if (line := _line(quantity, run, runs[0].window[0])))
        if lines:
            idle = {run.system: rest for run in runs if (rest := _idle(quantity, run)) is not None}
            highest = max(max(_known(line.values)) for line in lines)
            top = quantity.top or highest * 1.12 or 1.0
            found.append(Panel(quantity.title, quantity.unit, lines, idle, top, quantity.height))
    return found


def _observed(result: ExperimentResult) -> list[Run]:
    return sorted((run for run in result.runs if run.telemetry and run.telemetry.times), key=lambda run: run.window)


def _load(run: Run) -> str:
    if run.rate is not None:
        return f"{run.rate:g}/s"
    return f"C={run.concurrency}" if run.concurrency and run.mode in SWEPT else run.mode


def _line(quantity: _Quantity, run: Run, origin: int) -> Line | None:
    telemetry = run.telemetry or Telemetry()
    columns = [column for name, column in telemetry.series.items() if name.endswith(quantity.suffix)]
    if not columns:
        return None
    values = tuple(_together(quantity, row) for row in zip(*columns, strict=True))
    if not _known(values):
        return None
    times = tuple((at - origin) / _SECOND for at in telemetry.times)
    return Line(run.system, _load(run), times, values, sum(_known(values)) / len(_known(values)))


def _thinned(line: Line, step: float) -> Line:
    """Return the line with the readings of each `step` seconds as one, their mean at their middle."""
    times, values = [], []
    for _, members in groupby(zip(line.times, line.values, strict=True), lambda point: point[0] // step):
        group = list(members)
        times.append(sum(at for at, _ in group) / len(group))
        known = _known([value for _, value in group])
        values.append(sum(known) / len(known) if known else math.nan)
    return replace(line, times=tuple(times), values=tuple(values))


def _idle(quantity: _Quantity, run: Run) -> float | None:
    telemetry = run.telemetry or Telemetry()
    values = [value for name, value in telemetry.idle.items() if name.endswith(quantity.suffix)]
    return _together(quantity, values) if values else None


def _together(quantity: _Quantity, values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return math.nan
    return sum(known) / quantity.scale / (len(known) if quantity.averaged else 1)


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]
