"""From samples to figures; the formulas and units are those of docs/benchmarking.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from vllama.bench.result import Distribution, Metrics, Run, Sample, Slo, Summary

_MS = 1e6
_S = 1e9

Window = tuple[int, int]


def window_of(samples: Sequence[Sample]) -> Window:
    """Return the first start and the last end, in ns; (0, 0) of nothing."""
    if not samples:
        return 0, 0
    return min(sample.start for sample in samples), max(sample.end for sample in samples)


def ttft_ms(sample: Sample) -> float | None:
    """Return the time to the first text."""
    return None if sample.first is None else (sample.first - sample.start) / _MS


def tpot_ms(sample: Sample) -> float | None:
    """Return the time per token after the first, of a reply with two or more."""
    if sample.first is None or sample.tokens_out is None or sample.tokens_out < 2:
        return None
    return (sample.end - sample.first) / _MS / (sample.tokens_out - 1)


def e2e_ms(sample: Sample) -> float:
    """Return the time from start to end."""
    return (sample.end - sample.start) / _MS


def is_good(sample: Sample, slo: Slo) -> bool:
    """Whether an ok request keeps every limit; one that lacks a limited figure does not."""
    if sample.outcome != "ok":
        return False
    figures = (
        (slo.ttft_ms, ttft_ms(sample)),
        (slo.tpot_ms, tpot_ms(sample) if (sample.tokens_out or 0) != 1 else 0.0),
        (slo.e2e_ms, e2e_ms(sample)),
    )
    return all(limit is None or (value is not None and value <= limit) for limit, value in figures)


def distribution(values: Iterable[float | None]) -> Distribution | None:
    """Return the distribution of those that are not None, or None if there are none."""
    known = np.array([value for value in values if value is not None], dtype=float)
    if not known.size:
        return None
    p50, p90, p95, p99 = (float(p) for p in np.percentile(known, (50, 90, 95, 99)))
    return Distribution(
        int(known.size), float(known.mean()), float(known.min()), p50, p90, p95, p99, float(known.max())
    )


def metrics(samples: Sequence[Sample], seconds: float, slo: Slo | None = None) -> Metrics:
    """Return the metrics of samples from windows that last `seconds` in total."""
    ok = [sample for sample in samples if sample.outcome == "ok"]
    outcomes = Counter(sample.outcome for sample in samples)
    asked = len(samples) - outcomes["cancelled"]
    has_slo = slo is not None and slo != Slo()
    good = sum(is_good(sample, slo) for sample in ok) if has_slo and slo else 0
    tokens_in, tokens_out = (sum(tokens or 0 for tokens in column) for column in _columns(ok))
    gated = any(sample.valid is not None for sample in samples)

    def per_second(amount: float) -> float:
        return amount / seconds if seconds > 0 else 0.0

    return Metrics(
        ok=len(ok),
        errors=outcomes["error"],
        dropped=outcomes["dropped"],
        timeouts=outcomes["timeout"],
        cancelled=outcomes["cancelled"],
        seconds=seconds,
        requests_per_second=per_second(len(ok)),
        output_tokens_per_second=per_second(tokens_out),
        total_tokens_per_second=per_second(tokens_in + tokens_out),
        in_flight=per_second(sum(sample.end - sample.start for sample in samples) / _S),
        tokens_in=distribution(sample.tokens_in for sample in ok),
        tokens_out=distribution(sample.tokens_out for sample in ok),
        ttft_ms=distribution(map(ttft_ms, ok)),
        tpot_ms=distribution(map(tpot_ms, ok)),
        itl_ms=distribution((b - a) / _MS for sample in ok for a, b in pairwise(sample.chunks)),
        e2e_ms=distribution(map(e2e_ms, ok)),
        lag_ms=distribution((sample.sent - sample.start) / _MS for sample in samples),
        goodput_per_second=per_second(good) if has_slo else None,
        good_share=good / asked if has_slo and asked else None,
        parse_rate=sum(sample.valid is True for sample in samples) / asked if gated and asked else None,
        field_rates=_field_rates(samples, asked) if gated else {},
    )


def _columns(samples: Sequence[Sample]) -> tuple[list[int | None], list[int | None]]:
    return [sample.tokens_in for sample in samples], [sample.tokens_out for sample in samples]


def _field_rates(samples: Sequence[Sample], asked: int) -> dict[str, float]:
    names = dict.fromkeys(name for sample in samples for name in sample.fields)
    return {name: sum(sample.fields.get(name, False) for sample in samples) / asked for name in names}


def summarize(runs: Sequence[Run], slo: Slo) -> tuple[Summary, ...]:
    """Return one summary for each system, level and model, in the order of the runs, inflation filled in."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.system, run.level, run.model), []).append(run)
    return _inflate([_summary(group, slo) for group in groups.values()])


def _summary(runs: Sequence[Run], slo: Slo) -> Summary:
    samples = [sample for run in runs for sample in run.samples]
    first = runs[0]
    return Summary(
        first.system,
        first.mode,
        metrics(samples, sum(run.metrics.seconds for run in runs), slo),
        first.concurrency,
        first.rate,
        first.model,
        max(run.client_cpu for run in runs),
    )


def _inflate(summaries: Sequence[Summary]) -> tuple[Summary, ...]:
    alone = {(one.system, _kind(one)): _median_e2e(one) for one in summaries if one.concurrency == 1}

    def inflation(one: Summary) -> float | None:
        base, now = alone.get((one.system, _kind(one))), _median_e2e(one)
        return now / base if base and now and one.rate is None else None

    return tuple(replace(one, metrics=replace(one.metrics, inflation=inflation(one))) for one in summaries)


def _kind(summary: Summary) -> str:
    """Return what modes have in common in which one client does the same."""
    return "concurrent" if summary.mode == "sequential" else summary.mode


def _median_e2e(summary: Summary) -> float | None:
    return summary.metrics.e2e_ms.p50 if summary.metrics.e2e_ms else None
