"""Curves with confidence intervals, and distributions, as the plots show them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from vllama.bench.metrics import ttft_ms
from vllama.bench.result import ExperimentResult, Mode, Run, Sample
from vllama.bench.students_t import normal_quantile, t_quantile

SWEPT: tuple[Mode, ...] = ("sequential", "concurrent", "streaming")
"""The modes whose runs have a load; the others have figures of their own."""

_MOST_STEPS = 500


class Point(NamedTuple):
    """A value at a load, and its interval at 95 % (None: one run tells nothing of it). `n` is what it was made from."""

    load: float
    value: float
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True, slots=True)
class Curve:
    """One figure of one system over the load."""

    system: str
    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """The runs that one plot shows: a mode's, all with concurrencies or all with rates."""

    mode: Mode
    is_open: bool
    runs: tuple[Run, ...]

    @property
    def title(self) -> str:
        """Name of the group in a heading."""
        return f"{self.mode}, fixed rate" if self.is_open else self.mode

    @property
    def axis(self) -> str:
        """Label of the load axis."""
        return "requests per second offered" if self.is_open else "concurrent requests"

    @property
    def loads(self) -> list[float]:
        """The loads, ascending."""
        return sorted({load_of(run) for run in self.runs})


@dataclass(frozen=True, slots=True)
class Distribution:
    """All values of a figure at one load, ascending."""

    system: str
    load: float
    values: tuple[float, ...]


def groups(result: ExperimentResult) -> list[Group]:
    """Return what can be plotted over the load, in the order of the modes."""

    def key(run: Run) -> tuple[int, bool]:
        return SWEPT.index(run.mode), run.rate is not None

    runs = sorted((run for run in result.runs if run.mode in SWEPT and run.samples), key=key)
    return [Group(SWEPT[mode], is_open, tuple(members)) for (mode, is_open), members in groupby(runs, key)]


def load_of(run: Run) -> float:
    """Return the concurrency or the rate."""
    return run.rate if run.rate is not None else float(run.concurrency or 1)


def throughput(group: Group) -> list[Curve]:
    """Return output tokens per second; the interval is that of the mean of the repetitions (Student's t)."""
    return _curves(group, "", lambda runs, load: _mean_point(load, [r.metrics.output_tokens_per_second for r in runs]))


def percentile(group: Group, figure: Callable[[Sample], float | None], p: float) -> list[Curve]:
    """Return a percentile of all requests at a load; the interval is that between order statistics."""

    def point(runs: Sequence[Run], load: float) -> Point | None:
        values = sorted(values_of(runs, figure))
        return Point(load, quantile(values, p), order_interval(values, p), len(values)) if values else None

    return _curves(group, f"p{100 * p:g}", point)


def distributions(group: Group, figure: Callable[[Sample], float | None]) -> list[Distribution]:
    """Return the distributions at the highest load that all systems had; of a single system, at every load."""
    systems = list(dict.fromkeys(run.system for run in group.runs))
    loads = group.loads
    if len(systems) > 1:
        common = [x for x in loads if {run.system for run in group.runs if load_of(run) == x} == set(systems)]
        loads = (common or loads)[-1:]
    found = [
        Distribution(system, load, tuple(sorted(values_of(_at(group.runs, system, load), figure))))
        for system in systems
        for load in loads
    ]
    return [distribution for distribution in found if distribution.values]


def starts(result: ExperimentResult, mode: Mode) -> list[Distribution]:
    """Return the times to the first token of a mode that loads models, by system and model, in ms."""
    runs = [run for run in result.runs if run.mode == mode]
    names = dict.fromkeys((run.system, run.model) for run in runs)
    several = len({model for _, model in names}) > 1
    return [
        Distribution(f"{system} {model}" if several else system, 0.0, tuple(sorted(values)))
        for system, model in names
        if (values := values_of([r for r in runs if (r.system, r.model) == (system, model)], ttft_ms))
    ]


def values_of(runs: Iterable[Run], figure: Callable[[Sample], float | None]) -> list[float]:
    """Return the figure of every ok request that has it."""
    values = (figure(sample) for run in runs for sample in run.samples if sample.outcome == "ok")
    return [value for value in values if value is not None]


def quantile(values: Sequence[float], p: float) -> float:
    """Return the p-quantile (0 … 1) of ascending values, linear between the two nearest ranks."""
    rank = (len(values) - 1) * p
    low = math.floor(rank)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (rank - low)


def cumulated(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return what ascending values draw: each value, and the percentage of values that are at most as large.

    More than 500 values are reduced to evenly spaced quantiles.
    """
    if len(values) > _MOST_STEPS:
        values = [quantile(values, i / _MOST_STEPS) for i in range(_MOST_STEPS + 1)]
    return [values[0], *values], [100 * i / len(values) for i in range(len(values) + 1)]


def order_interval(values: Sequence[float], p: float) -> tuple[float, float] | None:
    """Return the 95 % interval of the p-quantile of ascending values, whatever their distribution.

    How many of n values lie below the true quantile is binomial, here in its normal approximation. None where the
    values are too few for its upper end to be among them.
    """
    n = len(values)
    spread = normal_quantile() * math.sqrt(n * p * (1 - p))
    low, high = math.floor(n * p - spread), math.ceil(n * p + spread)
    return (values[low], values[high]) if low >= 0 and high < n else None


def _curves(group: Group, label: str, point: Callable[[Sequence[Run], float], Point | None]) -> list[Curve]:
    curves = []
    for system in dict.fromkeys(run.system for run in group.runs):
        found = (point(runs, load) for load in group.loads if (runs := _at(group.runs, system, load)))
        points = tuple(p for p in found if p is not None)
        if points:
            curves.append(Curve(system, f"{system} {label}".strip(), points))
    return curves


def _at(runs: Iterable[Run], system: str, load: float) -> list[Run]:
    return [run for run in runs if run.system == system and load_of(run) == load]


def _mean_point(load: float, values: Sequence[float]) -> Point:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Point(load, mean, None, len(values))
    spread = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Point(load, mean, (max(mean - spread, 0.0), mean + spread), len(values))
