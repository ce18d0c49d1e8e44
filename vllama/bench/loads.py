"""Cold starts and switches of models through Ollama's API: from the request to the first token, the load included."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import httpx

from vllama.bench.experiment import Plan, Progress, result_of
from vllama.bench.facts import facts_of, is_model, is_native, resident_models
from vllama.bench.fleet import Fleet
from vllama.bench.generator import Load, Target
from vllama.bench.metrics import metrics, window_of
from vllama.bench.result import Mode, Result, Run, Sample, System
from vllama.errors import RequestError, ServerError

UNLOAD_PATIENCE = 120.0
"""Seconds that a server may take to unload a model."""

_POLL_SECONDS = 0.05
_NS = 10**9


def measure_cold_starts(plan: Plan, progress: Progress) -> Result:
    """Unload the model, ask, and take the time; `repetitions` × `iterations` times for each system in turn.

    A sample's TTFT is the whole cold start, `server.load` what the server itself says the load took.
    Raises RequestError for an API that cannot unload, and ServerError.
    """
    turns = [(system, system.model) for _ in range(_rounds(plan)) for system in plan.systems]
    return _measure(plan, progress, "coldstart", turns)


def measure_switches(plan: Plan, other: str, progress: Progress) -> Result:
    """Ask for the model and another one in turns, each while the other is loaded.

    What was loaded last may stay: whether a switch loads is the server's business, and shows in `server.load`.
    """
    first = [(system, model) for system in plan.systems for model in (system.model, other)]
    with Fleet(1) as fleet:
        for number, (system, model) in enumerate(first):
            progress(f"{system.name}: loading {model}", 0.0)
            _ask(fleet, plan, system, model, -1 - number)
    turns = [
        (system, model) for system in plan.systems for _ in range(_rounds(plan)) for model in (system.model, other)
    ]
    return _measure(plan, progress, "switch", turns)


def _rounds(plan: Plan) -> int:
    return plan.repetitions * (plan.iterations or 3)


def _measure(plan: Plan, progress: Progress, mode: Mode, turns: list[tuple[System, str]]) -> Result:
    for system in plan.systems:
        if not is_native(system.api):
            message = f"--mode {mode} needs Ollama's API, which unloads models; {system.name} is asked by {system.api}"
            raise RequestError(message)
    samples: dict[tuple[str, str], list[Sample]] = {}
    interrupted = False
    with Fleet(1) as fleet:
        try:
            for number, (system, model) in enumerate(turns):
                done = number / len(turns)
                if mode == "coldstart":
                    progress(f"{system.name}: unloading {model}", done)
                    unload(system.url, model)
                progress(f"{system.name}: {mode} of {model}", done)
                samples.setdefault((system.name, model), []).append(_ask(fleet, plan, system, model, number))
        except KeyboardInterrupt:
            interrupted = True
    systems = tuple(replace(system, facts=facts_of(system.url, system.api, system.model)) for system in plan.systems)
    return result_of(replace(plan, systems=systems), list(_runs(plan, mode, samples)), interrupted=interrupted)


def _runs(plan: Plan, mode: Mode, samples: dict[tuple[str, str], list[Sample]]) -> Iterator[Run]:
    for (system, model), seen in samples.items():
        window = window_of(seen)
        # Between two of them the model is unloaded: only the requests' own time counts.
        busy = sum(sample.end - sample.start for sample in seen) / _NS
        figures = metrics(seen, busy, plan.slo)
        yield Run(system, mode, 0, window, tuple(seen), figures, concurrency=1, model=model)


def _ask(fleet: Fleet, plan: Plan, system: System, model: str, number: int) -> Sample:
    load = Load(
        target=Target(system.url, system.api, model),
        prompts=replace(plan.prompts, salt=f"{plan.seed}:{system.name}:{number}"),
        output_tokens=plan.output_tokens,
        iterations=1,
        timeout=plan.timeout,
    )
    seen = fleet.run(load, lambda ended: ended)
    if seen.interrupted:
        raise KeyboardInterrupt
    (sample,) = seen.samples
    if sample.outcome != "ok":
        message = f"{system.name} ({system.url}): {sample.error or sample.outcome}"
        raise ServerError(message)
    return sample


def unload(url: str, model: str) -> None:
    """Unload a model and wait until the server says that it is gone. Raises ServerError."""
    try:
        with httpx.Client(base_url=url, timeout=UNLOAD_PATIENCE, trust_env=False) as client:
            reply = client.post("/api/generate", json={"model": model, "keep_alive": 0})
    except httpx.HTTPError as error:
        message = f"{url}: {error}"
        raise ServerError(message) from error
    if reply.status_code != 200:
        message = f"{url} does not unload {model}: {reply.text[:200]}"
        raise ServerError(message)
    deadline = time.monotonic() + UNLOAD_PATIENCE
    while any(is_model(entry, model) for entry in resident_models(url)):
        if time.monotonic() > deadline:
            message = f"{url} still has {model} loaded after {UNLOAD_PATIENCE:.0f} s"
            raise ServerError(message)
        time.sleep(_POLL_SECONDS)
