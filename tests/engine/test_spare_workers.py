"""Spare workers and forked engines: as good as those that import everything themselves, and never left behind."""

from __future__ import annotations

import pytest
from sampling import full_run

from engine.conftest import StartServer
from engine.processes import wait_for
from engine.server import Record, Worker

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

GONE = 20
"""Seconds in which every process of a dead tree must have ended."""

SPARE = {"VLLAMA_SPARE_WORKERS": "1"}


def greedy(model: str) -> Record:
    return {"model": model, "prompt": "The capital of France", "options": {"temperature": 0, "num_predict": 32}}


def test_a_load_that_takes_the_spare_answers_as_one_of_its_own(start_server: StartServer, tiny: str) -> None:
    server = start_server(environ=SPARE)
    spare = server.waiting_spare()
    taken = server.load(tiny)
    assert taken.main == spare
    of_spare, titled = server.ask("/api/generate", greedy(tiny)), lasting_words(taken)
    server.close()

    # In a push, the other one is a worker that the tests have prepared.
    other = start_server(environ={"VLLM_WORKER_MULTIPROC_METHOD": "spawn"} if full_run() else {})
    of_fresh = other.ask("/api/generate", greedy(tiny))

    assert of_spare["response"] == of_fresh["response"]
    assert of_spare["context"] == of_fresh["context"]
    assert titled == lasting_words(other.worker(tiny))


def lasting_words(worker: Worker) -> list[str]:
    """Its command line without what differs from one start to the next: the socket and the bytes of the KV cache."""
    return [word for word in worker.main.command if not word.endswith(".sock") and not word.isdigit()]


@pytest.mark.slow
def test_several_api_servers_start_from_a_spare_too(start_server: StartServer, tiny: str) -> None:
    server = start_server("--api-server-count", "2", environ=SPARE)
    spare = server.waiting_spare()

    assert server.load(tiny).main == spare
    for _ in range(4):
        assert server.ask("/api/generate", greedy(tiny))["eval_count"] == 32


@pytest.mark.slow
def test_a_spare_that_is_killed_is_no_loss(start_server: StartServer, tiny: str) -> None:
    server = start_server(environ=SPARE)
    spare = server.waiting_spare()
    spare.kill()

    worker = server.load(tiny)

    assert worker.main != spare
    assert server.ask("/api/generate", greedy(tiny))["eval_count"] == 32


@pytest.mark.parametrize(
    "has_to_wait",
    [pytest.param(False, id="while it imports"), pytest.param(True, id="while it waits", marks=pytest.mark.slow)],
)
def test_no_spare_outlives_a_gateway_that_is_killed(start_server: StartServer, *, has_to_wait: bool) -> None:
    server = start_server(environ=SPARE)
    wait_for(server.spares, "a spare starts")
    if has_to_wait:
        server.waiting_spare()
    server.process.kill()

    server.tree.wait_until_gone(GONE)


@pytest.mark.slow
def test_sigterm_ends_the_spare_too(start_server: StartServer) -> None:
    server = start_server(environ=SPARE)
    server.waiting_spare()
    server.terminate()

    assert server.wait() == 0
    server.tree.wait_until_gone(GONE)


def test_a_load_tells_what_it_is_at_until_it_is_ready_and_its_processes_are_forked(
    start_server: StartServer, tiny: str
) -> None:
    server = start_server("--model", tiny, cold=True)
    told: list[str] = []

    def is_ready() -> bool:
        models = server.client.get("/api/ps").json()["models"]
        told.extend(model["load"]["phase"] for model in models if "load" in model)
        return bool(models) and "load" not in models[0]

    wait_for(is_ready, "the model is ready", 120)
    phases = list(dict.fromkeys(told))

    assert phases[0] in {"waiting", "importing"}
    assert "importing" in phases
    assert set(phases) <= {"waiting", "importing", "starting", "weights", "warming up"}
    titles = [process.title for process in server.tree.living()]
    assert any("EngineCore" in title for title in titles)  # each process knows whose child it is
    assert not any("spawn_main" in title for title in titles)
