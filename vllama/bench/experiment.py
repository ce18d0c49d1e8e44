"""One bench from beginning to end: ask the servers what they are, let them take turns, and draw the conclusions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from vllama.bench.checks import check_samples, count_tokens
from vllama.bench.comparison import (
    NotComparable,
    compare,
    declared_differences,
    decompose,
    describe,
    length_differences,
    prompt_difference,
)
from vllama.bench.diagnosis import diagnose
from vllama.bench.environment import manifest
from vllama.bench.facts import facts_of
from vllama.bench.fleet import Fleet, Seen
from vllama.bench.generator import Load, Target
from vllama.bench.metrics import metrics, summarize, window_of
from vllama.bench.prompts import PromptSource
from vllama.bench.quality import Task
from vllama.bench.result import (
    Arrivals,
    Comparison,
    Decomposition,
    Difference,
    Mode,
    Result,
    Run,
    Slo,
    System,
    Workload,
)
from vllama.bench.telemetry import Recorder
from vllama.errors import ServerError

IDLE_SECONDS = 1.0
"""How long the machine is watched before the first run."""
SETTLE_SECONDS = 1.2
"""How long a server is left alone before that, and before another one's run: vLLM's workers spin for a second more."""

_NS = 10**9
_CHECKED_TEXTS = 20  # replies of a run whose tokens are counted again
_CALIBRATIONS = 4
_TEXT_OF_ALL = 1 << 30


@dataclass(frozen=True, slots=True)
class Level:
    """A mode under one load: `concurrency` clients, or `rate` requests/s."""

    mode: Mode
    concurrency: int | None = None
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured.

    The first system is the one in question, the second the baseline that it is compared with, a third the control:
    the baseline's model on the first one's server. Every run ends after `iterations` requests or `seconds`.
    `prompt_tokens` is the length of the whole prompt as the first server counts it, its template included.
    `tokenizers` count tokens as the models of these names do, as far as that is at hand.
    """

    systems: tuple[System, ...]
    levels: tuple[Level, ...]
    prompts: PromptSource
    output_tokens: int = 50
    prompt_tokens: int | None = None
    iterations: int | None = None
    seconds: float | None = None
    repetitions: int = 1
    arrivals: Arrivals = "constant"
    warmup: int = 1
    timeout: float = 300.0
    processes: int | None = None
    slo: Slo = field(default_factory=Slo)
    task: Task | None = None
    allow_different: bool = False
    seed: int = 0
    tokenizers: Mapping[str, Callable[[str], int]] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    options: dict[str, Any] | None = None


Progress = Callable[[str, float], object]
"""Hears what happens, and how much of all runs is done, 0 to 1."""


def measure(plan: Plan, progress: Progress) -> Result:
    """Carry out the plan. Ctrl-C ends it with what was measured.

    Raises ServerError and ServerUnreachable if a server does not answer at all, NotComparable if the sides differ and
    that was not allowed, and BadWorkload.
    """
    with ExitStack() as stack:
        return _Experiment(plan, progress, stack).carry_out()


