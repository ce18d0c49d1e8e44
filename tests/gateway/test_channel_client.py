"""How requests reach a worker: channels to its API server processes, and HTTP connections that are kept."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from fake_worker import ChannelEnd, ChannelExchange, HttpEnd, within
from hypothesis import given
from hypothesis import strategies as st

from vllama.gateway.channel_client import SentProfiles
from vllama.gateway.upstream import Connection, request_bytes
from vllama.ollama.status import NDJSON
from vllama.protocol.frames import Kind

from .conftest import MODEL, RunGateway, Running

pytestmark = pytest.mark.anyio

GENERATE, COMPLETIONS = "/api/generate", "/v1/chat/completions"
ASK = {"model": MODEL, "prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}


async def test_all_streams_of_a_model_share_one_connection(gateway: Running) -> None:
    worker = await gateway.load()
    sent = [gateway.send("POST", path, json=ASK) for path in [GENERATE] * 5]
    for _ in sent:
        (await worker.next_exchange()).reply(b"{}")
    for reply in sent:
        await reply
    assert len(worker.connections) == 1


async def test_several_api_server_processes_share_the_load(run_gateway: RunGateway) -> None:
    async with run_gateway(api_servers=2) as gateway:
        worker = await gateway.load()
        sent, exchanges = [], []
        for _ in range(6):
            sent.append(gateway.send("POST", GENERATE, json=ASK))
            exchanges.append(await worker.next_exchange())
        first, second = (connection for connection in worker.connections)
        assert [exchange.channel for exchange in exchanges].count(first) == 3
        assert [exchange.channel for exchange in exchanges].count(second) == 3
        for exchange in exchanges:
            exchange.reply(b"{}")
        for reply in sent:
            await reply


async def test_the_process_with_the_fewest_streams_gets_the_next(run_gateway: RunGateway) -> None:
    async with run_gateway(api_servers=2) as gateway:
        worker = await gateway.load()
        sent, exchanges = [], []
        for _ in range(4):
            sent.append(gateway.send("POST", GENERATE, json=ASK))
            exchanges.append(await worker.next_exchange())
        idle = exchanges[1].channel
        for exchange in exchanges:
            if exchange.channel is idle:
                exchange.reply(b"{}")
        await within(asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED))
        for _ in range(2):
            sent.append(gateway.send("POST", GENERATE, json=ASK))
            exchanges.append(await worker.next_exchange())
        assert {exchange.channel for exchange in exchanges[4:]} == {idle}
        for exchange in exchanges:
            if exchange.channel is not idle or exchange in exchanges[4:]:
                exchange.reply(b"{}")
        for reply in sent:
            await reply


async def test_the_worker_gets_path_body_and_nothing_else(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", "/api/generate?x=1", json=ASK, headers={"authorization": "Bearer secret"})
    exchange = await worker.next_exchange()
    assert isinstance(exchange, ChannelExchange)
    assert (exchange.path, exchange.json) == (GENERATE, ASK)
    exchange.reply(b"{}")
    await sent


async def test_a_frame_for_a_stream_that_has_ended_is_ignored(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", GENERATE, json=ASK)
    exchange = await worker.next_exchange()
    exchange.reply(b"{}")
    await sent
    exchange.write(b"late")
    exchange.finish(b"later")
    again = gateway.send("POST", GENERATE, json=ASK)
    (await worker.next_exchange()).reply(b'{"again":1}')
    assert (await again).json() == {"again": 1}


async def test_a_new_worker_gets_a_new_channel(gateway: Running) -> None:
    for _ in range(3):
        sent = gateway.send("POST", GENERATE, json={**ASK, "keep_alive": 0})
        worker = await gateway.worker()
        (await worker.next_exchange()).reply(b"{}")
        assert (await sent).status_code == 200
    assert len(gateway.launcher.workers) == 3


async def test_http_connections_are_used_again(gateway: Running) -> None:
    worker = await gateway.load()
    for _ in range(3):
        sent = gateway.send("POST", COMPLETIONS, json=ASK)
        (await worker.next_exchange()).reply(b"{}")
        await sent
    for _ in range(3):
        sent = gateway.send("POST", COMPLETIONS, json=ASK)
        exchange = await worker.next_exchange()
        exchange.start("text/event-stream")
        exchange.finish(b"data: {}\n\n")
        await sent
    assert [type(connection) for connection in worker.connections] == [HttpEnd]


async def test_each_http_request_at_a_time_has_a_connection_of_its_own(gateway: Running) -> None:
    worker = await gateway.load()
    sent = [gateway.send("POST", COMPLETIONS, json={**ASK, "prompt": str(n)}) for n in range(4)]
    exchanges = [await worker.next_exchange() for _ in sent]
    assert len({exchange.connection for exchange in exchanges}) == 4
    for exchange in reversed(exchanges):
        exchange.reply(exchange.json["prompt"].encode())
    assert [(await reply).text for reply in sent] == ["0", "1", "2", "3"]


async def test_an_idle_connection_that_the_worker_closed_is_not_used(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", COMPLETIONS, json=ASK)
    exchange = await worker.next_exchange()
    exchange.reply(b"{}")
    await sent
    exchange.connection.transport.close()
    await within(exchange.cancelled.wait())
    await gateway.get("/")
    sent = gateway.send("POST", COMPLETIONS, json=ASK)
    (await worker.next_exchange()).reply(b"{}")
    assert (await sent).status_code == 200


async def test_bytes_that_nobody_asked_for_end_an_idle_connection(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", COMPLETIONS, json=ASK)
    exchange = await worker.next_exchange()
    exchange.reply(b"{}")
    await sent
    exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
    await within(exchange.cancelled.wait())
    sent = gateway.send("POST", COMPLETIONS, json=ASK)
    (await worker.next_exchange()).reply(b"good")
    assert (await sent).content == b"good"


async def test_vllm_gets_the_path_the_query_and_the_client_s_own_headers(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send(
        "POST",
        "/v1//chat/completions?beta=true&x=%2F",
        content=b'{"model":"smollm2:135m","messages":[{"role":"user","content":"hi"}]}',
        headers={"content-type": "text/plain", "x-request-id": "7", "connection": "keep-alive", "origin": "app://x"},
    )
    exchange = await worker.next_exchange()
    assert exchange.path == "/v1/chat/completions?beta=true&x=%2F"
    headers = {name.lower(): value for name, value in exchange.headers.items()}
    assert headers["x-request-id"] == "7"
    assert headers["content-type"] == "application/json"  # vLLM insists on it
    assert headers["host"] == "worker"
    assert not {"connection", "origin", "transfer-encoding"} & headers.keys()
    assert exchange.json == {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    exchange.reply(b"{}")
    await sent


async def test_vllm_s_own_headers_reach_the_client_and_those_of_the_connection_do_not(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", COMPLETIONS, json=ASK)
    (await worker.next_exchange()).raw(
        b"HTTP/1.1 200 OK\r\nX-Request-Id: 7\r\nServer: uvicorn\r\nDate: yesterday\r\nKeep-Alive: timeout=1\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    reply = await sent
    assert reply.headers["x-request-id"] == "7"
    assert not {"server", "keep-alive"} & set(reply.headers)
    assert reply.headers.get_list("date") != ["yesterday"]


async def test_native_and_openai_requests_are_served_side_by_side(gateway: Running) -> None:
    worker = await gateway.load()
    sent = [gateway.send("POST", path, json=ASK) for path in (GENERATE, COMPLETIONS)]
    for _ in sent:
        exchange = await worker.next_exchange()
        exchange.start(NDJSON)
        exchange.finish(exchange.path.encode())
    assert [(await reply).text for reply in sent] == [GENERATE, COMPLETIONS]
    assert {type(connection) for connection in worker.connections} == {ChannelEnd, HttpEnd}


async def test_the_channel_carries_only_what_is_needed(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", GENERATE, json=ASK)
    exchange = await worker.next_exchange()
    exchange.reply(b"{}")
    await sent
    await gateway.get("/")
    assert exchange.channel.kinds == [Kind.OPEN]


names = st.sampled_from([b"x-a", b"accept", b"connection", b"keep-alive", b"transfer-encoding", b"host", b"expect"])


@given(
    st.lists(st.tuples(names, st.binary(max_size=5).filter(lambda value: b"\r" not in value and b"\n" not in value)))
)
def test_the_head_of_a_request_to_vllm_is_always_framed_by_its_length(headers: list[tuple[bytes, bytes]]) -> None:
    data = request_bytes("POST", b"/v1/x", [*headers, (b"content-length", b"999")], b"\r\n\r\nbody")
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[:2] == [b"POST /v1/x HTTP/1.1", b"host: worker"]
    assert lines[-1] == b"content-length: %d" % len(body)
    assert sum(line.startswith((b"content-length", b"transfer-encoding", b"host")) for line in lines) == 2
    assert body == b"\r\n\r\nbody"


def test_a_channel_forgets_the_profiles_that_were_not_used_for_longest() -> None:
    sent = SentProfiles(most=2, most_bytes=100)
    assert sent.number_of(b"a") == (0, True, [])
    assert sent.number_of(b"b") == (1, True, [])
    assert sent.number_of(b"a") == (0, False, [])
    assert sent.number_of(b"c") == (2, True, [1])
    assert sent.number_of(b"d" * 200) == (3, True, [0, 2])
    assert sent.number_of(b"d" * 200) == (3, False, [])


async def test_a_worker_does_not_collect_the_profiles_of_models_that_share_it(gateway: Running) -> None:
    worker = await gateway.load()
    for number in range(70):
        name = f"made:{number}"
        made = {"model": name, "from": MODEL, "system": f"You are number {number}."}
        assert (await gateway.post("/api/create", made)).status_code == 200
        reply = gateway.send("POST", GENERATE, json={**ASK, "model": name})
        exchange = await worker.next_exchange()
        assert exchange.profile.system == f"You are number {number}."
        exchange.reply(b"{}")
        await reply
    (channel,) = worker.connections
    assert isinstance(channel, ChannelEnd)
    assert len(channel.profiles) <= 64


def shut(end: HttpEnd, how: int) -> None:
    """Shut a worker's end of a connection at once, without a turn of the event loop."""
    with socket.socket(fileno=os.dup(end.transport.get_extra_info("socket").fileno())) as copy:
        copy.shutdown(how)


