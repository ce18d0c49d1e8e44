"""Diagnose a server in words from a sweep over concurrency. The limits are in docs/benchmarking.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log2

from vllama.bench.result import Diagnosis, Summary

FLAT = 1.25
"""Throughput that grows by less than this over the whole sweep does not grow."""
GROWS = 1.5
QUEUED = 0.6
"""Latency that grows by this share of the concurrency is that of a queue."""
SATURATED = 1.1
"""Doubling the clients brings less than this: more of them only wait longer."""
BUSY_CLIENT = 0.85
LAGGING_CLIENT = 0.1
"""Of the median latency: requests that an open loop sends that much too late."""
LOW_UTILIZATION = 0.5


def diagnose(summaries: Sequence[Summary], utilization: Mapping[str, float] | None = None) -> tuple[Diagnosis, ...]:
    """Return what each system's sweeps say, mode by mode, the worst for the measurement itself first.

    `utilization` is the share of its GPU, 0 to 1, that a system used under the most clients, where it is known.
    """
    sweeps: dict[tuple[str, str], list[Summary]] = {}
    for summary in summaries:
        if summary.mode in {"sequential", "concurrent", "streaming"}:
            kind = "streaming" if summary.mode == "streaming" else "whole"
            sweeps.setdefault((summary.system, kind), []).append(summary)
    found: list[Diagnosis] = []
    for (system, _), sweep in sweeps.items():
        found += _client_bound(system, sweep)
        closed = sorted((one for one in sweep if one.concurrency), key=_clients)
        found += _scaling(system, [one for one in closed if one.metrics.ok], (utilization or {}).get(system))
    return tuple(found)


def _clients(summary: Summary) -> int:
    return summary.concurrency or 0


def _client_bound(system: str, sweep: Sequence[Summary]) -> list[Diagnosis]:
    for one in sweep:
        level = f"at {one.rate:g} requests/s" if one.rate is not None else f"at C = {one.concurrency}"
        if one.client_cpu >= BUSY_CLIENT:
            sentence = (
                f"client-bound {level}: the load generator used {one.client_cpu:.0%} of a core, so the server may be "
                "faster than this; give it more --processes, or a machine of its own"
            )
            return [Diagnosis(system, "client-bound", one.concurrency, sentence)]
        lag, latency = one.metrics.lag_ms, one.metrics.e2e_ms
        if one.rate is not None and lag and latency and lag.p95 > max(LAGGING_CLIENT * latency.p50, 5.0):
            sentence = (
                f"client-bound {level}: requests went out up to {lag.p95:.0f} ms (p95) after they were due; "
                "give the load generator more --processes, or a machine of its own"
            )
            return [Diagnosis(system, "client-bound", one.concurrency, sentence)]
    return []


def _scaling(system: str, sweep: Sequence[Summary], utilization: float | None) -> list[Diagnosis]:
    if len(sweep) < 2:
        return []
    least, most = sweep[0], sweep[-1]
    clients = _clients(most) / _clients(least)
    gain = _growth(most, least)
    slower = _slowdown(most, least)
    span = (
        f"from C = {least.concurrency} to C = {most.concurrency} throughput grows {gain:.2f} × "
        f"and latency {slower:.2f} ×"
    )
    if gain < FLAT and clients >= 2 and slower >= max(QUEUED * clients, 1.2):
        used = ""
        if utilization is not None and utilization < LOW_UTILIZATION:
            used = f", with the GPU {utilization:.0%} in use"
        sentence = f"serialises: {span}{used}; requests wait for each other"
        return [Diagnosis(system, "serialises", most.concurrency, sentence)]
    found = []
    if gain >= min(GROWS, 1 + (clients - 1) / 2):
        found.append(Diagnosis(system, "batches", most.concurrency, f"batches: {span}"))
    if full := _saturation(sweep):
        sentence = (
            f"saturated at C = {full.concurrency}: beyond it, twice the clients bring less than {SATURATED - 1:.0%} "
            f"more than its {full.metrics.output_tokens_per_second:,.0f} tokens/s"
        )
        found.append(Diagnosis(system, "saturated", full.concurrency, sentence))
    return found or [Diagnosis(system, "unclear", most.concurrency, f"no clear picture: {span}")]


def _saturation(sweep: Sequence[Summary]) -> Summary | None:
    """Return the first level beyond which no step brings enough for each doubling of the clients."""
    full = None
    for fewer, more in reversed(list(pairwise(sweep))):
        clients = _clients(more) / _clients(fewer)
        if clients <= 1 or _growth(more, fewer) >= SATURATED ** log2(clients):
            break
        full = fewer
    return full


def _growth(more: Summary, fewer: Summary) -> float:
    """Return the gain in output tokens, or in requests where the server counts no tokens."""
    ours, theirs = more.metrics, fewer.metrics
    if theirs.output_tokens_per_second > 0:
        return ours.output_tokens_per_second / theirs.output_tokens_per_second
    return ours.requests_per_second / theirs.requests_per_second if theirs.requests_per_second else 0.0


def _slowdown(more: Summary, fewer: Summary) -> float:
    ours, theirs = more.metrics.e2e_ms, fewer.metrics.e2e_ms
    return ours.p50 / theirs.p50 if ours and theirs and theirs.p50 else 0.0
