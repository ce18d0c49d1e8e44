"""What is loaded, for how long, and what the server does meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine.processes import wait_for
from engine.server import Record, Server
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

MODEL = "smollm2:135m"


def remaining(server: Server) -> timedelta:
    """How long the only loaded model stays, as /api/ps has it."""
    (model,) = server.client.get("/api/ps").json()["models"]
    return datetime.fromisoformat(model["expires_at"]) - datetime.now(UTC)


@pytest.fixture
def resident(server: Server) -> Iterator[Server]:
    """The shared server, whose model is made to stay again afterwards."""
    yield server
    server.ask("/api/generate", {"model": MODEL, "keep_alive": -1})


@pytest.mark.parametrize(
    ("keep_alive", "seconds"),
    [("5m", 300), (300, 300), ("299", 299), (90.5, 90.5), ("1h30m", 5400), ("24h", 86400)],
)
def test_keep_alive_decides_when_a_model_expires(resident: Server, keep_alive: Any, seconds: float) -> None:
    record = resident.ask("/api/generate", {"model": MODEL, "keep_alive": keep_alive})

    assert record["done_reason"] == "load"
    assert timedelta(seconds=seconds - 10) < remaining(resident) <= timedelta(seconds=seconds)


@pytest.mark.parametrize("keep_alive", [-1, "-1m", "-2"])
def test_a_negative_keep_alive_is_for_ever(resident: Server, keep_alive: Any) -> None:
    resident.ask("/api/generate", {"model": MODEL, "keep_alive": 300})
    resident.ask("/api/chat", {"model": MODEL, "messages": [], "keep_alive": keep_alive})

    assert remaining(resident) > timedelta(days=20 * 365)


def test_a_request_without_keep_alive_leaves_the_last_one_standing(resident: Server) -> None:
    resident.ask("/api/generate", {"model": MODEL, "keep_alive": "2h"})
    unsaid: Record
    for unsaid in ({}, {"keep_alive": None}):
        resident.ask("/api/generate", {"model": MODEL, "prompt": "Hi", "options": {"num_predict": 1}, **unsaid})

        assert timedelta(hours=1.9) < remaining(resident) <= timedelta(hours=2)


@pytest.mark.parametrize(
    ("keep_alive", "error"),
    [(True, "Unsupported type: 'bool'"), ("abc", 'time: invalid duration "abc"'), ([], "Unsupported type")],
)
def test_a_keep_alive_that_is_no_duration_is_refused(server: Server, keep_alive: Any, error: str) -> None:
    status, text = server.refusal("/api/generate", {"model": MODEL, "keep_alive": keep_alive})

    assert status == 400
    assert text.startswith(error)


def test_ps_shows_a_loaded_model_as_ollama_does(server: Server) -> None:
    (model,) = server.client.get("/api/ps").json()["models"]
    (listed,) = (item for item in server.client.get("/api/tags").json()["models"] if item["name"] == MODEL)

    assert list(model) == [
        "name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length",
    ]  # fmt: skip
    assert model["name"] == model["model"] == MODEL
    assert model["digest"] == listed["digest"]
    assert model["size"] >= listed["size"] > 0
    assert model["context_length"] == 8192


def test_loading_what_is_loaded_starts_nothing(server: Server) -> None:
    worker = server.worker(MODEL)
    empty: Record
    for path, empty in (("/api/generate", {}), ("/api/chat", {"messages": []}), ("/api/chat", {})):
        record = server.ask(path, {"model": MODEL, **empty})

        assert record["done_reason"] == "load"
        assert "total_duration" not in record
    assert server.workers() == [worker]


@pytest.fixture(scope="module")
def narrow(store: ModelStore) -> Iterator[Server]:
    """A server that may hold one model at a time. It holds none at first."""
    running = Server(store.root, environ={"OLLAMA_MAX_LOADED_MODELS": "1"})
    yield running
    running.close()


def test_a_model_is_loaded_once_for_all_who_wait_for_it_while_lists_answer_promptly(narrow: Server, tiny: str) -> None:
    body = {"model": tiny, "messages": [{"role": "user", "content": "Hi"}], "options": {"num_predict": 4}}
    slowest, rounds = 0.0, 0
    with ThreadPoolExecutor(3) as clients:
        waiting = [clients.submit(narrow.ask, "/api/chat", body) for _ in range(3)]
        wait_for(lambda: tiny in narrow.loaded(), "the model is loading", 10)
        while wait(waiting, timeout=0.2).not_done:
            started = time.monotonic()
            for path in ("/api/tags", "/api/version", "/api/ps"):
                assert narrow.client.get(path).status_code == 200
            slowest, rounds = max(slowest, time.monotonic() - started), rounds + 1
        replies = [reply.result() for reply in waiting]

    assert [reply["eval_count"] for reply in replies] == [4, 4, 4]
    assert len(narrow.workers()) == 1
    assert rounds > 10  # in a load of half a minute
    assert slowest < 5  # no list waited for the load


def test_a_second_model_evicts_the_first_once_that_is_idle(narrow: Server, tiny: str) -> None:
    first = narrow.load(tiny)
    long = {"model": tiny, "prompt": "Hi", "options": {"temperature": 0, "num_predict": 600}}
    with narrow.stream("/api/generate", long) as records:
        next(records)
        newcomer = threading.Thread(target=narrow.load, args=[MODEL])
        newcomer.start()
        *_, last = records
    newcomer.join()

    assert last["eval_count"] == 600
    assert narrow.loaded() == [MODEL]
    assert not first.main.lives
    assert len(narrow.workers()) == 1


def test_keep_alive_zero_unloads_when_the_last_reply_is_whole(narrow: Server, tiny: str) -> None:
    model = (narrow.loaded() or [tiny])[0]
    body = {"model": model, "prompt": "Hi", "options": {"temperature": 0, "num_predict": 64}}
    with narrow.stream("/api/generate", body) as records:
        next(records)
        short = narrow.ask("/api/generate", {**body, "keep_alive": 0, "options": {"num_predict": 2}})
        *_, last = records

    assert short["eval_count"] == 2
    assert last["eval_count"] == 64
    wait_for(lambda: narrow.loaded() == [], "the model is unloaded", 5)
    wait_for(lambda: len(narrow.tree.living()) == 1, "only the gateway is left", 20)
    for path in ("/api/generate", "/api/chat"):
        assert narrow.ask(path, {"model": model, "keep_alive": 0})["done_reason"] == "unload"  # again, and fine
