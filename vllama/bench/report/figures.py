"""The figures of a result as a table, and its findings in words: what all reports share."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllama.bench.result import Distribution, ExperimentResult, LoadLevel, Run, Summary


@dataclass(frozen=True, slots=True)
class Row:
    """One system at one level.

    `machine` are the means of its runs' telemetry figures, `cpu` the CPU time of named server processes in µs per
    output token (overhead mode).
    """

    summary: Summary
    machine: dict[str, float]
    cpu: dict[str, float]

    @property
    def load(self) -> str:
        """The concurrency or the rate in words."""
        if self.summary.rate is not None:
            return f"{self.summary.rate:g}/s"
        return str(self.summary.concurrency or "")


@dataclass(frozen=True, slots=True)
class Column:
    """A figure: its heading, and its text for a row, "" where the row has none. `is_brief`: a console shows it, too."""

    title: str
    text: Callable[[Row], str]
    is_brief: bool = True
    is_number: bool = True


def rows_of(result: ExperimentResult) -> list[Row]:
    """Return a row for each summary."""
    return [_row(result.runs, summary) for summary in result.summaries]


def columns_of(rows: Sequence[Row], *, brief: bool = False) -> list[Column]:
    """Return the columns in which some row has something."""
    processes = dict.fromkeys(name for row in rows for name in row.cpu)
    columns = [*_COLUMNS, *(_cpu_of(name) for name in processes)]
    return [c for c in columns if (c.is_brief or not brief) and any(c.text(row) for row in rows)]


@dataclass(frozen=True, slots=True)
class Finding:
    """A paragraph of a report. `kind` is "warning", "verdict" or "note"."""

    kind: str
    text: str


def findings_of(result: ExperimentResult) -> list[Finding]:
    """Return what the result says in words: what to beware of first, then verdicts, then notes."""
    found = [Finding("warning", text) for text in result.warnings]
    if result.interrupted:
        found.insert(0, Finding("warning", "Interrupted: this is what was measured before."))
    for difference in result.differences:
        values = ", ".join(f"{system} {value}" for system, value in difference.values.items())
        found.append(Finding("warning", f"The sides differ in {difference.what}: {values}."))
    found += [Finding("verdict", f"{diagnosis.system}: {diagnosis.sentence}") for diagnosis in result.diagnoses]
    found += [Finding("warning", c.sentence) for c in result.comparisons if c.verdict == "regression"]
    if any(run.mode == "overhead" for run in result.runs):
        from vllama.bench.overhead import table_of  # it knows the load generator, which a report does without

        found += [Finding("verdict", line) for line in table_of(result).splitlines()]
    for part in result.decompositions:
        level = f" at C = {part.concurrency}" if part.concurrency else ""
        found.append(
            Finding(
                "verdict",
                f"{part.metric}{level}: {part.system} / {part.baseline} = {part.total:.2f}, of which the server "
                f"{part.server:.2f} ({part.control} / {part.baseline}) times the model {part.model:.2f} "
                f"({part.system} / {part.control}).",
            )
        )
    if result.comparisons and len(result.runs) == len({(run.system, run.level) for run in result.runs}):
        found.append(Finding("note", "Compared from one run of each: what changes from run to run is in no interval."))
    notes = dict.fromkeys(note for run in result.runs if run.telemetry for note in run.telemetry.notes)
    return found + [Finding("note", f"{note[0].upper()}{note[1:]}.") for note in notes]


def comparisons_of(result: ExperimentResult) -> list[tuple[str, ...]]:
    """Return the comparisons as a table, its heading first; an empty list without comparisons."""
    lines = [
        (
            f"{c.system} / {c.baseline}",
            c.mode,
            f"{c.rate:g}/s" if c.rate is not None else str(c.concurrency or ""),
            FIGURES.get(c.metric, c.metric),
            ratio(c.ratio),
            f"{ratio(c.low)} – {ratio(c.high)}",
            c.verdict,
        )
        for c in result.comparisons
    ]
    return [COMPARISON_HEADING, *lines] if lines else []


COMPARISON_HEADING = ("ratio", "mode", "C", "figure", "×", "95 % interval", "verdict")
FIGURES = {
    "output_tokens_per_second": "output tokens/s",
    "requests_per_second": "requests/s",
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token",
    "e2e_ms": "time to the whole reply",
}
"""Names of the compared metrics in reports."""


def heading_of(result: ExperimentResult) -> str:
    """Return who was measured with what, in one line."""
    models = list(dict.fromkeys(system.model for system in result.systems))
    names = [system.name if len(models) == 1 else f"{system.name} with {system.model}" for system in result.systems]
    return f"{models[0]}: {' against '.join(names)}" if len(models) == 1 else " against ".join(names)


def systems_of(result: ExperimentResult) -> list[str]:
    """Return a line for each system: its URL and the facts that it reports."""
    lines = []
    for system in result.systems:
        facts = system.facts
        known = {
            "server": facts.server,
            "quantization": facts.quantization,
            "context": f"{facts.context:,}" if facts.context else "",
            "digest": facts.digest.removeprefix("sha256:")[:12],
        }
        said = "".join(f", {name} {value}" for name, value in known.items() if value)
        lines.append(f"{system.name}: {system.model} at {system.url}, {system.api} API{said}")
    return lines


def workload_of(result: ExperimentResult) -> str:
    """Return what was asked for, in one line."""
    work = result.workload
    prompt = f"{work.prompt_tokens} prompt tokens, " if work.prompt_tokens else ""
    prefix = "a fresh prefix for each request" if work.fresh_prefix else "prefixes shared between requests"
    return f"{work.source} prompts, {prompt}at most {work.output_tokens} output tokens, {prefix}, seed {work.seed}"


def machine_of(result: ExperimentResult) -> str:
    """Return the machine of the manifest in one line; "" if the manifest has none."""
    hardware: dict[str, Any] = result.environment.get("hardware") or {}
    if not hardware:
        return ""
    names = [str(gpu.get("name", "GPU")) for gpu in hardware.get("gpus") or ()]
    gpus = [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]
    memory = f"{hardware['memory_bytes'] / 2**30:.0f} GiB" if hardware.get("memory_bytes") else ""
    cpu = f"{hardware.get('cores', '?')} cores of {hardware.get('cpu', 'an unknown processor')}"
    return ", ".join(filter(None, [*gpus, cpu, memory]))


def _row(runs: Sequence[Run], summary: Summary) -> Row:
    level = LoadLevel(summary.mode, summary.concurrency, summary.rate)
    mine = [r for r in runs if (r.system, r.level, r.model) == (summary.system, level, summary.model)]
    figures = [run.telemetry.figures for run in mine if run.telemetry]
    names = dict.fromkeys(name for known in figures for name in known)
    machine = {name: statistics.fmean(known[name] for known in figures if name in known) for name in names}
    tokens = sum(sample.tokens_out or 0 for run in mine for sample in run.samples if sample.outcome == "ok")
    processes = dict.fromkeys(name for run in mine for name in run.server_cpu)
    spent = {name: sum(run.server_cpu.get(name, 0) for run in mine) for name in processes}
    return Row(summary, machine, {name: ns / 1000 / tokens for name, ns in spent.items() if tokens})


def _of(name: str, percentile: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        distribution: Distribution | None = getattr(row.summary.metrics, name)
        return "" if distribution is None else number(getattr(distribution, percentile))

    return text


def _plain(name: str, scale: float = 1.0) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        value = getattr(row.summary.metrics, name)
        return "" if value is None else number(value * scale)

    return text


def _machines(name: str, scale: float = 1.0) -> Callable[[Row], str]:
    return lambda row: number(row.machine[name] * scale) if name in row.machine else ""


def _cpu_of(process: str) -> Column:
    return Column(f"{process} µs/token", lambda row: number(row.cpu[process]) if process in row.cpu else "")


def number(value: float) -> str:
    """Return a number with three or more significant digits: `0.00123`, `12.3`, `1,234`."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(value: float) -> str:
    """Return a ratio so that one sees on which side of 1 it is: `0.62`, `1.003`."""
    return f"{value:.3f}" if 0.95 < value < 1.05 else number(value)


