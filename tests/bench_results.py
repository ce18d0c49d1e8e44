"""Results of benches that never ran: samples drawn from a model of a server that batches and one that serialises."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from vllama.bench.comparison import compare
from vllama.bench.metrics import metrics, summarize
from vllama.bench.result import (
    Diagnosis,
    Difference,
    ExperimentResult,
    Run,
    Sample,
    ServerFacts,
    Slo,
    System,
    Telemetry,
    Workload,
)

MS = 10**6
SECOND = 10**9

ENVIRONMENT = {
    "hardware": {
        "cpu": "Xeon",
        "cores": 16,
        "memory_bytes": 128 << 30,
        "gpus": [{"index": 0, "name": "NVIDIA H100", "memory_bytes": 80 << 30, "power_limit_w": 700.0}],
    },
    "versions": {"vllama": "0.1.0", "python": "3.11.7", "driver": "580.1", "cuda": "13.0"},
    "commit": {"revision": "0123456789abcdef0123456789abcdef01234567", "changed": False},
    "servers": {
        "vllama": {"url": "http://127.0.0.1:11434", "commands": [["vllama", "serve"]], "variables": {}},
        "ollama": {"url": "http://127.0.0.1:11435", "commands": [["ollama", "serve"]], "variables": {}},
    },
}


def bench(
    systems: Sequence[str] = ("vllama", "ollama"),
    levels: Sequence[int] = (1, 2, 4, 8, 16, 32),
    repetitions: int = 3,
    *,
    gpu: bool = True,
    faster: float = 1.0,
) -> ExperimentResult:
    """Return a streaming sweep. `vllama` batches, every other name serialises; `faster` scales all speeds."""
    chance = random.Random(1)
    runs, clock = [], 100 * SECOND
    for level in levels:
        for repetition in range(repetitions):
            for system in systems:
                run = _run(chance, system, level, repetition, clock, faster=faster, gpu=gpu)
                runs.append(run)
                clock = run.window[1] + SECOND // 5
    sides = tuple(
        System(
            name,
            f"http://127.0.0.1:{11434 + i}",
            "ollama",
            "smollm2:135m",
            ServerFacts("0.24.0", 8192, "BF16", "sha256:abc"),
        )
        for i, name in enumerate(systems)
    )
    return ExperimentResult(
        command=("vllama", "bench", "smollm2:135m", "--concurrency", ",".join(map(str, levels))),
        created="2026-11-21T12:00:00Z",
        systems=sides,
        workload=Workload("synthetic", 40, 50),
        runs=tuple(runs),
        summaries=summarize(runs, Slo()),
        options={"model": "smollm2:135m", "concurrency": ",".join(map(str, levels)), "iterations": 50},
        environment=ENVIRONMENT,
        differences=(Difference("quantization", {"vllama": "BF16", "ollama": "Q4_0"}),) if len(systems) > 1 else (),
        comparisons=compare(runs, sides[::-1], seed=0) if len(sides) == 2 else (),
        diagnoses=(Diagnosis(systems[0], "batches", levels[-1], "batches: throughput grows with concurrency"),),
        warnings=("The server's own durations are longer than what the client saw.",),
    )


def _run(
    chance: random.Random, system: str, level: int, repetition: int, begin: int, *, faster: float, gpu: bool
) -> Run:
    samples = []
    batches = system == "vllama"
    tokens: int = 50
    count = 12 + 2 * level
    step = (4.4 + 0.05 * level if batches else 3.4) * MS / faster
    lanes = [begin] * (level if batches else 1)
    for index in range(count):
        lane = index % len(lanes)
        free = lanes[lane]
        start = free if batches else max(begin, free - int((level - 1) * step * tokens))
        first = free + int(chance.gauss(14 + 0.3 * level, 1.5) * MS / faster)
        arrivals = [first]
        for _ in range(tokens - 1):
            arrivals.append(arrivals[-1] + max(int(chance.gauss(step, step / 12)), 1000))
        end = arrivals[-1] + MS // 10
        lanes[lane] = end
        failed = index == 5 and level == 32
        if failed:
            samples.append(Sample(start, start, None, end, "error", error="status 503"))
            continue
        chunks = tuple(at - start for at in arrivals)
        samples.append(Sample(start, start, first, end, "ok", tokens_in=40, tokens_out=tokens, chunks=chunks))
    window = begin, max(sample.end for sample in samples)
    telemetry = _telemetry(chance, window, level, batches=batches, gpu=gpu)
    figures = metrics(samples, (window[1] - window[0]) / SECOND)
    return Run(system, "streaming", repetition, window, tuple(samples), figures, level, telemetry=telemetry)


def _telemetry(chance: random.Random, window: tuple[int, int], level: int, *, batches: bool, gpu: bool) -> Telemetry:
    times = tuple(range(window[0], window[1], SECOND // 20))
    load = min(0.35 + 0.13 * math.log2(level), 0.97) if batches else 0.6
    seconds = (window[1] - window[0]) / SECOND
    tokens = 50 * (12 + 2 * level)

    def noisy(value: float, spread: float) -> tuple[float | None, ...]:
        return tuple(max(chance.gauss(value, spread), 0) for _ in times)

    series = {"server_cpu_cores": noisy(1 + load, 0.1), "server_rss_bytes": noisy(3e9, 1e6)}
    idle = {"server_cpu_cores": 0.02, "server_rss_bytes": 2.9e9}
    figures = {"readings_per_second": 20.0, "server_cpu_cores": 1 + load, "server_rss_bytes": 3e9}
    if not gpu:
        return Telemetry(times, series, idle, figures, ("no GPU: Driver Not Loaded; figures of the processors only",))
    power = 120 + 550 * load
    series |= {
        "gpu0_utilization_percent": noisy(100 * load, 3),
        "gpu0_power_w": noisy(power, 8),
        "gpu0_memory_bytes": noisy(60e9, 1e6),
    }
    idle |= {"gpu0_utilization_percent": 0.0, "gpu0_power_w": 118.0, "gpu0_memory_bytes": 59e9}
    figures |= {
        "gpu_utilization_percent": 100 * load,
        "gpu_power_w": power,
        "joules_with_idle": power * seconds,
        "joules": (power - 118) * seconds,
        "tokens_per_joule": tokens / ((power - 118) * seconds),
        "tokens_per_joule_with_idle": tokens / (power * seconds),
    }
    return Telemetry(times, series, idle, figures)
