"""A worker that dies with requests in flight: each client learns of it in its own format (contract §1.1, §1.2, §5)."""

from __future__ import annotations

import asyncio
import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from fake_worker import FakeWorker, within

from vllama.names import ModelName
from vllama.ollama.status import JSON, NDJSON

from .conftest import Running
from .raw_http import Head, RawConnection

pytestmark = pytest.mark.anyio

GENERATE, CHAT, COMPLETIONS, MESSAGES = "/api/generate", "/api/chat", "/v1/chat/completions", "/v1/messages"
BODY = (
    b'{"model":"smollm2:135m","prompt":"hi","input":"hi","messages":[{"role":"user","content":"hi"}],'
    b'"max_tokens":1,"raw":true}'
)
SSE = "text/event-stream; charset=utf-8"
STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)


async def begun(gateway: Running, path: str, content_type: str, first: bytes) -> tuple[FakeWorker, RawConnection, Head]:
    """A stream of which the client has got the first piece."""
    worker = await gateway.load()
    client = await gateway.connect()
    client.request("POST", path, BODY)
    exchange = await worker.next_exchange()
    exchange.start(content_type)
    exchange.write(first)
    head = await client.head()
    assert await client.exactly(len(f"{len(first):x}") + 2 + len(first) + 2) == b"%x\r\n%b\r\n" % (len(first), first)
    return worker, client, head


@pytest.mark.parametrize("path", [GENERATE, CHAT])
@pytest.mark.parametrize("has_begun", [False, True])
async def test_before_the_first_byte_it_is_a_500_with_ollama_s_text(
    gateway: Running, path: str, *, has_begun: bool
) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", path, content=BODY)
    exchange = await worker.next_exchange()
    if has_begun:
        exchange.start(NDJSON)  # a head without a body is not sent on
    worker.die(last_words=True)
    reply = await sent
    assert (reply.status_code, reply.headers["content-type"]) == (500, JSON)
    assert reply.json() == {"error": STOPPED}


