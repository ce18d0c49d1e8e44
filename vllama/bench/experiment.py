"""One bench from beginning to end: ask the servers what they are, let them take turns, and draw the conclusions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from urllib.parse import urlsplit

from vllama.bench.comparison import (
    NotComparable,
    declared_differences,
    prompt_difference,
)
from vllama.bench.conclusions import conclude, now
from vllama.bench.design import ExperimentDesign, ProgressListener
from vllama.bench.environment import manifest
from vllama.bench.fleet import Fleet, LoadOutcome
from vllama.bench.generator import RequestLoad, Target
from vllama.bench.metrics import metrics, window_of
from vllama.bench.prompts import PromptSource
from vllama.bench.result import (
    Difference,
    ExperimentResult,
    LoadLevel,
    Run,
    System,
)
from vllama.bench.sample_checks import count_tokens
from vllama.bench.server_facts import facts_of
from vllama.bench.telemetry import Recorder

IDLE_SECONDS = 1.0
"""How long the machine is watched before the first run."""
SETTLE_SECONDS = 1.2
"""How long a server is left alone before that, and before another one's run: vLLM's workers spin for a second more."""

_NS = 10**9
_CHECKED_TEXTS = 20  # replies of a run whose tokens are counted again
_CALIBRATIONS = 4
_TEXT_OF_ALL = 1 << 30


def measure(design: ExperimentDesign, progress: ProgressListener) -> ExperimentResult:
    """Carry out the design. Ctrl-C ends it with what was measured.

    Raises ServerError and ServerUnreachable if a server does not answer at all, NotComparable if the sides differ and
    that was not allowed, and BadWorkload.
    """
    with ExitStack() as stack:
        return _Experiment(design, progress, stack).carry_out()


class _Experiment:
    def __init__(self, design: ExperimentDesign, progress: ProgressListener, stack: ExitStack) -> None:
        self._design = design
        self._progress = progress
        self._stack = stack
        self._fleet = stack.enter_context(Fleet(design.processes))
        self._recorders: dict[str, Recorder] = {}
        self._systems = design.systems
        self._prompts = design.prompts
        self._runs: list[Run] = []
        self._warnings: list[str] = []
        self._differences: list[Difference] = []
        self._interrupted = False

    def carry_out(self) -> ExperimentResult:
        design = self._design
        created = now()
        self._prepare()
        environment = manifest(self._systems)
        try:
            self._take_idle()
            self._run_all()
        except KeyboardInterrupt:
            self._interrupted = True
        design = replace(design, systems=self._systems)
        return conclude(
            design,
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
        design = self._design
        for system in self._systems:
            facts_of(system.url, system.api, system.model)  # one that is not there is noticed before others load
        for system in self._systems:
            self._progress(f"{system.name}: loading {system.model}", 0.0)
            self._ask_one(system, self._prompts, 1)
        self._systems = tuple(
            replace(system, facts=facts_of(system.url, system.api, system.model)) for system in self._systems
        )
        if design.prompt_tokens is not None:
            self._prompts = self._calibrated(self._systems[0], design.prompt_tokens)
        tokens = {system.name: self._ask_one(system, self._prompts, 1) for system in self._systems}
        compared = self._systems[:2]
        self._differences = [
            *declared_differences(compared),
            *prompt_difference({system.name: tokens[system.name] for system in compared}),
        ]
        if self._differences and not design.allow_different:
            raise NotComparable(self._differences)

    def _ask_one(self, system: System, prompts: PromptSource, tokens: int) -> int | None:
        """Send one request, apart from all others; return the tokens of its prompt. Raises ServerError."""
        load = replace(self._load(system, LoadLevel("streaming", 1), 0), output_tokens=tokens, iterations=1, warmup=0)
        load = replace(load, prompts=replace(prompts, salt=f"{prompts.salt}:before"), seconds=None, schema=None)
        return self._fleet.ask(load, f"{system.name} ({system.url})").tokens_in

    def _calibrated(self, system: System, wanted: int) -> PromptSource:
        """Return prompts of `wanted` tokens as the server counts them; one word is one token."""
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
            what = f"{system.name} {level.label}" + (f" #{repetition + 1}" if self._design.repetitions > 1 else "")
            run, interrupted = self._run(system, level, repetition, what, (number / len(turns), 1 / len(turns)))
            if run.samples:
                self._runs.append(run)
            if interrupted:
                raise KeyboardInterrupt

    def _turns(self) -> Iterator[tuple[LoadLevel, int, System]]:
        for level in self._design.levels:
            for repetition in range(self._design.repetitions):
                for system in self._systems:
                    yield level, repetition, system

    def _run(
        self, system: System, level: LoadLevel, repetition: int, what: str, share: tuple[float, float]
    ) -> tuple[Run, bool]:
        design = self._design
        begun = time.monotonic()
        before, part = share

        def hear(ended: int) -> None:
            done = max(
                ended / design.iterations if design.iterations else 0.0,
                (time.monotonic() - begun) / design.seconds if design.seconds else 0.0,
            )
            self._progress(what, before + part * min(done, 1.0))

        self._progress(what, before)
        seen = self._fleet.run(self._load(system, level, repetition), hear)
        samples = self._judged(count_tokens(seen, design.tokenizers.get(system.model)))
        window = window_of(samples.samples)
        figures = metrics(samples.samples, (window[1] - window[0]) / _NS, design.slo)
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
            arrivals=design.arrivals if level.rate else None,
            model=system.model,
            client_cpu=seen.cpu,
            client_processes=seen.processes,
            telemetry=self._recorders[system.name].telemetry(window, tokens)
            if system.name in self._recorders
            else None,
        ), seen.interrupted

    def _load(self, system: System, level: LoadLevel, repetition: int) -> RequestLoad:
        design = self._design
        # All get the same prompts, unless they share a server and so its prefix cache.
        shares = sum(urlsplit(other.url).netloc == urlsplit(system.url).netloc for other in self._systems) > 1
        own = system.name if shares else ""
        salt = f"{design.seed}:{own}:{level.mode}:{level.concurrency}:{level.rate}:{repetition}"
        return RequestLoad(
            target=Target(system.url, system.api, system.model),
            prompts=replace(self._prompts, salt=salt),
            output_tokens=design.output_tokens,
            stream=level.mode == "streaming",
            schema=design.task.schema if design.task else None,
            clients=level.concurrency or 1,
            rate=level.rate,
            arrivals=design.arrivals,
            iterations=design.iterations,
            seconds=design.seconds,
            warmup=design.warmup,
            timeout=design.timeout,
            keep_texts=_TEXT_OF_ALL if design.task else _CHECKED_TEXTS if system.model in design.tokenizers else 0,
        )

    def _judged(self, seen: LoadOutcome) -> LoadOutcome:
        """Return the samples with what the quality gate says of each reply."""
        task = self._design.task
        if task is None:
            return seen
        samples = list(seen.samples)
        for kept in seen.kept:
            valid, fields = task.judge(kept.text, kept.number)
            samples[kept.sample] = replace(samples[kept.sample], valid=valid, fields=fields)
        return replace(seen, samples=tuple(samples))
