"""Two real models on one machine, with room for both and then for one. The tests are one story, told in order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from engine.processes import wait_for
from engine.server import Record, Server
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

MODEL = "smollm2:135m"
SHORT: Record = {"prompt": "Hi", "options": {"temperature": 0, "num_predict": 4}}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's file of settings: room for two at first."""
    path = tmp_path_factory.mktemp("settings") / "settings.toml"
    path.write_text("max_loaded_models = 2\nmin_residency = 0\n")
    return path


@pytest.fixture(scope="module")
def two(store: ModelStore, settings: Path) -> Iterator[Server]:
    running = Server(store.root, environ={"VLLAMA_SETTINGS": str(settings)})
    yield running
    running.close()


def test_two_models_that_are_asked_at_once_are_both_loaded_once(two: Server, tiny: str) -> None:
    asked = [tiny, MODEL, tiny, MODEL, MODEL]
    with ThreadPoolExecutor(len(asked)) as clients:
        replies = list(clients.map(lambda model: two.ask("/api/generate", {**SHORT, "model": model}), asked))
    assert [reply["eval_count"] for reply in replies] == [4] * len(asked)
    assert len(two.workers()) == 2


def test_with_room_for_both_they_take_turns_without_a_load(two: Server, tiny: str) -> None:
    before = two.workers()
    texts = {two.ask("/api/generate", {**SHORT, "model": MODEL})["response"] for _ in range(3)}
    for model in (tiny, MODEL) * 5:
        reply = two.ask("/api/generate", {**SHORT, "model": model})
        assert reply["load_duration"] < 10**9
        if model == MODEL:
            texts.add(reply["response"])
    assert two.workers() == before
    assert len(texts) == 1


def test_ps_lists_the_longest_to_stay_first(two: Server, tiny: str) -> None:
    two.load(MODEL, keep_alive="10m")
    two.load(tiny, keep_alive="1h")
    first, second = two.client.get("/api/ps").json()["models"]
    assert (first["name"], second["name"]) == (tiny, MODEL)
    assert datetime.fromisoformat(first["expires_at"]) > datetime.fromisoformat(second["expires_at"])
    assert [model["state"] for model in two.client.get("/api/ps?all=true").json()["models"]] == ["ready", "ready"]


def test_a_third_takes_the_place_of_the_one_with_the_shorter_keep_alive(two: Server, tiny: str, minilm: str) -> None:
    leaves = two.worker(MODEL)
    assert two.ask("/api/embed", {"model": minilm, "input": "Hi"})["embeddings"]
    assert sorted(two.loaded()) == sorted([tiny, minilm])
    assert not leaves.main.lives


def test_reload_takes_room_for_one_and_drops_no_stream(two: Server, settings: Path, tiny: str) -> None:
    body = {**SHORT, "model": tiny, "options": {"temperature": 0, "num_predict": 400}}
    with two.stream("/api/generate", body) as records:
        next(records)
        settings.write_text("max_loaded_models = 1\n")
        port = two.url.rpartition(":")[2]
        environ = {"VLLAMA_SETTINGS": str(settings), "OLLAMA_MODELS": str(two.store), "OLLAMA_HOST": f":{port}"}
        command = [sys.executable, "-m", "vllama", "reload"]
        told = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=True)
        assert told.stdout == f"server {two.process.pid} is reading its settings again; its log lists the changes\n"
        wait_for(lambda: "max_loaded_models is now 1 (was 2); takes effect at once" in two.log, "it is reloaded", 10)
        *_, last = records
    assert last["eval_count"] == 400


def test_with_room_for_one_they_take_turns_by_loads(two: Server, tiny: str) -> None:
    for model in (MODEL, tiny):
        reply = two.ask("/api/generate", {**SHORT, "model": model})
        assert reply["eval_count"] == 4
        assert reply["load_duration"] > 10**9
        assert two.loaded() == [model]
        assert len(two.workers()) == 1


def test_an_unload_by_request_leaves_nothing(two: Server, tiny: str) -> None:
    model = (two.loaded() or [tiny])[0]
    assert two.ask("/api/generate", {"model": model, "keep_alive": 0})["done_reason"] == "unload"
    assert two.client.get("/api/ps?all=true").json() == {"models": []}
    wait_for(lambda: two.workers() == [], "the worker is gone", 20)
