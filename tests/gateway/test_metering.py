"""Usage and limits of keys, through the real protocol between gateway and worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_worker import within

from vllama.keys.usage import Usage, read_usage
from vllama.ollama.status import NDJSON
from vllama.protocol.model_header import HEADER, ModelHeader

from .conftest import MODEL, RunGateway, Running
from .test_keys import CHAT, Keys, bearer, keys

__all__ = ["keys"]  # a fixture

pytestmark = pytest.mark.anyio

EVENTS = "text/event-stream; charset=utf-8"
COMPLETIONS = "/v1/chat/completions"
Metered = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def usage(tmp_path: Path) -> Callable[[], list[Usage]]:
    """Return the record of usage, without the seconds; complete once the server has stopped."""

    def read() -> list[Usage]:
        rows = read_usage(tmp_path / "models" / "usage.sqlite3", 0, ["key", "model"])
        assert all(row.seconds > 0 for row in rows)
        return [
            Usage(row.group, row.requests, row.prompt_tokens, row.cached_tokens, row.output_tokens, 0) for row in rows
        ]

    return read


@pytest.fixture
def metered(run_gateway: RunGateway, keys: Keys) -> Metered:
    """Return a context manager that runs a gateway whose client has a key with these limits."""

    @asynccontextmanager
    async def run(**rights: Any) -> AsyncIterator[Running]:
        secret = keys.create("alice", **rights)
        async with run_gateway() as running:
            running.client.headers.update(bearer(secret))
            yield running

    return run


async def test_a_native_stream_is_counted_by_a_frame_before_its_end(metered: Metered, usage: Any) -> None:
    async with metered() as gateway:
        sent = gateway.send("POST", "/api/chat", json=CHAT)
        exchange = await (await gateway.worker()).next_exchange()
        exchange.start(NDJSON)
        exchange.write(b"a\n")
        exchange.count(30, 20, 7)
        exchange.finish(b"b\n")
        assert (await sent).content == b"a\nb\n"
    assert usage() == [Usage(("alice", MODEL), 1, 30, 20, 7, 0)]


@pytest.mark.parametrize("path", ["/api/embed", "/v1/embeddings"])
async def test_embeddings_are_counted(metered: Metered, usage: Any, path: str) -> None:
    async with metered() as gateway:
        sent = gateway.send("POST", path, json={"model": MODEL, "input": "hi"})
        exchange = await (await gateway.worker()).next_exchange()
        exchange.count(3, 0, 0)
        exchange.reply(b"{}")
        assert (await sent).content == b"{}"
    assert usage() == [Usage(("alice", MODEL), 1, 3, 0, 0, 0)]


async def test_a_native_stream_that_its_client_leaves_is_counted_when_the_worker_tells(
    metered: Metered, usage: Any
) -> None:
    async with metered() as gateway:
        sent = gateway.send("POST", "/api/chat", json=CHAT)
        exchange = await (await gateway.worker()).next_exchange()
        exchange.start(NDJSON)
        exchange.write(b"a\n")
        sent.cancel()
        await within(exchange.cancelled.wait())
        exchange.write(b"b\n")
        exchange.count(30, 0, 2)
        sent = gateway.send("POST", "/api/chat", json=CHAT)  # its reply comes behind the counts
        (await gateway.launcher.workers[0].next_exchange()).reply(b"{}")
        await sent
    assert usage() == [Usage(("alice", MODEL), 2, 30, 0, 2, 0)]


async def test_a_stream_of_vllm_is_counted_by_its_last_chunk_which_clients_do_not_get(
    metered: Metered, usage: Any
) -> None:
    async with metered() as gateway:
        sent = gateway.send("POST", COMPLETIONS, json={**CHAT, "stream": True})
        exchange = await (await gateway.worker()).next_exchange()
        header = ModelHeader.from_headers([(HEADER, exchange.headers[HEADER.decode()].encode())])
        assert header is not None
        assert header.is_counted
        exchange.start(EVENTS)
        for event in (b"data: {}\n\n", b"data: [DONE]\n\n", b": vllama-tokens 30 20 7\n\n"):
            exchange.write(event)
        exchange.finish()
        assert (await sent).content == b"data: {}\n\ndata: [DONE]\n\n"
    assert usage() == [Usage(("alice", MODEL), 1, 30, 20, 7, 0)]


async def test_a_complete_reply_of_vllm_is_counted_by_a_header_which_clients_do_not_get(
    metered: Metered, usage: Any
) -> None:
    async with metered() as gateway:
        sent = gateway.send("POST", COMPLETIONS, json=CHAT)
        exchange = await (await gateway.worker()).next_exchange()
        exchange.reply(b"{}", headers=((b"x-vllama-tokens", b"30 20 7"),))
        reply = await sent
        assert reply.content == b"{}"
        assert "x-vllama-tokens" not in reply.headers
    assert usage() == [Usage(("alice", MODEL), 1, 30, 20, 7, 0)]


@pytest.mark.parametrize("counts", [b"", b"1 2", b"a b c", b"9" * 99 + b" 1 1", b"-1 0 0"])
async def test_counts_that_are_no_numbers_are_ignored(metered: Metered, usage: Any, counts: bytes) -> None:
    async with metered() as gateway:
        sent = gateway.send("POST", COMPLETIONS, json=CHAT)
        exchange = await (await gateway.worker()).next_exchange()
        exchange.reply(b"{}", headers=((b"x-vllama-tokens", counts),))
        assert (await sent).status_code == 200
    [row] = usage()
    assert (row.requests, row.prompt_tokens, row.output_tokens) == (1, 0, 0)


async def test_a_stream_of_vllm_that_its_client_leaves_counts_its_events(metered: Metered, usage: Any) -> None:
    async with metered() as gateway:
        client = await gateway.connect()
        body = b'{"model":"smollm2:135m","stream":true,"messages":[{"role":"user","content":"hi"}]}'
        key = gateway.client.headers["authorization"]
        client.request("POST", COMPLETIONS, body, ("authorization", key))
        exchange = await (await gateway.worker()).next_exchange()
        exchange.start(EVENTS)
        for _ in range(3):
            exchange.write(b"data: {}\n\n")
        await client.head()
        for _ in range(3):
            await client.chunk()
        client.close()
        await within(exchange.cancelled.wait())
    assert usage() == [Usage(("alice", MODEL), 1, 0, 0, 3, 0)]


async def test_requests_that_reach_no_model_are_not_recorded(metered: Metered, usage: Any) -> None:
    async with metered() as gateway:
        assert (await gateway.post("/api/chat", {**CHAT, "model": "missing"})).status_code == 404
        assert (await gateway.post("/api/chat", {})).status_code == 400
        await gateway.get("/api/tags")
    assert usage() == []


async def test_without_keys_nothing_is_counted(gateway: Running, tmp_path: Path) -> None:
    sent = gateway.send("POST", COMPLETIONS, json=CHAT)
    exchange = await (await gateway.worker()).next_exchange()
    header = ModelHeader.from_headers([(HEADER, exchange.headers[HEADER.decode()].encode())])
    assert header is not None
    assert not header.is_counted
    exchange.reply(b"{}")
    assert (await sent).status_code == 200
    sent = gateway.send("POST", "/api/chat", json=CHAT)
    exchange = await gateway.launcher.workers[0].next_exchange()
    exchange.count(1, 2, 3)
    exchange.reply(b"{}")
    assert (await sent).content == b"{}"
    gateway.app.close()
    assert not list((tmp_path / "models").glob("usage*"))


@pytest.mark.parametrize("path", ["/api/chat", COMPLETIONS, "/v1/messages"])
async def test_a_key_that_asks_too_often_gets_429_in_the_format_of_the_api(metered: Metered, path: str) -> None:
    async with metered(requests_per_minute=2) as gateway:
        for _ in range(2):
            assert (await gateway.post("/api/generate", {"model": MODEL})).status_code == 200
        reply = await gateway.post(path, CHAT)
        assert reply.status_code == 429
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        error = reply.json()["error"]
        if path == "/api/chat":
            assert error == "this key's limit of 2 requests per minute is reached"
        else:
            assert error["type"] == "rate_limit_error"
        assert (await gateway.get("/api/tags")).status_code == 200  # needs no model


async def test_a_key_whose_tokens_of_the_day_are_used_up_gets_429(metered: Metered) -> None:
    async with metered(tokens_per_day=10) as gateway:
        sent = gateway.send("POST", "/api/chat", json=CHAT)
        exchange = await (await gateway.worker()).next_exchange()
        exchange.count(6, 0, 4)
        exchange.reply(b"{}")
        await sent
        reply = await gateway.post("/api/chat", CHAT)
        assert reply.status_code == 429
        assert 1 <= int(reply.headers["retry-after"]) <= 86_400


async def test_channels_keep_nothing_of_clients_that_left(metered: Metered) -> None:
    async with metered() as gateway:
        await gateway.load()
        worker = gateway.launcher.workers[0]
        for is_told_first in (True, False):
            sent = gateway.send("POST", "/api/chat", json=CHAT)
            exchange = await worker.next_exchange()
            if is_told_first:
                exchange.count(1, 0, 1)
            await asyncio.sleep(0)
            sent.cancel()
            await within(exchange.cancelled.wait())
            exchange.finish(b"")
        sent = gateway.send("POST", "/api/chat", json=CHAT)
        (await worker.next_exchange()).reply(b"{}")
        await sent
        [channel] = gateway.app._workers._channels._open.values()
        assert channel._left == {}