_COLUMNS = (
    Column("system", lambda row: row.summary.system, is_number=False),
    Column("mode", lambda row: row.summary.mode, is_number=False),
    Column("model", lambda row: row.summary.model, is_brief=False, is_number=False),
    Column("C", lambda row: row.load),
    Column("ok", lambda row: str(row.summary.metrics.ok), is_brief=False),
    Column("failed", lambda row: str(row.summary.metrics.failed or "")),
    Column("requests/s", _plain("requests_per_second")),
    Column("tokens/s", _plain("output_tokens_per_second")),
    Column("TTFT p50 ms", _of("ttft_ms", "p50")),
    Column("p95", _of("ttft_ms", "p95")),
    Column("TPOT p50 ms", _of("tpot_ms", "p50")),
    Column("p95", _of("tpot_ms", "p95"), is_brief=False),
    Column("ITL p99 ms", _of("itl_ms", "p99"), is_brief=False),
    Column("E2E p50 ms", _of("e2e_ms", "p50")),
    Column("p95", _of("e2e_ms", "p95")),
    Column("p99", _of("e2e_ms", "p99"), is_brief=False),
    Column("inflation ×", _plain("inflation"), is_brief=False),
    Column("goodput/s", _plain("goodput_per_second")),
    Column("parsed %", _plain("parse_rate", 100)),
    Column("GPU %", _machines("gpu_utilization_percent")),
    Column("GPU W", _machines("gpu_power_w"), is_brief=False),
    Column("tokens/J", _machines("tokens_per_joule")),
    Column("server cores", _machines("server_cpu_cores"), is_brief=False),
    Column("server GB", _machines("server_rss_bytes", 1e-9), is_brief=False),
    Column("client CPU %", lambda row: number(100 * row.summary.client_cpu), is_brief=False),
)
