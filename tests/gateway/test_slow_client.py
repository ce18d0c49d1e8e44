"""A client that reads slowly: its worker waits, memory stays bounded, nothing is lost, and others do not notice."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from itertools import islice

import pytest
from fake_worker import within

from vllama.ollama.status import NDJSON

from .conftest import MODEL, Running

pytestmark = pytest.mark.anyio

GENERATE, COMPLETIONS = "/api/generate", "/v1/chat/completions"
BOTH = pytest.mark.parametrize("path", [GENERATE, COMPLETIONS])
BODY = b'{"model":"smollm2:135m","prompt":"hi","messages":[{"role":"user","content":"hi"}]}'

PIECE = bytes(range(256)) * 64
"""16 KiB."""

MANY = 2048
"""32 MiB: far more than sockets hold."""

BOUND = 16 * 2**20
"""What sockets and buffers on the way may hold."""


@BOTH
async def test_a_worker_is_told_to_wait_for_a_slow_client_and_nothing_is_lost(gateway: Running, path: str) -> None:
    worker = await gateway.load()
    slow = await gateway.connect(buffer=8192)
    slow.request("POST", path, BODY)
    exchange = await worker.next_exchange()
    written = 0

    def pieces() -> Iterator[bytes]:
        nonlocal written
        for _ in range(MANY):
            written += len(PIECE)
            yield PIECE

    streaming = asyncio.create_task(exchange.stream(NDJSON, pieces()))
    await within(exchange.paused.wait())
    assert written < BOUND
    head, received = await slow.head(), hashlib.sha256()
    assert head.status == 200
    while chunk := await slow.chunk():
        received.update(chunk)
    await within(streaming)
    assert received.digest() == hashlib.sha256(PIECE * MANY).digest()


@BOTH
async def test_what_came_before_the_pause_took_effect_is_kept(gateway: Running, path: str) -> None:
    """A worker may have written a lot more when it learns that it should wait."""
    worker = await gateway.load()
    slow = await gateway.connect(buffer=8192)
    slow.request("POST", path, BODY)
    exchange = await worker.next_exchange()
    exchange.start(NDJSON)
    for _ in range(MANY // 4):
        exchange.write(PIECE)
    exchange.finish(b"end")
    await slow.head()
    assert await slow.chunks() == PIECE * (MANY // 4) + b"end"
    await gateway.no_leases()


async def test_other_streams_of_the_model_do_not_wait(gateway: Running) -> None:
    worker = await gateway.load()
    slow, quick = await gateway.connect(buffer=8192), await gateway.connect()
    slow.request("POST", GENERATE, BODY)
    stuck = await worker.next_exchange()
    streaming = asyncio.create_task(stuck.stream(NDJSON, [PIECE] * MANY))
    await within(stuck.paused.wait())
    for _ in range(3):
        quick.request("POST", GENERATE, BODY)
        exchange = await worker.next_exchange()
        exchange.start(NDJSON)
        exchange.write(b"a")
        await quick.head()
        assert await quick.chunk() == b"a"
        exchange.finish(b"b")
        assert await quick.chunks() == b"b"
    assert not stuck.resumed.is_set()
    streaming.cancel()


@BOTH
async def test_a_slow_client_that_leaves_frees_its_worker(gateway: Running, path: str) -> None:
    worker = await gateway.load()
    slow = await gateway.connect(buffer=8192)
    slow.request("POST", path, BODY)
    exchange = await worker.next_exchange()
    streaming = asyncio.create_task(exchange.stream(NDJSON, [PIECE] * MANY))
    await within(exchange.paused.wait())
    slow.close()
    await within(exchange.cancelled.wait())
    await gateway.no_leases()
    streaming.cancel()


@pytest.mark.parametrize("size", [100, 2**16, 2**20, 2**23])
@BOTH
async def test_a_connection_is_as_good_as_new_after_a_slow_client(gateway: Running, path: str, size: int) -> None:
    worker = await gateway.load()
    slow = await gateway.connect(buffer=8192)
    slow.request("POST", path, BODY)
    (await worker.next_exchange()).reply(b"x" * size)
    head = await slow.head()
    assert await slow.exactly(int(head["content-length"])) == b"x" * size
    await gateway.no_leases()
    connections = len(worker.connections)
    for _ in range(2):
        sent = gateway.send(
            "POST", path, json={"model": MODEL, "prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
        )
        (await worker.next_exchange()).reply(b"next")
        assert (await sent).content == b"next"
    assert len(worker.connections) == connections


@BOTH
async def test_a_worker_that_dies_when_it_has_said_all_does_no_harm(gateway: Running, path: str) -> None:
    worker = await gateway.load()
    slow = await gateway.connect(buffer=8192)
    slow.request("POST", path, BODY)
    exchange = await worker.next_exchange()
    exchange.start(NDJSON)
    for _ in range(30):
        exchange.write(PIECE)
    exchange.finish(b"end")
    await slow.head()
    first = await slow.chunk()
    worker.die()
    assert first + await slow.chunks() == PIECE * 30 + b"end"


@pytest.mark.parametrize("more", [0, 10])
@pytest.mark.parametrize("size", [2**14, 2**18])
async def test_a_worker_that_dies_is_reported_after_all_that_it_has_said(
    gateway: Running, size: int, more: int
) -> None:
    worker = await gateway.load()
    slow = await gateway.connect(buffer=8192)
    slow.request("POST", GENERATE, BODY)
    exchange = await worker.next_exchange()
    written: list[bytes] = []

    def lines() -> Iterator[bytes]:
        for number in range(MANY):
            written.append(b"%d:%b\n" % (number, b"x" * size))
            yield written[-1]

    rest = lines()
    streaming = asyncio.create_task(exchange.stream(NDJSON, rest))
    await within(exchange.paused.wait())
    for line in islice(rest, more):
        exchange.write(line)  # before it learns that it should wait
        await asyncio.sleep(0)
    worker.die(last_words=True)
    streaming.cancel()
    await within(exchange.channel.closed.wait())
    await gateway.get("/")  # the gateway has noticed, and the client has read nothing yet
    await slow.head()
    received = await slow.chunks()
    said, error = received[: received.rindex(b"\n", 0, -1) + 1], received[received.rindex(b"\n", 0, -1) + 1 :]
    assert said == b"".join(written)
    assert error.startswith(b'{"error":"model runner has unexpectedly stopped')