class _Experiment:
    def __init__(self, plan: Plan, progress: Progress, stack: ExitStack) -> None:
        self._plan = plan
        self._progress = progress
        self._stack = stack
        self._fleet = stack.enter_context(Fleet(plan.processes))
        self._recorders: dict[str, Recorder] = {}
        self._systems = plan.systems
        self._prompts = plan.prompts
        self._runs: list[Run] = []
        self._warnings: list[str] = []
        self._differences: list[Difference] = []
        self._interrupted = False

    def carry_out(self) -> Result:
        plan = self._plan
        created = now()
        self._prepare()
        environment = manifest(self._systems)
        try:
            self._take_idle()
            self._run_all()
        except KeyboardInterrupt:
            self._interrupted = True
        plan = replace(plan, systems=self._systems)
        return result_of(
            plan,
            self._runs,
            created=created,
            environment=environment,
            differences=self._differences,
            warnings=self._warnings,
            interrupted=self._interrupted,
        )

    # Before the runs

    def _prepare(self) -> None:
        """Load the models, fix the length of the prompts, and refuse what cannot be compared."""
        plan = self._plan
        for system in self._systems:
            facts_of(system.url, system.api, system.model)  # one that is not there is noticed before others load
        for system in self._systems:
            self._progress(f"{system.name}: loading {system.model}", 0.0)
            self._ask_one(system, self._prompts, 1)
        self._systems = tuple(
            replace(system, facts=facts_of(system.url, system.api, system.model)) for system in self._systems
        )
        if plan.prompt_tokens is not None:
            self._prompts = self._calibrated(self._systems[0], plan.prompt_tokens)
        tokens = {system.name: self._ask_one(system, self._prompts, 1) for system in self._systems}
        compared = self._systems[:2]
        self._differences = [
            *declared_differences(compared),
            *prompt_difference({system.name: tokens[system.name] for system in compared}),
        ]
        if self._differences and not plan.allow_different:
            raise NotComparable(self._differences)

    def _ask_one(self, system: System, prompts: PromptSource, tokens: int) -> int | None:
        """Send one request, apart from all others; return the tokens of its prompt. Raises ServerError."""
        load = replace(self._load(system, Level("streaming", 1), 0), output_tokens=tokens, iterations=1, warmup=0)
        load = replace(load, prompts=replace(prompts, salt=f"{prompts.salt}:before"), seconds=None, schema=None)
        seen = self._fleet.run(load, lambda ended: ended)
        if seen.interrupted:
            raise KeyboardInterrupt
        (sample,) = seen.samples
        if sample.outcome != "ok":
            message = f"{system.name} ({system.url}): {sample.error or sample.outcome}"
            raise ServerError(message)
        return sample.tokens_in

    def _calibrated(self, system: System, wanted: int) -> PromptSource:
        """Return prompts of so many tokens, by what the server counts; a word of them is a token."""
        prompts = replace(self._prompts, words=max(0, wanted - 60))
        for _ in range(_CALIBRATIONS):
            counted = self._ask_one(system, prompts, 1)
            if counted is None or counted == wanted:
                break
            words = max(0, prompts.words + wanted - counted)
            if words == prompts.words:
                break
            prompts = replace(prompts, words=words)
        if counted is None:
            self._warnings.append(f"{system.name} does not count tokens: the length of the prompts is a guess")
        elif counted != wanted:
            self._warnings.append(f"prompts have {counted} tokens; {wanted} cannot be had")
        return prompts

    def _take_idle(self) -> None:
        for system in self._systems:
            self._recorders[system.name] = self._stack.enter_context(Recorder(system.url))
        self._progress("watching the idle machine", 0.0)
        time.sleep(SETTLE_SECONDS)
        begin = time.monotonic_ns()
        time.sleep(IDLE_SECONDS)
        for recorder in self._recorders.values():
            recorder.take_idle((begin, time.monotonic_ns()))

    # The runs

    def _run_all(self) -> None:
        """Let the systems take turns, so that a drift of the machine hits all alike."""
        turns = list(self._turns())
        for number, (level, repetition, system) in enumerate(turns):
            if number and len(self._systems) > 1:
                time.sleep(SETTLE_SECONDS)
            what = f"{system.name} {_words(level)}" + (f" #{repetition + 1}" if self._plan.repetitions > 1 else "")
            run, interrupted = self._run(system, level, repetition, what, (number / len(turns), 1 / len(turns)))
            if run.samples:
                self._runs.append(run)
            if interrupted:
                raise KeyboardInterrupt

    def _turns(self) -> Iterator[tuple[Level, int, System]]:
        for level in self._plan.levels:
            for repetition in range(self._plan.repetitions):
                for system in self._systems:
                    yield level, repetition, system

    def _run(
        self, system: System, level: Level, repetition: int, what: str, share: tuple[float, float]
    ) -> tuple[Run, bool]:
        plan = self._plan
        begun = time.monotonic()
        before, part = share

        def hear(ended: int) -> None:
            done = max(
                ended / plan.iterations if plan.iterations else 0.0,
                (time.monotonic() - begun) / plan.seconds if plan.seconds else 0.0,
            )
            self._progress(what, before + part * min(done, 1.0))

        self._progress(what, before)
        seen = self._fleet.run(self._load(system, level, repetition), hear)
        samples = self._judged(count_tokens(seen, plan.tokenizers.get(system.model)))
        window = window_of(samples.samples)
        figures = metrics(samples.samples, (window[1] - window[0]) / _NS, plan.slo)
        tokens = sum(sample.tokens_out or 0 for sample in samples.samples)
        return Run(
            system=system.name,
            mode=level.mode,
            repetition=repetition,
            window=window,
            samples=samples.samples,
            metrics=figures,
            concurrency=level.concurrency,
            rate=level.rate,
            arrivals=plan.arrivals if level.rate else None,
            model=system.model,
            client_cpu=seen.cpu,
            client_processes=seen.processes,
            telemetry=self._recorders[system.name].telemetry(window, tokens)
            if system.name in self._recorders
            else None,
        ), seen.interrupted

    def _load(self, system: System, level: Level, repetition: int) -> Load:
        plan = self._plan
        # All get the same prompts, unless they share a server and so its prefix cache.
        shares = sum(urlsplit(other.url).netloc == urlsplit(system.url).netloc for other in self._systems) > 1
        own = system.name if shares else ""
        salt = f"{plan.seed}:{own}:{level.mode}:{level.concurrency}:{level.rate}:{repetition}"
        return Load(
            target=Target(system.url, system.api, system.model),
            prompts=replace(self._prompts, salt=salt),
            output_tokens=plan.output_tokens,
            stream=level.mode == "streaming",
            schema=plan.task.schema if plan.task else None,
            clients=level.concurrency or 1,
            rate=level.rate,
            arrivals=plan.arrivals,
            iterations=plan.iterations,
            seconds=plan.seconds,
            warmup=plan.warmup,
            timeout=plan.timeout,
            keep_texts=_TEXT_OF_ALL if plan.task else _CHECKED_TEXTS if system.model in plan.tokenizers else 0,
        )

    def _judged(self, seen: Seen) -> Seen:
        """Return the samples with what the quality gate says of each reply."""
        task = self._plan.task
        if task is None:
            return seen
        samples = list(seen.samples)
        for kept in seen.kept:
            valid, fields = task.judge(kept.text, kept.number)
            samples[kept.sample] = replace(samples[kept.sample], valid=valid, fields=fields)
        return replace(seen, samples=tuple(samples))


