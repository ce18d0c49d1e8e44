"""How sure a ratio is: a bootstrap over runs and over the requests in them. docs/benchmarking.md says it in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllama.bench.metrics import e2e_ms, tpot_ms, ttft_ms
from vllama.bench.result import Run, Sample
from vllama.bench.students_t import CONFIDENCE, normal_quantile, t_quantile

RESAMPLES = 2000

_DRAWS = 2_000_000  # drawn at once: 16 MB

_Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio and the interval that holds the true one with CONFIDENCE."""

    value: float
    low: float
    high: float

    @property
    def holds_one(self) -> bool:
        """Whether the two may be alike."""
        return self.low <= 1 <= self.high


@dataclass(frozen=True, slots=True)
class Statistic:
    """A figure of a run, and how it follows from figures of requests: so that requests can be drawn again.

    `columns` gives what is drawn together, one row for each request of a run; `of` reduces the last axis but one, which
    is that of the rows, to the figure.
    """

    name: str
    columns: Callable[[Run], _Values]
    of: Callable[[_Values], _Values]
    more_is_better: bool


def _ok(run: Run) -> list[Sample]:
    return [sample for sample in run.samples if sample.outcome == "ok"]


def _median_of(figure: Callable[[Sample], float | None]) -> Callable[[Run], _Values]:
    def columns(run: Run) -> _Values:
        values = [value for sample in _ok(run) if (value := figure(sample)) is not None]
        return np.array(values, dtype=np.float64).reshape(-1, 1)

    return columns


def _rate_columns(tokens: Callable[[Sample], int]) -> Callable[[Run], _Values]:
    def columns(run: Run) -> _Values:
        # Requests per second are (requests on their way) / (seconds a request): Little's law, exact over a whole run.
        seconds = (run.window[1] - run.window[0]) / 1e9
        on_their_way = sum(sample.end - sample.start for sample in run.samples) / 1e9 / seconds if seconds > 0 else 0.0
        rows = [
            (tokens(sample) * on_their_way if sample.outcome == "ok" else 0.0, (sample.end - sample.start) / 1e9)
            for sample in run.samples
        ]
        return np.array(rows, dtype=np.float64).reshape(-1, 2)

    return columns


def _median(values: _Values) -> _Values:
    medians: _Values = np.median(values[..., 0], axis=-1)
    return medians


def _rate(values: _Values) -> _Values:
    sums = values.sum(axis=-2)
    rates: _Values = sums[..., 0] / np.maximum(sums[..., 1], 1e-12)
    return rates


STATISTICS = (
    Statistic("output_tokens_per_second", _rate_columns(lambda s: s.tokens_out or 0), _rate, more_is_better=True),
    Statistic("requests_per_second", _rate_columns(lambda s: 1), _rate, more_is_better=True),  # noqa: ARG005
    Statistic("ttft_ms", _median_of(ttft_ms), _median, more_is_better=False),
    Statistic("tpot_ms", _median_of(tpot_ms), _median, more_is_better=False),
    Statistic("e2e_ms", _median_of(e2e_ms), _median, more_is_better=False),
)


def ratio(statistic: Statistic, system: Sequence[Run], baseline: Sequence[Run], seed: int = 0) -> Ratio | None:
    """Return the figure of the system over that of the baseline, geometric means over runs; None where one lacks it.

    Of single runs only the requests can be drawn again: what differs from run to run is then not in the interval.
    """
    dice = np.random.default_rng(seed)
    sides = [_side(statistic, runs, dice) for runs in (system, baseline)]
    a, b = sides
    if a is None or b is None:
        return None
    value = a.value - b.value
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(a.draws - b.draws, (tail, 1 - tail))
    wider = _widening(a, b)
    return Ratio(
        math.exp(value),
        math.exp(value - wider * max(value - float(low), 0.0)),
        math.exp(value + wider * max(float(high) - value, 0.0)),
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """The logarithm of a side's figure, RESAMPLES draws of it, and what its variance consists of."""

    value: float
    draws: _Values
    runs: int
    of_runs: float
    of_requests: float


def _side(statistic: Statistic, runs: Sequence[Run], dice: np.random.Generator) -> _Side | None:
    columns = [columns for run in runs if (columns := statistic.columns(run)).size]
    figures = np.array([statistic.of(rows) for rows in columns])
    if not columns or figures.min() <= 0:
        return None
    count, logs = len(columns), np.log(figures)
    within = np.log(np.maximum(np.stack([_requests(statistic, rows, dice) for rows in columns]), 1e-300))
    of_requests = float(within.var(axis=1).mean())
    seen = float(logs.var(ddof=1)) if count > 1 else 0.0
    of_runs = max(seen - of_requests, 0.0)
    draws = within.mean(axis=0)
    if of_runs > 0:
        # What runs differ by beyond the chance of their requests; few runs show too little of it.
        scale = math.sqrt(of_runs / seen * count / (count - 1))
        deviations = (logs - logs.mean()) * scale
        draws = draws + deviations[dice.integers(count, size=(count, RESAMPLES))].mean(axis=0)
    return _Side(float(logs.mean()), draws, count, of_runs / count, of_requests / count)


def _requests(statistic: Statistic, rows: _Values, dice: np.random.Generator) -> _Values:
    """Return the figure of RESAMPLES draws of as many requests as there are."""
    count = len(rows)
    at_once = max(1, _DRAWS // count)
    parts = []
    for begin in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - begin)
        parts.append(statistic.of(rows[dice.integers(count, size=(size, count))]))
    return np.concatenate(parts)


def _widening(a: _Side, b: _Side) -> float:
    """Return the factor for what is known from a few runs only: Student's t over the normal quantile, by its share."""
    of_runs, all_of_it = a.of_runs + b.of_runs, a.of_runs + b.of_runs + a.of_requests + b.of_requests
    freedom = a.runs + b.runs - 2
    if freedom < 1 or not of_runs:
        return 1.0
    return 1 + (t_quantile(freedom) / normal_quantile() - 1) * of_runs / all_of_it
