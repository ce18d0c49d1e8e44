"""A client that leaves: its request ends in the worker, and its lease with it (contract §6.5)."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
from fake_worker import ChannelExchange, within

from vllama.ollama.status import NDJSON
from vllama.protocol.frames import Kind

from .conftest import MODEL, Running

pytestmark = pytest.mark.anyio

GENERATE, COMPLETIONS = "/api/generate", "/v1/chat/completions"
BOTH = pytest.mark.parametrize("path", [GENERATE, COMPLETIONS])
BODY = b'{"model":"smollm2:135m","prompt":"hi","messages":[{"role":"user","content":"hi"}]}'


@BOTH
async def test_leaving_in_a_stream_cancels_it_in_the_worker(gateway: Running, path: str) -> None:
    worker = await gateway.load()
    client = await gateway.connect()
    client.request("POST", path, BODY)
    exchange = await worker.next_exchange()
    exchange.start(NDJSON)
    exchange.write(b"a\n")
    await client.head()
    assert await client.chunk() == b"a\n"
    client.close()
    await within(exchange.cancelled.wait())
    await gateway.no_leases()


@BOTH
async def test_leaving_before_a_whole_reply_cancels_it_in_the_worker(gateway: Running, path: str) -> None:
    worker = await gateway.load()
    client = await gateway.connect()
    client.request("POST", path, BODY)
    exchange = await worker.next_exchange()
    assert gateway.leases == 1
    client.close()
    await within(exchange.cancelled.wait())
    await gateway.no_leases()


@BOTH
async def test_leaving_while_the_model_loads_asks_nothing_of_the_worker_and_the_load_goes_on(
    gateway: Running, path: str
) -> None:
    gateway.launcher.may_load.clear()
    client = await gateway.connect()
    client.request("POST", path, BODY)
    worker = await gateway.worker()
    client.close()
    await no_waiting(gateway)
    gateway.launcher.may_load.set()
    sent = gateway.send(
        "POST", path, json={"model": MODEL, "prompt": "again", "messages": [{"role": "user", "content": "hi"}]}
    )
    exchange = await worker.next_exchange()
    assert exchange.json["prompt"] == "again"
    exchange.reply(b"{}")
    await sent
    assert len(gateway.launcher.workers) == 1


async def test_leaving_one_of_many_streams_leaves_the_others_alone(gateway: Running) -> None:
    worker = await gateway.load()
    clients = [await gateway.connect() for _ in range(3)]
    exchanges: list[ChannelExchange] = []
    for client in clients:
        client.request("POST", GENERATE, BODY)
        exchanges.append(await worker.next_exchange())
        exchanges[-1].start(NDJSON)
        exchanges[-1].write(b"a")
        await client.head()
        assert await client.chunk() == b"a"
    clients[1].close()
    await within(exchanges[1].cancelled.wait())
    exchanges[1].write(b"what a worker wrote before it knew")
    for exchange, client in ((exchanges[0], clients[0]), (exchanges[2], clients[2])):
        exchange.finish(b"b")
        assert await client.chunks() == b"b"
        assert not exchange.cancelled.is_set()


@BOTH
async def test_a_client_that_got_its_whole_reply_has_not_left(gateway: Running, path: str) -> None:
    worker = await gateway.load()
    for _ in range(3):
        sent = gateway.send(
            "POST", path, json={"model": MODEL, "prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
        )
        exchange = await worker.next_exchange()
        exchange.reply(b"{}")
        await sent
        await gateway.no_leases()
        assert not exchange.cancelled.is_set()
    (connection,) = worker.connections
    assert getattr(connection, "kinds", [Kind.OPEN] * 3) == [Kind.OPEN] * 3


async def test_leaving_before_the_end_of_the_request_is_quiet(
    gateway: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        client = await gateway.connect()
        client.send(b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        await gateway.get("/")
        client.close()
        await line_of_log(caplog, "POST /api/generate")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert gateway.launcher.workers == []


@BOTH
async def test_a_client_that_left_is_logged_as_499(
    gateway: Running, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await gateway.load()
    with caplog.at_level(logging.INFO, "vllama.access"):
        caplog.clear()
        client = await gateway.connect()
        client.request("POST", path, BODY)
        await worker.next_exchange()
        client.close()
        assert (await line_of_log(caplog, f"POST {path}")).startswith("499 ")


async def test_the_access_log_shows_milliseconds(gateway: Running, caplog: pytest.LogCaptureFixture) -> None:
    worker = await gateway.load()
    with caplog.at_level(logging.INFO, "vllama.access"):
        caplog.clear()
        before = time.monotonic()
        sent = gateway.send("POST", "/api/generate", json={"model": MODEL, "prompt": "hi"})
        (await worker.next_exchange()).reply(b"{}")
        await sent
        line = await line_of_log(caplog, "POST /api/generate")
        most = 1000 * (time.monotonic() - before) + 0.1  # rounded
    status, milliseconds, *_ = line.split()
    assert status == "200"
    assert float(milliseconds) <= most


async def test_an_http_connection_whose_client_left_is_not_used_again(gateway: Running) -> None:
    worker = await gateway.load()
    client = await gateway.connect()
    client.request("POST", COMPLETIONS, BODY)
    exchange = await worker.next_exchange()
    client.close()
    await within(exchange.cancelled.wait())
    sent = gateway.send(
        "POST", COMPLETIONS, json={"model": MODEL, "prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
    )
    other = await worker.next_exchange()
    assert other.connection is not exchange.connection
    other.reply(b"{}")
    assert (await sent).content == b"{}"


async def no_waiting(gateway: Running) -> None:
    """Return when nobody waits for a load any more."""

    async def look() -> None:
        while gateway.scheduler._waiting:
            await asyncio.sleep(0)

    await within(look())


async def line_of_log(caplog: pytest.LogCaptureFixture, ending: str) -> str:
    """Return the first line that ends so, as soon as it is there."""

    async def look() -> str:
        while True:
            for record in caplog.records:
                if record.name == "vllama.access" and record.getMessage().endswith(ending):
                    return record.getMessage()
            await asyncio.sleep(0)

    return await within(look())
