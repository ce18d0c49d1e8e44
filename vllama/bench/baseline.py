"""One result against an earlier one: figure by figure, with what else has changed between the two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from vllama.bench.comparison import compare
from vllama.bench.dataclass_json import BadResult
from vllama.bench.environment import differences
from vllama.bench.intervals import STATISTICS
from vllama.bench.result import Comparison, ExperimentResult, Run, System

_LESS_IS_BETTER = frozenset(statistic.name for statistic in STATISTICS if not statistic.more_is_better)
_UNCOMPARED = frozenset({"url", "name"})


@dataclass(frozen=True, slots=True)
class Change:
    """A difference between the two results besides their figures; "" where one of them lacks the value."""

    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class BaselineComparison:
    """`comparisons` have the later result over the earlier; `changes` are of workload, servers and environment."""

    comparisons: tuple[Comparison, ...]
    changes: tuple[Change, ...]

    def failures(self, tolerance: float) -> list[Comparison]:
        """Return where the later result is worse by more than `tolerance` (0.05 for 5 %), beyond doubt.

        Beyond doubt: the interval of the ratio does not hold 1. A better figure whose replies parse worse fails, too.
        """
        return [c for c in self.comparisons if c.verdict == "regression" or _worse_by(c) > tolerance]


def compare_with_baseline(
    after: ExperimentResult, before: ExperimentResult, names: tuple[str, str], *, seed: int = 0
) -> BaselineComparison:
    """Compare a result with an earlier one; `names` say what to call the two, the later first.

    Systems of the same name belong together, or the only ones of both. Raises BadResult where nothing is in common.
    """
    pairs = _pairs(after, before)
    compared: list[Comparison] = []
    for new, old in pairs:
        labels = names if len(pairs) == 1 else (f"{new.name} in {names[0]}", f"{old.name} in {names[1]}")
        runs = [*_relabelled(after.runs, new.name, labels[0]), *_relabelled(before.runs, old.name, labels[1])]
        compared += compare(runs, [replace(old, name=labels[1]), replace(new, name=labels[0])], seed=seed)
    if not compared:
        raise BadResult("the two results have no mode and load in common")
    return BaselineComparison(tuple(compared), tuple(_changes(after, before, pairs)))


def _pairs(after: ExperimentResult, before: ExperimentResult) -> list[tuple[System, System]]:
    if len(after.systems) == len(before.systems) == 1:
        return [(after.systems[0], before.systems[0])]
    old = {system.name: system for system in before.systems}
    pairs = [(system, old[system.name]) for system in after.systems if system.name in old]
    if not pairs:
        mine, theirs = (", ".join(system.name for system in result.systems) for result in (after, before))
        message = f"the two results have no system in common: {mine}; {theirs}"
        raise BadResult(message)
    return pairs


def _relabelled(runs: Sequence[Run], system: str, label: str) -> list[Run]:
    return [replace(run, system=label) for run in runs if run.system == system]


def _changes(
    after: ExperimentResult, before: ExperimentResult, pairs: Sequence[tuple[System, System]]
) -> Iterator[Change]:
    sides = [(asdict(before.workload), asdict(after.workload), "workload")]
    sides += [(asdict(old), asdict(new), new.name) for new, old in pairs]
    for old, new, where in sides:
        for name, values in differences(old, new).items():
            if name not in _UNCOMPARED:
                yield Change(f"{where}: {name}", *values)
    for name, values in differences(before.environment, after.environment).items():
        yield Change(name, *values)


def _worse_by(comparison: Comparison) -> float:
    """Return by what share the later result is worse; 0 where it is not, or not beyond doubt."""
    if comparison.verdict != "worse":
        return 0.0
    is_longer = comparison.metric in _LESS_IS_BETTER
    return comparison.ratio - 1 if is_longer else 1 - comparison.ratio