async def completed(gateway: Running, reply: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}") -> HttpEnd:
    """Have a request answered over HTTP, and return the connection on which it came."""
    worker = gateway.launcher.workers[-1]
    sent = gateway.send("POST", COMPLETIONS, json=ASK)
    exchange = await worker.next_exchange()
    exchange.raw(reply)
    await sent
    end: HttpEnd = exchange.connection
    return end


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    ],
)
async def test_a_connection_that_the_worker_will_close_is_not_kept(gateway: Running, reply: bytes) -> None:
    await gateway.load()
    first = await completed(gateway, reply)
    assert await completed(gateway) is not first


async def test_a_connection_that_the_worker_has_closed_meanwhile_is_not_used(gateway: Running) -> None:
    worker = await gateway.load()
    first = await completed(gateway)
    assert await completed(gateway) is first
    pool = gateway.app._workers._http_connections
    (kept,) = pool._idle[worker.socket]
    shut(first, socket.SHUT_WR)  # the event loop has had no turn to see it
    fresh = await pool.acquire(worker.socket)
    assert fresh is not kept
    pool.release(fresh)


async def test_a_request_that_never_reached_the_worker_is_sent_again(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await gateway.load()
    first = await completed(gateway)

    def closed_just_then(_: Connection) -> bool:
        shut(first, socket.SHUT_RDWR)
        return True

    monkeypatch.setattr(Connection, "is_quiet", property(closed_just_then))
    assert await completed(gateway) is not first
    assert worker.exchanges.empty()


async def test_a_request_that_may_have_reached_the_worker_is_not_sent_again(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", COMPLETIONS, json=ASK)
    (await worker.next_exchange()).connection.transport.abort()
    assert (await sent).status_code == 500
    assert worker.exchanges.empty()


async def test_large_bodies_have_a_channel_of_their_own(gateway: Running) -> None:
    worker = await gateway.load()
    channels = []
    for prompt in ("hi", "x" * (2 << 20), "hi", "y" * (2 << 20)):
        sent = gateway.send("POST", GENERATE, json={**ASK, "prompt": prompt})
        exchange = await worker.next_exchange()
        channels.append(exchange.channel)
        exchange.reply(b"{}")
        await sent
    small, large, *others = channels
    assert small is not large
    assert others == [small, large]
