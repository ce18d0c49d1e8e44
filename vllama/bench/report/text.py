"""A result as text: for the console, as Markdown, and as CSV."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from typing import Any

from vllama.bench.cost import Cost
from vllama.bench.report.figures import (
    Row,
    columns_of,
    comparisons_of,
    findings_of,
    heading_of,
    machine_of,
    rows_of,
    systems_of,
    workload_of,
)
from vllama.bench.result import ExperimentResult

_GAP = "  "
_COMPARED_NUMBERS = (False, False, True, False, True, True, False)
_MARKS = {"warning": "! ", "verdict": "", "note": "· "}


def console(result: ExperimentResult, costs: Sequence[Cost] = ()) -> str:
    """Return the table and the findings for a terminal."""
    rows = rows_of(result)
    columns = columns_of(rows, brief=True)
    table = _grid(
        [[c.title for c in columns], *([c.text(row) or "-" for c in columns] for row in rows)],
        [c.is_number for c in columns],
    )
    comparisons = _grid(comparisons_of(result), _COMPARED_NUMBERS)
    findings = [f"{_MARKS[finding.kind]}{finding.text}" for finding in findings_of(result)]
    money = [line for cost in costs for line in cost.arithmetic]
    return "\n\n".join("\n".join(part) for part in (systems_of(result), table, comparisons, findings, money) if part)


def markdown(result: ExperimentResult, costs: Sequence[Cost] = ()) -> str:
    """Return the whole report as Markdown."""
    rows = rows_of(result)
    columns = columns_of(rows)
    lines = [
        f"# {heading_of(result)}",
        "",
        *(
            f"{line}  "
            for line in filter(None, (result.created, machine_of(result), *systems_of(result), workload_of(result)))
        ),
        f"`{shlex.join(result.command)}`",
        "",
        *(f"- {_BOLD.get(f.kind, '')}{_escaped(f.text)}" for f in findings_of(result)),
        "",
        *_pipes(
            [[c.title for c in columns], *([c.text(row) for c in columns] for row in rows)],
            [c.is_number for c in columns],
        ),
        *_pipes(comparisons_of(result), _COMPARED_NUMBERS),
    ]
    if costs:
        lines += ["## Cost", "", *(f"- {_escaped(line)}" for cost in costs for line in cost.arithmetic)]
    return "\n".join(lines).rstrip() + "\n"


def comma_separated(result: ExperimentResult) -> str:
    """Return a line for each system and level, with all metrics and the means of the telemetry's figures.

    Columns are named as in the JSON: `ttft_ms.p50`, `machine.joules`; a figure that a line lacks is empty there.
    """
    lines = [_flat(row) for row in rows_of(result)]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = StringIO(newline="")
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


_BOLD = {"warning": "**Beware:** "}


def _grid(lines: Sequence[Sequence[str]], numbers: Sequence[bool]) -> list[str]:
    """Return lines in columns, numbers to the right."""
    if not numbers or len(lines) < 2:
        return []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        _GAP.join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, numbers, strict=True)
        ).rstrip()
        for line in lines
    ]


def _pipes(lines: Sequence[Sequence[str]], numbers: Sequence[bool]) -> list[str]:
    """Return lines as a table in Markdown, which a blank line follows."""
    if not numbers or len(lines) < 2:
        return []
    rows = [f"| {' | '.join(map(_escaped, line))} |" for line in lines]
    return [rows[0], f"|{'|'.join('--:' if is_number else '---' for is_number in numbers)}|", *rows[1:], ""]


def _flat(row: Row) -> dict[str, Any]:
    summary = row.summary
    line: dict[str, Any] = {
        "system": summary.system,
        "mode": summary.mode,
        "model": summary.model,
        "concurrency": summary.concurrency,
        "rate": summary.rate,
        "client_cpu": summary.client_cpu,
    }
    for name, value in asdict(summary.metrics).items():
        if isinstance(value, dict):
            line |= {f"{name}.{key}": entry for key, entry in value.items()}
        else:
            line[name] = value
    line |= {f"machine.{name}": value for name, value in row.machine.items()}
    return line | {f"cpu_us_per_token.{name}": value for name, value in row.cpu.items()}


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
