"""From the runs of an experiment to its result: summaries, comparisons, diagnoses and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from vllama.bench.comparison import compare, decompose, describe, length_differences
from vllama.bench.design import ExperimentDesign
from vllama.bench.diagnosis import diagnose
from vllama.bench.environment import manifest
from vllama.bench.metrics import summarize
from vllama.bench.result import Comparison, Decomposition, Difference, ExperimentResult, Run, Workload
from vllama.bench.sample_checks import check_samples


def conclude(
    design: ExperimentDesign,
    runs: Sequence[Run],
    *,
    created: str = "",
    environment: dict[str, Any] | None = None,
    differences: Sequence[Difference] = (),
    warnings: Sequence[str] = (),
    interrupted: bool = False,
) -> ExperimentResult:
    """Return the result of these runs of the design, with all that follows from them."""
    summaries = summarize(runs, design.slo)
    compared = {system.name for system in design.systems[:2]}
    lengths = length_differences([run for run in runs if run.system in compared and run.mode != "overhead"])
    comparisons, decompositions, refusals = _conclusions(design, runs, lengths)
    return ExperimentResult(
        command=design.command,
        created=created or now(),
        systems=design.systems,
        workload=Workload(
            design.prompts.path or "synthetic",
            design.prompt_tokens,
            design.output_tokens,
            design.prompts.fresh_prefix,
            design.seed,
            design.task.name if design.task else "",
        ),
        runs=tuple(runs),
        summaries=summaries,
        options=design.options or {},
        environment=manifest(design.systems) if environment is None else environment,
        slo=design.slo,
        differences=(*differences, *lengths),
        comparisons=comparisons,
        decompositions=decompositions,
        diagnoses=diagnose(summaries, _utilization(runs)),
        warnings=tuple(dict.fromkeys((*warnings, *refusals, *check_samples(runs)))),
        interrupted=interrupted,
    )


def _conclusions(
    design: ExperimentDesign, runs: Sequence[Run], lengths: Sequence[Difference]
) -> tuple[tuple[Comparison, ...], tuple[Decomposition, ...], list[str]]:
    """Return what follows for the systems beside each other, or a warning why nothing does."""
    if len(design.systems) < 2 or any(run.mode == "overhead" for run in runs):  # the routes have figures of their own
        return (), (), []
    if lengths and not design.allow_different:
        named = "; ".join(map(describe, lengths))
        return (), (), [f"not compared, because the replies differ: {named}; see --allow-different"]
    ours, baseline, *controls = design.systems
    comparisons = compare(runs, (baseline, ours, *controls), seed=design.seed)
    if not controls:
        return comparisons, (), []
    names = {"system": ours.name, "control": controls[0].name, "baseline": baseline.name}
    return comparisons, decompose(comparisons, **names), []


def now() -> str:
    """Return the moment in UTC as RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _utilization(runs: Sequence[Run]) -> dict[str, float]:
    """Return the share of its GPUs that each system used under the most clients, where it is known."""
    most = max((run.concurrency or 0 for run in runs), default=0)
    return {
        run.system: run.telemetry.figures["gpu_utilization_percent"] / 100
        for run in runs
        if run.concurrency == most and run.telemetry and "gpu_utilization_percent" in run.telemetry.figures
    }
