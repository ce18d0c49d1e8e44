"""Whether two sides may be compared, and what the comparison says."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from vllama.bench.intervals import STATISTICS, Ratio, Statistic, ratio
from vllama.bench.metrics import metrics
from vllama.bench.result import (
    Comparison,
    Decomposition,
    Difference,
    LoadLevel,
    Metrics,
    Run,
    Sample,
    Slo,
    System,
    Verdict,
)
from vllama.bench.students_t import CONFIDENCE
from vllama.errors import VllamaError

SAME_LENGTH = 0.02
"""Mean lengths of replies that differ by less are the same."""
CHANCE = 2.0
"""Standard errors by which means differ that are the same."""

_LOADS = {"coldstart", "switch"}

WORDS = {
    "output_tokens_per_second": "output throughput",
    "requests_per_second": "request throughput",
    "ttft_ms": "median time to first token",
    "tpot_ms": "median time per token",
    "e2e_ms": "median latency",
}


class NotComparable(VllamaError):
    """The sides differ in more than what is to be compared."""

    def __init__(self, differences: Sequence[Difference]) -> None:
        named = "; ".join(describe(difference) for difference in differences)
        super().__init__(f"the sides differ: {named}. To compare them nevertheless, give --allow-different")
        self.differences = differences


def describe(difference: Difference) -> str:
    """Return a difference in words: `context (vllama: 8192, ollama: 4096)`."""
    values = ", ".join(f"{system}: {value}" for system, value in difference.values.items())
    return f"{difference.what} ({values})"


def declared_differences(systems: Sequence[System]) -> list[Difference]:
    """Return in what the servers themselves say that they differ; what one does not say is no difference."""
    rows = (
        ("context", {system.name: str(system.facts.context or "") for system in systems}),
        ("quantization", {system.name: system.facts.quantization.upper() for system in systems}),
    )
    return [Difference(what, values) for what, values in rows if len(set(filter(None, values.values()))) > 1]


def prompt_difference(tokens: dict[str, int | None]) -> list[Difference]:
    """Return the difference in the tokens of one and the same prompt, if there is one, by system."""
    if len({count for count in tokens.values() if count is not None}) < 2:
        return []
    return [Difference("prompt tokens", {system: str(count) for system, count in tokens.items() if count is not None})]


def length_differences(runs: Sequence[Run]) -> list[Difference]:
    """Return where replies of one level differ in mean length, by more than SAME_LENGTH and by more than chance."""
    found = []
    for level, group in _by_level(runs).items():
        lengths = {system: _lengths(samples) for system, samples in _by_system(group).items()}
        means = {system: statistics.fmean(values) for system, values in lengths.items() if values}
        if len(means) < 2:
            continue
        apart = max(means.values()) - min(means.values())
        chance = CHANCE * math.sqrt(sum(_squared_error(lengths[system]) for system in means))
        if apart > max(SAME_LENGTH * max(means.values()), chance):
            values = {system: f"{mean:.1f}" for system, mean in means.items()}
            found.append(Difference(f"output tokens, {level.label}", values))
    return found


def _lengths(samples: Sequence[Sample]) -> list[int]:
    return [sample.tokens_out for sample in samples if sample.outcome == "ok" and sample.tokens_out is not None]


def _squared_error(lengths: Sequence[int]) -> float:
    """Return the squared standard error of the mean."""
    return statistics.variance(lengths) / len(lengths) if len(lengths) > 1 else 0.0


def compare(runs: Sequence[Run], systems: Sequence[System], *, seed: int) -> tuple[Comparison, ...]:
    """Compare every other system with the first, level by level, in each figure of STATISTICS that both have."""
    baseline, others = systems[0], systems[1:]
    compared: list[Comparison] = []
    for level, group in _by_level(runs).items():
        base = [run for run in group if run.system == baseline.name]
        for other in others:
            ours = [run for run in group if run.system == other.name]
            if base and ours:
                compared += _compare_level(level, ours, base, seed)
    return tuple(compared)


def _compare_level(level: LoadLevel, ours: Sequence[Run], base: Sequence[Run], seed: int) -> Iterable[Comparison]:
    worse_parsing = _parses_worse(ours, base)
    for statistic in STATISTICS:
        if level.mode in _LOADS and statistic.more_is_better:
            continue  # there is no throughput where every request waits for a load
        found = ratio(statistic, ours, base, seed)
        if found is None:
            continue
        verdict = _verdict(statistic, found, worse_parsing=worse_parsing)
        sentence = _sentence(statistic, found, verdict, ours, base)
        yield Comparison(
            statistic.name,
            ours[0].system,
            base[0].system,
            ours[0].mode,
            level.concurrency,
            level.rate,
            found.value,
            found.low,
            found.high,
            CONFIDENCE,
            verdict,
            sentence,
        )


def _verdict(statistic: Statistic, found: Ratio, *, worse_parsing: bool) -> Verdict:
    if found.holds_one:
        return "no difference"
    if (found.value > 1) is not statistic.more_is_better:
        return "worse"
    return "regression" if worse_parsing else "better"


def _sentence(statistic: Statistic, found: Ratio, verdict: Verdict, ours: Sequence[Run], base: Sequence[Run]) -> str:
    a, b, what = ours[0].system, base[0].system, WORDS[statistic.name]
    interval = f"{found.low:.2f} to {found.high:.2f}"
    if verdict == "no difference":
        text = f"{what}: no difference between {a} and {b} is shown ({interval} ×)"
    else:
        text = f"{what} of {a} is {found.value:.2f} × that of {b} ({interval})"
    if verdict == "regression":
        rates = [_metrics(runs).parse_rate or 0 for runs in (ours, base)]
        text += f", but only {rates[0]:.0%} of its replies parse, {rates[1]:.0%} of {b}'s: a regression"
    if min(len(ours), len(base)) == 1:
        text += "; from one run, so what changes from run to run is not in it"
    return text


def _parses_worse(ours: Sequence[Run], base: Sequence[Run]) -> bool:
    """Whether fewer of our replies keep the schema, or fewer of a field's values."""
    a, b = _metrics(ours), _metrics(base)
    if a.parse_rate is None or b.parse_rate is None:
        return False
    return a.parse_rate < b.parse_rate or any(a.field_rates.get(name, 0) < rate for name, rate in b.field_rates.items())


def decompose(
    comparisons: Sequence[Comparison], *, system: str, control: str, baseline: str
) -> tuple[Decomposition, ...]:
    """Part system / baseline into what the server does and what the model does.

    `control` is the baseline's model on the system's server. The comparisons are those of both with the baseline.
    """
    ratios = {(one.system, one.metric, one.mode, one.concurrency, one.rate): one for one in comparisons}
    parts = []
    for (name, *place), total in ratios.items():
        server = ratios.get((control, *place))  # type: ignore[arg-type]
        if name == system and server and total.baseline == baseline:
            parts.append(
                Decomposition(
                    total.metric,
                    system,
                    control,
                    baseline,
                    total.mode,
                    total.concurrency,
                    server.ratio,
                    total.ratio / server.ratio,
                    total.ratio,
                )
            )
    return tuple(parts)


def _by_level(runs: Sequence[Run]) -> dict[LoadLevel, list[Run]]:
    groups: dict[LoadLevel, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.level, []).append(run)
    return groups


def _by_system(runs: Sequence[Run]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for run in runs:
        groups.setdefault(run.system, []).extend(run.samples)
    return groups


def _metrics(runs: Sequence[Run]) -> Metrics:
    return metrics([sample for run in runs for sample in run.samples], 0.0, Slo())
