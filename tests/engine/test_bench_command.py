"""`vllama bench` against the real engine: what it counts, the tokenizer and the server's own clock agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.server import Server
from vllama.bench.result import ExperimentResult, Sample, load
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "smollm2:135m"
FEW = ("--warmup", "0", "--iterations", "4", "--tokens", "8")
WORKLOADS = Path(__file__).parents[2] / "bench" / "workloads"


@pytest.fixture(scope="module")
def one_at_a_time(store: ModelStore) -> Iterator[Server]:
    """A server with room for one model."""
    running = Server(store.root, environ={"OLLAMA_MAX_LOADED_MODELS": "1", "VLLAMA_MIN_RESIDENCY": "0"})
    yield running
    running.close()


def bench(server: Server, store: ModelStore, *arguments: str, model: str = MODEL) -> ExperimentResult:
    command = [sys.executable, "-m", "vllama", "bench", model, "--url", server.url, "--json", *arguments]
    environ = {**os.environ, "OLLAMA_MODELS": str(store.root)}
    done = subprocess.run(command, env=environ, capture_output=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr.decode()
    return load(done.stdout)


@pytest.mark.parametrize(
    "api",
    [
        "ollama",
        "openai",
        *(pytest.param(api, marks=pytest.mark.slow) for api in ("ollama-generate", "openai-completions")),
    ],
)
def test_tokens_and_durations_agree_with_the_tokenizer_and_the_clients_clock(
    server: Server, store: ModelStore, api: str
) -> None:
    result = bench(server, store, "--api", api, "--concurrency", "2", *FEW)

    assert result.warnings == ()
    assert [run.metrics.ok for run in result.runs] == [4]
    samples = [sample for run in result.runs for sample in run.samples]
    assert all(sample.tokens_out and len(sample.chunks) <= sample.tokens_out for sample in samples)
    assert all(sample.counted_out for sample in samples)
    assert all((sample.server is not None) is api.startswith("ollama") for sample in samples)


def test_prompts_have_exactly_the_tokens_that_were_asked_for(server: Server, store: ModelStore) -> None:
    arguments = ("--prompt-tokens", "128", "--concurrency", "2", *FEW)
    (run,) = bench(server, store, *arguments).runs

    assert {sample.tokens_in for sample in run.samples} == {128}


def test_a_task_is_asked_and_every_reply_keeps_its_schema(server: Server, store: ModelStore) -> None:
    task = WORKLOADS / "capitals.json"
    arguments = ("--schema", str(task), "--concurrency", "4", "--warmup", "0", "--iterations", "4", "--tokens", "80")
    result = bench(server, store, *arguments)

    assert {summary.metrics.parse_rate for summary in result.summaries} == {1.0}
    assert set(result.summaries[0].metrics.field_rates) == set(json.loads(task.read_text())["schema"]["properties"])


def test_a_cold_start_is_measured_from_the_unloaded_model_to_its_first_token(
    one_at_a_time: Server, store: ModelStore, tiny: str
) -> None:
    (run,) = bench(one_at_a_time, store, "--mode", "coldstart", "--iterations", "2", model=tiny).runs

    assert run.metrics.ok == 2
    assert all(_load_seconds(sample) > 1 for sample in run.samples)  # no model is loaded in less, from a spare either


@pytest.mark.slow
def test_a_switch_is_measured_from_one_model_to_the_first_token_of_the_other(
    one_at_a_time: Server, store: ModelStore, tiny: str
) -> None:
    arguments = ("--mode", "switch", "--switch-model", MODEL, "--iterations", "1")
    result = bench(one_at_a_time, store, *arguments, model=tiny)

    assert [summary.model for summary in result.summaries] == [tiny, MODEL]
    assert [summary.metrics.ok for summary in result.summaries] == [1, 1]
    assert all(_load_seconds(sample) > 1 for run in result.runs for sample in run.samples)


def _load_seconds(sample: Sample) -> float:
    """The server's own word for the load, which is a part of what the client waited for."""
    assert sample.server is not None
    assert sample.first is not None
    seconds = sample.server.load / 1e9
    assert seconds < (sample.first - sample.start) / 1e9
    return seconds
