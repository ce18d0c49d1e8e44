"""`scripts/overhead`, from the script to its figures. What the figures are is no matter of tests."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(400)]

SCRIPT = Path(__file__).parents[2] / "scripts" / "overhead"


def test_the_overhead_script_measures_every_route_and_prints_the_ratios(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(store.root))
    command = [str(SCRIPT), "--clients", "4", "--tokens", "16", "--rounds", "1", "--first-tokens", "5", "--json"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, timeout=380)

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["clients"], result["tokens"], result["rounds"]) == (4, 16, 1)
    for route in ("plugin", "channel"):
        assert result[f"{route}_ratio"] == pytest.approx(result[f"{route}_us_per_token"] / result["vllm_us_per_token"])
    assert all(result[key] > 0 for key in ("gateway_us_per_chunk", "ttft_direct_ms", "ttft_gateway_ms"))
    assert result["tokens_per_second"].keys() == {"vllm", "plugin", "channel", "gateway"}
    assert all(rate > 0 for rate in result["tokens_per_second"].values())
