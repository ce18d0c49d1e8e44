"""Cold starts and switches of models through Ollama's API: from the request to the first token, the load included."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import httpx

from vllama.bench.conclusions import conclude
from vllama.bench.design import ExperimentDesign, ProgressListener
from vllama.bench.fleet import Fleet
from vllama.bench.generator import RequestLoad, Target
from vllama.bench.metrics import metrics, window_of
from vllama.bench.result import ExperimentResult, Mode, Run, Sample, System
from vllama.bench.server_facts import facts_of, is_model, is_native, resident_models
from vllama.errors import RequestError, ServerError
from vllama.keys.credentials import credentials

UNLOAD_PATIENCE = 120.0
"""Seconds that a server may take to unload a model."""

_POLL_SECONDS = 0.05
_NS = 10**9


def measure_cold_starts(design: ExperimentDesign, progress: ProgressListener) -> ExperimentResult:
    """Unload the model, ask, and take the time; `repetitions` × `iterations` times for each system in turn.

    A sample's TTFT is the whole cold start, `server.load` what the server itself says the load took.
    Raises RequestError for an API that cannot unload, and ServerError.
    """
    _check_apis(design, "coldstart")
    turns = [(system, system.model) for _ in range(_rounds(design)) for system in design.systems]
    return _measure(design, progress, "coldstart", turns)


def measure_switches(design: ExperimentDesign, other: str, progress: ProgressListener) -> ExperimentResult:
    """Ask for the model and another one in turns, each while the other is loaded.

    The server decides whether the other model stays loaded; `server.load` shows the load time of each switch.
    Raises RequestError for an API that cannot unload or for two equal models, and ServerError.
    """
    _check_apis(design, "switch")
    if other in {system.model for system in design.systems}:
        message = f"--switch-model {other} is the measured model itself; name another one"
        raise RequestError(message)
    first = [(system, model) for system in design.systems for model in (system.model, other)]
    with Fleet(1) as fleet:
        for number, (system, model) in enumerate(first):
            progress(f"{system.name}: loading {model}", 0.0)
            _ask(fleet, design, system, model, -1 - number)
    turns = [
        (system, model) for system in design.systems for _ in range(_rounds(design)) for model in (system.model, other)
    ]
    return _measure(design, progress, "switch", turns)


def _rounds(design: ExperimentDesign) -> int:
    return design.repetitions * (design.iterations or 3)


def _check_apis(design: ExperimentDesign, mode: Mode) -> None:
    """Refuse a system whose API cannot unload models, before any model is loaded."""
    for system in design.systems:
        if not is_native(system.api):
            message = f"--mode {mode} needs Ollama's API, which unloads models; {system.name} is asked by {system.api}"
            raise RequestError(message)


def _measure(
    design: ExperimentDesign, progress: ProgressListener, mode: Mode, turns: list[tuple[System, str]]
) -> ExperimentResult:
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
                samples.setdefault((system.name, model), []).append(_ask(fleet, design, system, model, number))
        except KeyboardInterrupt:
            interrupted = True
    systems = tuple(replace(system, facts=facts_of(system.url, system.api, system.model)) for system in design.systems)
    return conclude(replace(design, systems=systems), list(_runs(design, mode, samples)), interrupted=interrupted)


def _runs(design: ExperimentDesign, mode: Mode, samples: dict[tuple[str, str], list[Sample]]) -> Iterator[Run]:
    for (system, model), seen in samples.items():
        window = window_of(seen)
        # Between two of them the model is unloaded: only the requests' own time counts.
        busy = sum(sample.end - sample.start for sample in seen) / _NS
        figures = metrics(seen, busy, design.slo)
        yield Run(system, mode, 0, window, tuple(seen), figures, concurrency=1, model=model)


def _ask(fleet: Fleet, design: ExperimentDesign, system: System, model: str, number: int) -> Sample:
    load = RequestLoad(
        target=Target(system.url, system.api, model),
        prompts=replace(design.prompts, salt=f"{design.seed}:{system.name}:{number}"),
        output_tokens=design.output_tokens,
        iterations=1,
        timeout=design.timeout,
    )
    return fleet.ask(load, f"{system.name} ({system.url})")


def unload(url: str, model: str) -> None:
    """Unload a model and wait until the server no longer lists it. Raises ServerError."""
    try:
        with httpx.Client(headers=credentials(), base_url=url, timeout=UNLOAD_PATIENCE, trust_env=False) as client:
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
