"""JSON Schemas are prepared beside the event loop, within a time limit, and for clients that wait for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from fake_worker import PATIENCE, within

from vllama import schemas
from vllama.schemas import rewriting

from .conftest import MODEL, RunGateway, Running

pytestmark = pytest.mark.anyio

PATHS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "/api/chat": lambda schema: {"format": schema},
    "/api/generate": lambda schema: {"format": schema},
    "/v1/chat/completions": lambda schema: {
        "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}
    },
    "/v1/completions": lambda schema: {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
    "/v1/responses": lambda schema: {"text": {"format": {"type": "json_schema", "schema": schema}}},
    "/v1/messages": lambda schema: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
}
EACH_PATH = pytest.mark.parametrize("path", PATHS)


def ask(path: str, schema: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": MODEL, "prompt": "hi", "messages": messages, "input": "hi", "max_tokens": 5, "stream": False}
    return {**body, **PATHS[path](schema)}


class Slow:
    """Rewriting that goes on until it may end, or is given up."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()
        self.given_up = threading.Event()

    def rewrite(self, schema: Any) -> Any:
        self.began.set()
        while not self.may_end.wait(0.001):
            if rewriting._is_given_up.get()():
                self.given_up.set()
                break
        return rewriting.rewrite(schema)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    rewriter = Slow()
    monkeypatch.setattr(schemas, "rewrite", rewriter.rewrite)
    yield rewriter
    rewriter.may_end.set()


@EACH_PATH
async def test_others_are_served_while_a_schema_is_prepared(gateway: Running, slow: Slow, path: str) -> None:
    worker = await gateway.load()
    asked = gateway.send("POST", path, json=ask(path, {"type": "object", "title": path}))
    while not slow.began.is_set():
        assert (await gateway.get("/api/version")).status_code == 200
    plain = gateway.send("POST", "/api/chat", json={"model": MODEL, "messages": [{"role": "user", "content": "hi"}]})
    (await worker.next_exchange()).reply(b"{}")
    assert (await plain).status_code == 200
    slow.may_end.set()
    exchange = await worker.next_exchange()
    exchange.reply(b"[1]" if exchange.path.startswith("/vllama") else b"{}")
    if path == "/v1/completions":
        (await worker.next_exchange()).reply(b"{}")
    assert (await asked).status_code == 200


async def test_a_schema_that_takes_too_long_is_refused(run_gateway: RunGateway, slow: Slow) -> None:
    async with run_gateway(schema_timeout=10**6) as gateway:
        await gateway.load()
        schema = {"type": "object", "properties": {"too": {"type": "string"}, "long": {"type": "null"}}}
        reply = await gateway.post("/api/chat", ask("/api/chat", schema))
        assert reply.status_code == 400
        assert reply.json()["error"] == "invalid JSON schema: it is too large: its preparation takes too long"


async def test_the_preparation_ends_with_its_client(gateway: Running, slow: Slow) -> None:
    await gateway.load()
    connection = await gateway.connect()
    connection.request("POST", "/api/chat", orjson.dumps(ask("/api/chat", {"type": "object", "title": "left"})))
    while not slow.began.is_set():
        await gateway.get("/api/version")
    connection.close()
    for _ in range(int(PATIENCE * 1000)):
        if slow.given_up.is_set():
            break
        await within(gateway.get("/api/version"))
    assert slow.given_up.is_set()


async def test_a_schema_is_prepared_once_while_its_result_is_kept(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await gateway.load()
    threads: set[str] = set()
    enforce = schemas.rewrite

    def noted(schema: Any) -> Any:
        threads.add(threading.current_thread().name.partition("-")[0])
        return enforce(schema)

    monkeypatch.setattr(schemas, "rewrite", noted)
    for expected in ({"schemas", "MainThread"}, {"MainThread"}, {"schemas", "MainThread"}):
        if threads == {"MainThread"}:
            rewriting._kept.clear()
        threads.clear()
        sent = gateway.send("POST", "/api/chat", json=ask("/api/chat", {"type": "object", "title": "once"}))
        (await worker.next_exchange()).reply(b"{}")
        assert (await sent).status_code == 200
        assert threads == expected