def result_of(
    plan: Plan,
    runs: Sequence[Run],
    *,
    created: str = "",
    environment: dict[str, Any] | None = None,
    differences: Sequence[Difference] = (),
    warnings: Sequence[str] = (),
    interrupted: bool = False,
) -> Result:
    """Return the result of these runs of the plan, with all that follows from them."""
    summaries = summarize(runs, plan.slo)
    compared = {system.name for system in plan.systems[:2]}
    lengths = length_differences([run for run in runs if run.system in compared and run.mode != "overhead"])
    comparisons, decompositions, refusals = _conclusions(plan, runs, lengths)
    return Result(
        command=plan.command,
        created=created or now(),
        systems=plan.systems,
        workload=Workload(
            plan.prompts.path or "synthetic",
            plan.prompt_tokens,
            plan.output_tokens,
            plan.prompts.fresh_prefix,
            plan.seed,
            plan.task.name if plan.task else "",
        ),
        runs=tuple(runs),
        summaries=summaries,
        options=plan.options or {},
        environment=manifest(plan.systems) if environment is None else environment,
        slo=plan.slo,
        differences=(*differences, *lengths),
        comparisons=comparisons,
        decompositions=decompositions,
        diagnoses=diagnose(summaries, _utilization(runs)),
        warnings=tuple(dict.fromkeys((*warnings, *refusals, *check_samples(runs)))),
        interrupted=interrupted,
    )


def _conclusions(
    plan: Plan, runs: Sequence[Run], lengths: Sequence[Difference]
) -> tuple[tuple[Comparison, ...], tuple[Decomposition, ...], list[str]]:
    """Return what follows for the systems beside each other, or a warning why nothing does."""
    if len(plan.systems) < 2 or any(run.mode == "overhead" for run in runs):  # the routes have figures of their own
        return (), (), []
    if lengths and not plan.allow_different:
        named = "; ".join(map(describe, lengths))
        return (), (), [f"not compared, because the replies differ: {named}; see --allow-different"]
    ours, baseline, *controls = plan.systems
    comparisons = compare(runs, (baseline, ours, *controls), seed=plan.seed)
    if not controls:
        return comparisons, (), []
    names = {"system": ours.name, "control": controls[0].name, "baseline": baseline.name}
    return comparisons, decompose(comparisons, **names), []


def now() -> str:
    """Return the moment in UTC as RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _words(level: Level) -> str:
    load = f"C = {level.concurrency}" if level.rate is None else f"{level.rate:g}/s"
    return f"{level.mode} {load}"


def _utilization(runs: Sequence[Run]) -> dict[str, float]:
    """Return the share of its GPUs that each system used under the most clients, where it is known."""
    most = max((run.concurrency or 0 for run in runs), default=0)
    return {
        run.system: run.telemetry.figures["gpu_utilization_percent"] / 100
        for run in runs
        if run.concurrency == most and run.telemetry and "gpu_utilization_percent" in run.telemetry.figures
    }
