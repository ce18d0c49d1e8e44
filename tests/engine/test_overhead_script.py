"""`scripts/overhead`, from the script to its figures. What the figures are is no matter of tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vllama.bench.overhead import costs_of
from vllama.bench.result import load
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(400)]

SCRIPT = Path(__file__).parents[2] / "scripts" / "overhead"


def test_the_overhead_script_measures_every_route_and_prints_the_ratios(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(store.root))
    command = [
        str(SCRIPT),
        "--concurrency",
        "4",
        "--tokens",
        "16",
        "--repetitions",
        "1",
        "--iterations",
        "20",
        "--json",
    ]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, timeout=380)

    assert done.returncode == 0, done.stderr
    result = load(done.stdout.encode())
    assert [(run.system, run.concurrency, run.metrics.ok) for run in result.runs] == [
        *((route, 4, 4) for route in ("vllm", "plugin", "gateway")),
        *((route, 1, 20) for route in ("plugin", "gateway")),
    ]
    costs = costs_of(result)
    for route in ("plugin", "gateway"):
        assert costs[f"{route}_ratio"] == pytest.approx(costs[f"{route}_us_per_token"] / costs["vllm_us_per_token"])
    assert all(costs[key] > 0 for key in ("gateway_own_us_per_token", "ttft_direct_ms", "ttft_gateway_ms"))
