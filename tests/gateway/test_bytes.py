"""What a worker writes reaches the client byte for byte, as soon as it is written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx
import orjson
import pytest
from fake_worker import FakeWorker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllama.ollama.status import JSON, NDJSON
from vllama.protocol.frames import Kind, frame, reply_frame

from .conftest import MODEL, Running

pytestmark = pytest.mark.anyio

GENERATE, COMPLETIONS = "/api/generate", "/v1/chat/completions"
SSE = "text/event-stream; charset=utf-8"
BOTH = pytest.mark.parametrize("path", [GENERATE, COMPLETIONS])

# One server serves all examples of a test: what an example needs is a request, and each makes its own.
examples = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
pieces = st.lists(st.binary(min_size=1, max_size=30) | st.sampled_from([b"\n", b"\r\n\r\n", b"0\r\n\r\n", b"a" * 5000]))


async def ask(gateway: Running, path: str) -> tuple[FakeWorker, asyncio.Task[httpx.Response]]:
    """Load the model, and send a request to it."""
    worker = gateway.launcher.workers[-1] if gateway.launcher.workers else await gateway.load()
    return worker, gateway.send(
        "POST", path, json={"model": MODEL, "prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
    )


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """Cut the bytes at these places."""
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]


@BOTH
async def test_a_whole_reply_arrives_as_it_was_written(gateway: Running, path: str) -> None:
    worker, sent = await ask(gateway, path)
    body = bytes(range(256))
    (await worker.next_exchange()).reply(body, status=218, content_type="application/weird; q=1")
    reply = await sent
    assert (reply.status_code, reply.headers["content-type"], reply.content) == (218, "application/weird; q=1", body)
    assert reply.headers["content-length"] == "256"
    assert "transfer-encoding" not in reply.headers


@BOTH
async def test_a_worker_s_error_keeps_its_status_and_its_words(gateway: Running, path: str) -> None:
    worker, sent = await ask(gateway, path)
    (await worker.next_exchange()).reply(b'{"error":"too long"}', status=400)
    reply = await sent
    assert (reply.status_code, reply.headers["content-type"]) == (400, JSON)
    openai = {"message": "too long", "type": "invalid_request_error", "param": None, "code": None}
    assert reply.json() == {"error": "too long" if path == GENERATE else openai}


@pytest.mark.parametrize(("path", "content_type"), [(GENERATE, NDJSON), (COMPLETIONS, SSE)])
async def test_each_piece_of_a_stream_arrives_before_the_next_is_written(
    gateway: Running, path: str, content_type: str
) -> None:
    worker = await gateway.load()
    connection = await gateway.connect()
    connection.request(
        "POST", path, b'{"model":"smollm2:135m","prompt":"hi","messages":[{"role":"user","content":"hi"}]}'
    )
    exchange = await worker.next_exchange()
    exchange.start(content_type)
    exchange.write(b"first\n")
    head = await connection.head()
    assert (head.status, head["content-type"], head["transfer-encoding"]) == (200, content_type, "chunked")
    assert head.all("content-length") == []
    assert await connection.chunk() == b"first\n"
    for piece in (b"second\n", b"\n", b"half a"):
        exchange.write(piece)
        assert await connection.chunk() == piece
    exchange.finish(b" line")
    assert await connection.chunk() == b" line"
    assert await connection.chunk() == b""


async def test_records_that_a_worker_sends_together_arrive_in_a_chunk_each(gateway: Running) -> None:
    worker = await gateway.load()
    connection = await gateway.connect()
    connection.request("POST", GENERATE, orjson.dumps({"model": MODEL, "prompt": "hi"}))
    exchange = await worker.next_exchange()
    data = [frame(Kind.DATA, exchange.number, piece) for piece in (b"thinking\n", b"text\n", b"call\n")]
    start = reply_frame(Kind.START, exchange.number, 200, NDJSON)
    exchange.channel.write(b"".join((start, *data, frame(Kind.LAST, exchange.number, b"done\n"))))
    await connection.head()
    pieces = (b"thinking\n", b"text\n", b"call\n", b"done\n", b"")
    assert tuple([await connection.chunk() for _ in pieces]) == pieces


async def test_vllms_chunks_stay_as_they_are_however_they_are_read(gateway: Running) -> None:
    worker = await gateway.load()
    connection = await gateway.connect()
    messages = [{"role": "user", "content": "hi"}]
    connection.request("POST", COMPLETIONS, orjson.dumps({"model": MODEL, "messages": messages}))
    exchange = await worker.next_exchange()
    exchange.start(SSE)
    exchange.raw(b"9\r\ndata: a\n\n\r\n9\r\ndata: b\n\n\r\n9\r\ndata")
    await connection.head()
    assert [await connection.chunk() for _ in "ab"] == [b"data: a\n\n", b"data: b\n\n"]
    exchange.raw(b": c\n\n\r\n9\r\ndata: d\n\n\r\n0\r\n\r\n")
    assert [await connection.chunk() for _ in "cd"] == [b"data: c\n\n", b"data: d\n\n"]
    assert await connection.chunk() == b""


@BOTH
async def test_an_empty_stream_is_a_whole_reply(gateway: Running, path: str) -> None:
    worker, sent = await ask(gateway, path)
    exchange = await worker.next_exchange()
    exchange.start(NDJSON)
    exchange.finish()
    reply = await sent
    assert (reply.status_code, reply.content) == (200, b"")


@examples
@given(pieces=pieces, last=st.binary(max_size=30))
@BOTH
async def test_the_pieces_of_a_stream_arrive_complete_and_in_order(
    gateway: Running, path: str, pieces: list[bytes], last: bytes
) -> None:
    worker, sent = await ask(gateway, path)
    exchange = await worker.next_exchange()
    exchange.start(NDJSON)
    for piece in pieces:
        exchange.write(piece)
    exchange.finish(last)
    assert (await sent).content == b"".join(pieces) + last


@examples
@given(pieces=pieces, places=st.lists(st.integers(0, 10**6), max_size=8))
async def test_frames_may_come_in_any_cuts(gateway: Running, pieces: list[bytes], places: list[int]) -> None:
    worker, sent = await ask(gateway, GENERATE)
    exchange = await worker.next_exchange()
    data = reply_frame(Kind.START, exchange.number, 200, NDJSON)
    data += b"".join(frame(Kind.DATA, exchange.number, piece) for piece in pieces)
    data += frame(Kind.LAST, exchange.number, b"end")
    for part in cut(data, places):
        exchange.channel.write(part)
        await gateway.get("/")  # so that each part is read on its own
    assert (await sent).content == b"".join(pieces) + b"end"


@examples
@given(pieces=pieces, places=st.lists(st.integers(0, 10**6), max_size=8), chunked=st.booleans())
async def test_http_may_come_in_any_cuts(
    gateway: Running, pieces: list[bytes], places: list[int], *, chunked: bool
) -> None:
    worker, sent = await ask(gateway, COMPLETIONS)
    exchange = await worker.next_exchange()
    body = b"".join(pieces)
    if chunked:
        coded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + coded
    else:
        data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    for part in cut(data, places):
        exchange.raw(part)
        await gateway.get("/")  # so that each part is read on its own
    reply = await sent
    assert reply.content == body
    assert ("content-length" in reply.headers) == (not chunked)


async def test_streams_of_one_channel_do_not_mix(gateway: Running) -> None:
    worker = await gateway.load()
    sent = [gateway.send("POST", GENERATE, json={"model": MODEL, "prompt": str(n)}) for n in range(20)]
    exchanges = [await worker.next_exchange() for _ in sent]
    for exchange in exchanges:
        exchange.start(NDJSON)
    for step in range(5):
        for exchange in reversed(exchanges):
            exchange.write(f"{exchange.json['prompt']}-{step} ".encode())
    for exchange in exchanges:
        exchange.finish()
    for n, reply in enumerate(sent):
        assert (await reply).text == "".join(f"{n}-{step} " for step in range(5))
