"""What the load generator itself costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from vllama.bench.fleet import Fleet
from vllama.bench.generator import RequestLoad, Target
from vllama.bench.metrics import window_of
from vllama.bench.prompts import PromptSource

SERVER = Path(__file__).parents[1] / "trivial_server.py"


def test_a_chunk_costs_so_little_that_a_core_takes_forty_thousand_a_second() -> None:
    # By CPU time, so that a busy machine does not matter. Run with -s for the figures.
    with subprocess.Popen(
        [sys.executable, str(SERVER), "500", "0.001"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        target = Target(f"http://127.0.0.1:{int(server.stdout.readline())}", "ollama", "m")
        with Fleet(1) as fleet:
            load = RequestLoad(target, PromptSource(), 500, clients=64, iterations=128, warmup=0)
            seen = fleet.run(load, lambda ended: ended)
        server.communicate()
    start, end = window_of(seen.samples)
    chunks, seconds = sum(len(sample.chunks) for sample in seen.samples), (end - start) / 1e9
    cost = seen.cpu * seconds / chunks * 1e6
    print(f"{chunks / seconds:,.0f} chunks/s with {seen.cpu:.0%} of a core: {cost:.1f} µs a chunk")

    assert {sample.outcome for sample in seen.samples} == {"ok"}
    assert chunks == 64_000
    assert cost < 25
