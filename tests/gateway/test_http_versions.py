"""Clients that offer a newer protocol, and clients of an older one: both are served over the HTTP/1 that they speak."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson
import pytest
from fake_worker import Exchange, FakeWorker, within
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllama.ollama.status import NDJSON

from .conftest import MODEL, Running
from .raw_http import RawConnection, request_bytes

pytestmark = pytest.mark.anyio

GENERATE, COMPLETIONS = "/api/generate", "/v1/chat/completions"
BOTH = pytest.mark.parametrize("path", [GENERATE, COMPLETIONS])
BODY = orjson.dumps({"model": MODEL, "prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "stream": True})
SHOW = orjson.dumps({"model": MODEL})

JDK = (
    ("Connection", "Upgrade, HTTP2-Settings"),
    ("Upgrade", "h2c"),
    ("HTTP2-Settings", "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"),
)
OFFERS = {
    "HTTP/2 by a JDK client": JDK,
    "HTTP/2 and a kept connection": (("Connection", "keep-alive, Upgrade"), ("Upgrade", "h2c")),
    "HTTP/2 in two headers": (("Connection", "keep-alive"), ("Connection", "upgrade"), ("upgrade", "H2C")),
    "TLS": (("Connection", "Upgrade"), ("Upgrade", "TLS/1.2, HTTP/1.1")),
    "a WebSocket": (
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
    ),
    "something unknown": (("Connection", "Upgrade"), ("Upgrade", "carrier-pigeon")),
}
EACH_OFFER = pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())


async def answer(connection: RawConnection) -> tuple[int, bytes]:
    """The next reply of known length."""
    head = await connection.head()
    return head.status, await connection.exactly(int(head["content-length"]))


# --- offers of another protocol ---


@EACH_OFFER
async def test_an_offer_of_another_protocol_is_ignored_and_the_body_is_read(
    gateway: Running, offer: tuple[tuple[str, str], ...]
) -> None:
    connection = await gateway.connect()
    connection.request("POST", "/api/show", SHOW, *offer)
    status, body = await answer(connection)
    assert (status, "capabilities" in orjson.loads(body)) == (200, True)


@EACH_OFFER
async def test_the_connection_stays_usable_after_an_offer(gateway: Running, offer: tuple[tuple[str, str], ...]) -> None:
    connection = await gateway.connect()
    for _ in range(2):
        connection.request("GET", "/api/version", b"", *offer)
        assert (await answer(connection))[0] == 200
        connection.request("POST", "/api/show", SHOW)
        assert (await answer(connection))[0] == 200


async def test_a_body_in_chunks_may_follow_an_offer(gateway: Running) -> None:
    connection = await gateway.connect()
    head = request_bytes("POST", "/api/show", b"", *JDK).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    connection.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(SHOW), SHOW))
    assert (await answer(connection))[0] == 200


async def test_a_client_that_offers_and_waits_for_a_hundred_is_told_to_continue(gateway: Running) -> None:
    connection = await gateway.connect()
    whole = request_bytes("POST", "/api/show", SHOW, *JDK, ("Expect", "100-continue"))
    connection.send(whole.removesuffix(SHOW))
    assert (await connection.head()).status == 100
    connection.send(SHOW)
    assert (await answer(connection))[0] == 200


async def test_a_client_that_offers_and_closes_is_answered_and_closed(gateway: Running) -> None:
    connection = await gateway.connect()
    connection.request("GET", "/api/version", b"", ("Connection", "close, Upgrade"), ("Upgrade", "h2c"))
    assert (await connection.head())["connection"] == "close"
    await connection.rest()


@BOTH
async def test_a_reply_streams_to_a_client_that_offered(gateway: Running, path: str) -> None:
    worker = await gateway.load()
    connection = await gateway.connect()
    connection.request("POST", path, BODY, *JDK)
    exchange = await worker.next_exchange()
    assert exchange.json["model"]
    assert not {"upgrade", "http2-settings", "connection"} & set(getattr(exchange, "headers", {}))
    exchange.start(NDJSON)
    for piece in (b"a\n", b"b\n"):
        exchange.write(piece)
        if piece == b"a\n":
            await connection.head()
        assert await connection.chunk() == piece
    exchange.finish()
    assert await connection.chunks() == b""


async def test_a_proxys_connect_is_refused(gateway: Running) -> None:
    connection = await gateway.connect()
    connection.send(b"CONNECT / HTTP/1.1\r\nHost: localhost\r\n\r\nhello")
    assert (await connection.head()).status == 400
    await connection.rest()


requests = st.lists(st.tuples(st.sampled_from(["/api/version", "/api/show"]), st.booleans()), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=requests, places=st.lists(st.integers(0, 10**6), max_size=6))
async def test_pipelined_requests_with_and_without_offers_may_come_in_any_cuts(
    gateway: Running, requests: list[tuple[str, bool]], places: Sequence[int]
) -> None:
    methods = {"/api/version": ("GET", b""), "/api/show": ("POST", SHOW)}
    data = b"".join(
        request_bytes(method, path, body, *(JDK if offers else ()))
        for path, offers in requests
        for method, body in [methods[path]]
    )
    connection = await gateway.connect()
    start = 0
    for end in sorted({place % len(data) for place in places} | {len(data)}):
        connection.send(data[start:end])
        start = end
        await gateway.get("/")  # so that each part is read on its own
    for path, _ in requests:
        status, body = await answer(connection)
        assert status == 200
        assert ("version" in orjson.loads(body)) == (path == "/api/version")
    connection.close()


# --- HTTP/1.0 ---


async def _streaming(gateway: Running) -> tuple[FakeWorker, RawConnection, Exchange]:
    """Return a worker, a client of HTTP/1.0 that has read the head of its reply, and that reply with one line."""
    worker = await gateway.load()
    connection = await gateway.connect()
    connection.request("POST", GENERATE, BODY, version="HTTP/1.0")
    exchange = await worker.next_exchange()
    exchange.start(NDJSON)
    exchange.write(b"a\n")
    await connection.head()
    return worker, connection, exchange


@BOTH
async def test_a_stream_to_http_1_0_is_plain_bytes_until_the_connection_closes(gateway: Running, path: str) -> None:
    worker = await gateway.load()
    connection = await gateway.connect()
    connection.request("POST", path, BODY, version="HTTP/1.0")
    exchange = await worker.next_exchange()
    exchange.start(NDJSON)
    exchange.write(b"a\n")
    head = await connection.head()
    assert (head.version, head.status, head["content-type"]) == ("HTTP/1.0", 200, NDJSON)
    assert head.all("transfer-encoding") == head.all("content-length") == []
    assert head["connection"] == "close"
    assert await connection.exactly(2) == b"a\n"
    exchange.write(b"b\n")
    assert await connection.exactly(2) == b"b\n"
    exchange.finish(b"c\n")
    assert await connection.rest() == b"c\n"


async def test_a_stream_ends_a_connection_that_http_1_0_asked_to_keep(gateway: Running) -> None:
    worker = await gateway.load()
    connection = await gateway.connect()
    connection.request("POST", GENERATE, BODY, ("Connection", "keep-alive"), version="HTTP/1.0")
    exchange = await worker.next_exchange()
    exchange.start(NDJSON)
    exchange.finish(b"a\n")
    assert (await connection.head())["connection"] == "close"
    assert await connection.rest() == b"a\n"


async def test_http_1_0_keeps_its_connection_where_it_asks_for_that(gateway: Running) -> None:
    connection = await gateway.connect()
    for _ in range(2):
        connection.request("POST", "/api/show", SHOW, ("Connection", "Keep-Alive"), version="HTTP/1.0")
        head = await connection.head()
        assert (head.version, head.status, head["connection"]) == ("HTTP/1.0", 200, "keep-alive")
        await connection.exactly(int(head["content-length"]))
    connection.request("HEAD", "/api/version", b"", ("Connection", "keep-alive"), version="HTTP/1.0")
    head = await connection.head()
    assert (head.status, head["connection"]) == (200, "keep-alive")
    connection.request("GET", "/api/version", version="HTTP/1.0")
    head = await connection.head()
    assert (head.status, head["connection"]) == (200, "close")
    assert len(await connection.rest()) == int(head["content-length"])


async def test_http_1_0_needs_no_host_and_may_offer_an_upgrade(gateway: Running) -> None:
    connection = await gateway.connect()
    head = b"POST /api/show HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(SHOW)
    connection.send(head + SHOW)
    status, body = await answer(connection)
    assert (status, "capabilities" in orjson.loads(body)) == (200, True)


async def test_an_error_in_a_stream_to_http_1_0_is_its_last_line(gateway: Running) -> None:
    worker, connection, _ = await _streaming(gateway)
    assert await connection.exactly(2) == b"a\n"
    worker.die()
    assert "error" in orjson.loads(await connection.rest())


async def test_a_client_of_http_1_0_that_leaves_ends_its_request(gateway: Running) -> None:
    _, connection, exchange = await _streaming(gateway)
    connection.close()
    await within(exchange.cancelled.wait())
    await gateway.no_leases()


async def test_a_slow_client_of_http_1_0_makes_its_worker_wait_and_loses_nothing(gateway: Running) -> None:
    worker = await gateway.load()
    connection = await gateway.connect(buffer=8192)
    connection.request("POST", GENERATE, BODY, version="HTTP/1.0")
    exchange = await worker.next_exchange()
    piece = bytes(range(256)) * 64
    streaming = asyncio.create_task(exchange.stream(NDJSON, [piece] * 1024))
    await within(exchange.paused.wait())
    await connection.head()
    assert await connection.rest() == piece * 1024
    await within(streaming)


async def test_a_path_cannot_put_headers_into_a_reply_to_http_1_0(gateway: Running) -> None:
    connection = await gateway.connect()
    connection.request("GET", "/api/version%0d%0ax-mine:%20yes/", version="HTTP/1.0")
    assert (await connection.head()).all("x-mine") == []
