"""The cost of tokens and the number of GPUs for a number of users, computed from a result with every step shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vllama.bench.result import ExperimentResult, Run, Summary

_GOOD_SHARE = 0.99
"""Of a load's requests, how many have to keep the SLO for the load to count as served."""

_NO_SLO = (
    "No request had to keep a limit: with --slo-ttft, --slo-tpot or --slo-e2e only the levels that do would count."
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one system costs at its best level.

    `per_million` is the money for a million output tokens, `gpus` what the system measured has (a machine without GPUs
    counts as one), `gpus_needed` what so many concurrent users need. `arithmetic` are the steps as text.
    """

    system: str
    concurrency: int
    per_million: float
    gpus: int
    gpus_needed: int | None
    arithmetic: tuple[str, ...]


def costs_of(result: ExperimentResult, per_hour: float, users: int | None = None) -> list[Cost]:
    """Return each system's cost at `per_hour` money for one GPU (or machine without one) and hour.

    The level is the one with the most output tokens per second among those of closed loops, where there is an SLO
    among those whose requests keep it. A system without such a level is left out.
    """
    found = []
    for system in result.systems:
        levels = [s for s in result.summaries if s.system == system.name and s.concurrency and _counts(result, s)]
        if levels:
            best = max(levels, key=lambda summary: summary.metrics.output_tokens_per_second)
            gpus, unit = _gpus(result.runs, system.name)
            found.append(_cost(best, per_hour, users, gpus, unit))
    if found and not _has_slo(result):
        found[-1] = replace(found[-1], arithmetic=(*found[-1].arithmetic, _NO_SLO))
    return found


def _cost(best: Summary, per_hour: float, users: int | None, gpus: int, unit: str) -> Cost:
    speed = best.metrics.output_tokens_per_second
    concurrency = best.concurrency or 1
    per_million = per_hour * gpus / (speed * 3600) * 1e6
    where = f"{best.system}: best at C = {concurrency}, {speed:,.0f} output tokens/s on {gpus} {unit}{'s' * (gpus > 1)}"
    price = f"{per_hour:.2f} per {unit} and hour × {gpus} / ({speed:,.0f} tokens/s × 3600 s) × 1,000,000"
    arithmetic = [
        f"{where}, {speed / concurrency:,.1f} for each of {concurrency} users.",
        f"  {price} = {per_million:.4f} per million output tokens.",
    ]
    needed = None
    if users is not None:
        needed = math.ceil(users / concurrency) * gpus
        arithmetic.append(
            f"  {users:,} concurrent users / {concurrency} served together = {users / concurrency:.2f}, rounded up "
            f"{math.ceil(users / concurrency)}, × {gpus} {unit} = {needed}; {needed * per_hour:,.2f} per hour."
        )
    return Cost(best.system, concurrency, per_million, gpus, needed, tuple(arithmetic))


def _counts(result: ExperimentResult, summary: Summary) -> bool:
    metrics = summary.metrics
    if metrics.output_tokens_per_second <= 0:
        return False
    return not _has_slo(result) or (metrics.good_share or 0.0) >= _GOOD_SHARE


def _has_slo(result: ExperimentResult) -> bool:
    return any(limit is not None for limit in (result.slo.ttft_ms, result.slo.tpot_ms, result.slo.e2e_ms))


def _gpus(runs: Sequence[Run], system: str) -> tuple[int, str]:
    """Return how many GPUs the system's runs used, and what to call one."""
    names = {
        name.partition("_")[0]
        for run in runs
        if run.system == system and run.telemetry
        for name in run.telemetry.series
        if name.startswith("gpu")
    }
    return (len(names), "GPU") if names else (1, "machine")
