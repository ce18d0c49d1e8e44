"""What the load generator itself costs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from vllama.bench.fleet import Fleet
from vllama.bench.generator import RequestLoad, Target
from vllama.bench.metrics import window_of
from vllama.bench.prompts import PromptSource

SERVER = Path(__file__).parents[1] / "trivial_server.py"


CHUNK = b'{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":" a"},"done":false}'
NUMBER = 64_000


def test_a_chunk_costs_less_than_ten_decodings_of_its_json() -> None:
    # A ratio of CPU times, because other programs make both longer. Run with -s for the figures: 16 µs on one core.
    before = decoding()
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
    ratio = cost / ((before + decoding()) / 2)
    print(
        f"{chunks / seconds:,.0f} chunks/s with {seen.cpu:.0%} of a core: {cost:.1f} µs a chunk, {ratio:.1f} decodings"
    )

    assert {sample.outcome for sample in seen.samples} == {"ok"}
    assert chunks == NUMBER
    assert ratio < 10


def decoding() -> float:
    """Return the CPU time in microseconds in which `json` decodes a chunk."""
    began = time.thread_time()
    for _ in range(NUMBER):
        json.loads(CHUNK)
    return (time.thread_time() - began) / NUMBER * 1e6