async def test_before_the_first_byte_under_v1_it_is_a_500_in_the_shape_of_openai(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", COMPLETIONS, content=BODY)
    await worker.next_exchange()
    worker.die()
    reply = await sent
    assert reply.status_code == 500
    assert reply.json() == {"error": {"message": STOPPED, "type": "api_error", "param": None, "code": None}}


@pytest.mark.parametrize("path", [GENERATE, CHAT])
async def test_in_an_ndjson_stream_it_is_one_line_and_no_done(gateway: Running, path: str) -> None:
    worker, client, head = await begun(gateway, path, NDJSON, b'{"done":false}\n')
    worker.die()
    assert head.status == 200
    assert await client.chunks() == json.dumps({"error": STOPPED}, separators=(",", ":")).encode() + b"\n"


async def test_half_a_line_is_ended_before_the_error(gateway: Running) -> None:
    worker, client, _ = await begun(gateway, GENERATE, NDJSON, b'{"respo')
    worker.die()
    assert (await client.chunks()).splitlines() == [b"", b'{"error":"%b"}' % STOPPED.encode()]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_in_an_event_stream_it_is_an_error_event_and_the_usual_end(gateway: Running, path: str) -> None:
    worker, client, head = await begun(gateway, path, SSE, b"data: {}\n\n")
    worker.die()
    assert head["content-type"] == SSE
    *events, end = [event for event in (await client.chunks()).split(b"\n\n") if event.strip()]
    (error,) = events
    assert json.loads(error.strip().removeprefix(b"data: "))["error"]["message"] == STOPPED
    assert end == b"data: [DONE]"


async def test_under_v1_responses_there_is_no_done(gateway: Running) -> None:
    worker, client, _ = await begun(gateway, "/v1/responses", SSE, b"event: response.created\ndata: {}\n\n")
    worker.die()
    assert b"[DONE]" not in await client.chunks()


async def test_under_v1_messages_it_is_an_error_event_of_anthropic(gateway: Running) -> None:
    worker, client, _ = await begun(gateway, MESSAGES, SSE, b"event: ping\ndata: {}\n\n")
    worker.die()
    name, data = (await client.chunks()).strip().split(b"\n")
    assert name == b"event: error"
    error = json.loads(data.removeprefix(b"data: "))
    assert error["error"] == {"type": "api_error", "message": STOPPED}


async def die_at_a_request(gateway: Running, path: str = GENERATE) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", path, content=BODY)
    await worker.next_exchange()
    worker.die()
    assert (await sent).status_code == 500


async def test_a_model_whose_worker_dies_at_each_first_request_is_a_503_that_says_why_and_for_how_long(
    gateway: Running,
) -> None:
    for _ in range(2):
        await die_at_a_request(gateway)
    reply = await gateway.post(GENERATE, {"model": "smollm2:135m", "prompt": "hi"})
    assert reply.status_code == 503
    assert 0 < int(reply.headers["retry-after"]) <= 5
    assert re.fullmatch(
        r"smollm2:135m failed 2 times in a row; it will not be loaded again for \d s. Last failure: "
        "its worker died: a process of the worker was killed by SIGKILL",
        reply.json()["error"],
    )
    assert len(gateway.launcher.workers) == 2


@pytest.mark.parametrize("path", [GENERATE, COMPLETIONS])
async def test_one_that_has_answered_before_it_died_is_loaded_at_once(gateway: Running, path: str) -> None:
    for _ in range(3):
        worker = await gateway.load()
        sent = gateway.send("POST", path, content=BODY)
        (await worker.next_exchange()).reply(b"{}")
        assert (await sent).status_code == 200
        await die_at_a_request(gateway)
    await gateway.load()


@pytest.mark.parametrize(("path", "status"), [(GENERATE, 500), (COMPLETIONS, 500), (COMPLETIONS, 400)])
async def test_an_error_is_no_answer(gateway: Running, path: str, status: int) -> None:
    for _ in range(2):
        worker = await gateway.load()
        sent = gateway.send("POST", path, content=BODY)
        (await worker.next_exchange()).reply(b'{"error":{"message":"what"}}', status=status)
        assert (await sent).status_code == status
        await die_at_a_request(gateway)
    assert (await gateway.post(GENERATE, {"model": "smollm2:135m"})).status_code == 503


async def test_an_event_stream_is_no_proof_that_the_engine_works(gateway: Running) -> None:
    """vLLM ends one properly, too, in which it has said that its engine is dead."""
    for _ in range(2):
        worker = await gateway.load()
        sent = gateway.send("POST", COMPLETIONS, content=BODY)
        exchange = await worker.next_exchange()
        exchange.start(SSE)
        exchange.finish(b'data: {"error": {"message": "EngineCore encountered an issue"}}\n\ndata: [DONE]\n\n')
        assert (await sent).status_code == 200
        worker.die()
        await within(asyncio.shield(worker.exited))
    assert (await gateway.post(GENERATE, {"model": "smollm2:135m"})).status_code == 503


@pytest.mark.parametrize("cut", [b'data: {"a', b"data: {}\n"])
async def test_half_an_event_does_not_swallow_the_error(gateway: Running, cut: bytes) -> None:
    worker, client, _ = await begun(gateway, COMPLETIONS, SSE, cut)
    worker.die()
    events = (cut + await client.chunks()).split(b"\n\n")
    assert events[0].strip() == cut.strip()
    assert sum(event.strip().startswith(b'data: {"error"') for event in events) == 1


async def test_a_body_whose_length_was_said_is_broken_off(gateway: Running) -> None:
    """There is no room for an error in it: the client sees that the connection ended too early."""
    worker = await gateway.load()
    client = await gateway.connect()
    client.request("POST", COMPLETIONS, BODY)
    exchange = await worker.next_exchange()
    exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\nhalf")
    assert (await client.head())["content-length"] == "100"
    assert await client.exactly(4) == b"half"
    worker.die()
    assert await client.rest() == b""


async def test_a_chunked_body_of_another_type_is_broken_off(gateway: Running) -> None:
    worker, client, _ = await begun(gateway, COMPLETIONS, "audio/wav", b"RIFF")
    worker.die()
    assert await client.rest() == b""  # and not the chunk of length 0 that ends a whole body


@pytest.mark.parametrize("rubbish", [b"\x00\x01rubbish\r\n\r\n", b""])
async def test_an_http_reply_that_breaks_ends_alone(gateway: Running, rubbish: bytes) -> None:
    """vLLM closes the connection of a reply that it cannot complete; its other requests go on."""
    worker, client, _ = await begun(gateway, GENERATE, NDJSON, b"a")
    sent = gateway.send("POST", COMPLETIONS, content=BODY)
    broken = await worker.next_exchange()
    broken.raw(rubbish)
    broken.connection.transport.close()
    reply = await sent
    assert reply.json()["error"]["message"] == STOPPED
    sent = gateway.send("POST", COMPLETIONS, content=BODY)
    (await worker.next_exchange()).reply(b"{}")
    assert (await sent).content == b"{}"
    assert gateway.launcher.workers == [worker]
    client.close()


async def test_a_reply_that_the_server_cannot_send_ends_alone(gateway: Running) -> None:
    """Streams of one model share a connection; a fault in one must not end the others."""
    worker = await gateway.load()
    good, bad = await gateway.connect(), await gateway.connect()
    good.request("POST", GENERATE, BODY)
    exchange = await worker.next_exchange()
    exchange.start(NDJSON)
    exchange.write(b"a")
    await good.head()
    bad.request("POST", GENERATE, BODY)
    broken = await worker.next_exchange()
    broken.reply(b"x", content_type="text/plain\r\nevil: 1")
    assert await bad.rest() == b""
    await within(broken.cancelled.wait())
    exchange.finish(b"b")
    assert await good.chunks() == b"ab"


async def test_all_clients_of_the_worker_are_told_and_the_next_request_gets_a_new_one(gateway: Running) -> None:
    worker = await gateway.load()
    sent = [gateway.send("POST", GENERATE, content=BODY) for _ in range(5)]
    sent += [gateway.send("POST", COMPLETIONS, content=BODY) for _ in range(5)]
    for _ in sent:
        await worker.next_exchange()
    worker.die()
    assert {(await reply).status_code for reply in sent} == {500}
    await gateway.no_leases()
    again = gateway.send("POST", GENERATE, content=BODY)
    successor = await next_worker(gateway, after=worker)
    (await successor.next_exchange()).reply(b'{"done":true}')
    assert (await again).json() == {"done": True}


async def test_other_models_do_not_notice(gateway: Running) -> None:
    (manifest,) = gateway.store.list()
    gateway.store.put(replace(manifest, name=ModelName.parse("other"), engine_flags=("--seed", "1")))
    dying = await gateway.load()
    living = await gateway.load("other")
    sent = gateway.send("POST", GENERATE, json={"model": "other", "prompt": "hi"})
    exchange = await living.next_exchange()
    dying.die()
    exchange.reply(b"{}")
    assert (await sent).status_code == 200


@pytest.mark.parametrize("path", [GENERATE, COMPLETIONS])
async def test_a_worker_that_listens_no_more_is_replaced(gateway: Running, path: str) -> None:
    """Its process has not ended yet, but nothing can be asked of it."""
    worker = await gateway.load()
    for socket in (worker.socket, *worker.channels):
        socket.unlink()
    reply = await gateway.post(path, content=BODY)
    assert reply.status_code == 500
    assert STOPPED in reply.text
    await within(asyncio.shield(worker.exited))
    again = gateway.send("POST", path, content=BODY)
    (await (await next_worker(gateway, after=worker)).next_exchange()).reply(b"{}")
    assert (await again).status_code == 200


@pytest.mark.parametrize("path", [GENERATE, COMPLETIONS])
async def test_a_gateway_with_too_many_open_files_does_not_blame_the_worker(gateway: Running, path: str) -> None:
    worker = await gateway.load()
    client = await gateway.connect()
    client.request("GET", "/")
    await client.exactly(int((await client.head())["content-length"]))
    with no_more_files():
        client.request("POST", path, BODY)
        head = await client.head()
        reply = await client.exactly(int(head["content-length"]))
    assert (head.status, b"cannot reach the model's worker" in reply) == (500, True)
    client.request("POST", path, BODY)
    (await worker.next_exchange()).reply(b"{}")
    assert (await client.head()).status == 200


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process can open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def next_worker(gateway: Running, after: FakeWorker) -> FakeWorker:
    async def look() -> FakeWorker:
        while gateway.launcher.workers[-1] is after:
            await asyncio.sleep(0)
        return gateway.launcher.workers[-1]

    return await within(look())
