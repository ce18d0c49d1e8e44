"""Sleep where vLLM has none: the worker says so and goes on, and only the gateway can ask it. What a load takes."""

from __future__ import annotations

import os

import httpx
import orjson
import pytest

from engine.server import Server
from vllama.machine.processes import ProcessTree, ram_of
from vllama.protocol.paths import SLEEP, WAKE
from vllama.scheduler.learned import FILE
from vllama.scheduler.memory import GIB
from vllama.store.model_store import ModelStore

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "smollm2:135m"


@pytest.mark.parametrize("path", [SLEEP, WAKE])
def test_a_worker_on_a_cpu_says_that_it_cannot_sleep_and_goes_on(server: Server, path: str) -> None:
    worker = server.load(MODEL)
    with httpx.Client(transport=httpx.HTTPTransport(uds=worker.socket), timeout=30) as client:
        reply = client.post(f"http://worker{path}", json={})
    assert (reply.status_code, reply.json()) == (500, {"error": "vLLM cannot sleep on a CPU"})
    assert server.ask("/api/generate", {"model": MODEL, "prompt": "1", "options": {"num_predict": 1}})["done"]


@pytest.mark.parametrize("path", [SLEEP, WAKE])
def test_the_gateway_does_not_hand_the_worker_s_controls_on(server: Server, path: str) -> None:
    assert server.client.post(path, json={}).status_code == 404


def test_what_a_load_took_is_learned(server: Server, store: ModelStore) -> None:
    worker = server.load(MODEL)
    held = ram_of(ProcessTree(worker.main.pid).pids)
    weights = 2 * 134_515_008
    loads = orjson.loads((store.root / FILE).read_bytes())["loads"]
    measured = max(load["overhead"] for load in loads)
    assert GIB // 2 < measured < 4 * GIB
    assert measured + weights == pytest.approx(held, rel=0.5)
    assert os.getpid() not in ProcessTree(worker.main.pid).pids
