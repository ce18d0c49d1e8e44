"""Limits before a request is believed: its head, its body, its time, and all connections together."""

from __future__ import annotations

import asyncio
import logging
import resource
from pathlib import Path

import orjson
import pytest
from fake_worker import Exchange, FakeWorker, within

from vllama.errors import TooManyValues
from vllama.gateway.bodies import check_values
from vllama.ollama.status import NDJSON

from .conftest import MODEL, RunGateway, Running
from .raw_http import RawConnection, request_bytes

pytestmark = pytest.mark.anyio

GENERATE = "/api/generate"
ASK = orjson.dumps({"model": MODEL, "prompt": "hi"})
HEAD = b"POST /api/show HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SHOW = orjson.dumps({"model": MODEL})


async def error(connection: RawConnection) -> tuple[int, str]:
    """The next reply's status, and the text of its error in Ollama's form."""
    head = await connection.head()
    assert head["content-type"] == "application/json; charset=utf-8"
    body = orjson.loads(await connection.exactly(int(head["content-length"])))
    assert list(body) == ["error"]
    return head.status, body["error"]


async def answered(gateway: Running) -> None:
    """Another client is served."""
    assert (await gateway.get("/api/version")).status_code == 200


# --- the head ---


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"".join(b"a%d: b\r\n" % number for number in range(300)),
        HEAD + b"a: " + b"b" * 70_000 + b"\r\n",
        HEAD + b"a: " + b"b" * 1_000_000,
        b"GET /api/" + b"x" * 1_000_000,
        b"GET /api/" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n",
    ],
    ids=["too many headers", "a long one", "one without end", "a target without end", "a long target"],
)
async def test_a_head_that_is_too_large_is_refused_with_431(gateway: Running, head: bytes) -> None:
    connection = await gateway.connect()
    connection.send(head + b"\r\n" if head.endswith(b"\r\n") else head)
    status, message = await error(connection)
    assert (status, "256 headers with 65536 bytes" in message) == (431, True)
    assert await connection.rest() == b""
    await answered(gateway)


async def test_the_head_s_limits_are_settings(run_gateway: RunGateway) -> None:
    async with run_gateway(max_headers=4, max_header_size=1000) as gateway:
        connection = await gateway.connect()
        connection.request("GET", "/api/version", b"", ("a", "b"), ("c", "d"))
        assert (await connection.head()).status == 200
        for more in ([("a", "b")] * 4, [("a", "b" * 1000)]):
            connection = await gateway.connect()
            connection.request("GET", "/api/version", b"", *more)
            assert (await error(connection))[0] == 431


@pytest.mark.parametrize(
    "trailers",
    [
        b"".join(b"a%d: b\r\n" % number for number in range(300)) + b"\r\n",
        b"a: " + b"b" * 1_000_000,
    ],
    ids=["many", "one without end"],
)
async def test_trailers_have_the_limits_of_headers(gateway: Running, trailers: bytes) -> None:
    connection = await gateway.connect()
    connection.send(CHUNKED + b"1\r\n{\r\n0\r\n" + trailers)
    assert (await error(connection))[0] in {400, 431}
    assert await connection.rest() == b""
    await answered(gateway)


async def test_a_chunk_s_extension_without_end_is_refused(gateway: Running) -> None:
    connection = await gateway.connect()
    connection.send(CHUNKED + b"1;" + b"x" * 1_000_000)
    assert (await error(connection))[0] == 431


@pytest.mark.parametrize(
    ("head", "trailer", "status"),
    [
        (b"Host: evil.example\r\n", b"Host: localhost", 403),
        (b"", b"Host: localhost", 400),
        (b"Host: localhost\r\nOrigin: http://evil.example\r\n", b"Origin: http://localhost", 403),
        (b"Host: localhost\r\n", b"Host: evil.example", 200),
    ],
)
async def test_trailers_are_no_headers(gateway: Running, head: bytes, trailer: bytes, status: int) -> None:
    connection = await gateway.connect()
    start = b"POST /api/show HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + head
    connection.send(start + b"\r\n%x\r\n%b\r\n0\r\n%b\r\n\r\n" % (len(SHOW), SHOW, trailer))
    assert (await connection.head()).status == status


# --- framing ---

INNER = b"GET /api/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        b"Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: %d",
        b"Connection: Upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\nContent-Length: %d",
        b"Transfer-Encoding: chunked\r\nContent-Length: %d",
        b"Transfer-Encoding: xchunked\r\nContent-Length: %d",
        b"Transfer-Encoding: chunked, identity\r\nContent-Length: %d",
        b"Transfer-Encoding : chunked\r\nContent-Length: %d",
        b"Content-Length: 0\r\nContent-Length: %d",
        b"X: a\r\n Content-Length: 0\r\nContent-Length: %d",
        b"X: a\rContent-Length: 0\r\nContent-Length: %d",
        b"X: a\nContent-Length: 0\r\nContent-Length: %d",
        b"Content-Length: +%d",
        b"Content-Length: %d, 0",
    ],
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_body_is_never_taken_for_a_second_request(gateway: Running, lines: bytes, version: bytes) -> None:
    head = b"POST /api/show HTTP/%b\r\nHost: localhost\r\n" % version + lines.replace(b"%d", b"%d" % len(INNER))
    connection = await gateway.connect()
    connection.send(head + b"\r\n\r\n" + INNER)
    first = await connection.head()
    assert first.status == 400
    await connection.exactly(int(first["content-length"]))
    connection.send(b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    rest = await connection.rest()
    assert b" 404 " not in rest, "the path of the body was looked up"


async def test_what_is_no_http_does_not_get_into_a_reply(gateway: Running) -> None:
    worker = await gateway.load()
    connection, exchange = await streaming(gateway, worker)
    connection.send(b"\x00\x00 no request\r\n\r\n")
    await asyncio.sleep(0)
    exchange.write(b"{}\n")
    exchange.finish()
    assert await connection.chunk() == b"{}\n"
    assert await connection.chunk() == b"{}\n"
    assert await connection.rest() == b"0\r\n\r\n"


async def streaming(gateway: Running, worker: FakeWorker) -> tuple[RawConnection, Exchange]:
    connection = await gateway.connect()
    connection.request("POST", GENERATE, ASK)
    exchange: Exchange = await worker.next_exchange()
    exchange.start(NDJSON)
    exchange.write(b"{}\n")
    assert (await connection.head()).status == 200
    return connection, exchange


# --- requests that follow others ---


async def test_more_requests_in_advance_than_allowed_close_the_connection_after_the_replies(gateway: Running) -> None:
    worker = await gateway.load()
    connection = await gateway.connect()
    connection.send(request_bytes("POST", GENERATE, ASK) + request_bytes("GET", "/api/version") * 100)
    (await worker.next_exchange()).reply(b"{}")
    replies = await connection.rest()
    assert replies.count(b"HTTP/1.1 200") == 1 + 32


async def test_a_client_that_leaves_after_it_asked_in_advance_is_noticed(gateway: Running) -> None:
    worker = await gateway.load()
    connection = await gateway.connect()
    connection.send(request_bytes("POST", GENERATE, ASK))
    exchange = await worker.next_exchange()
    connection.send(b"GET /api/version HTTP/1.1\r\n")
    connection.close()
    await within(exchange.cancelled.wait())


# --- the host ---


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (b"http://evil.example/api/version", b"localhost", 403),
        (b"http://localhost@evil.example/api/version", b"localhost", 403),
        (b"http://localhost/api/version", b"evil.example", 200),
        (b"HTTP://127.0.0.1:80/api/version", b"localhost", 200),
        (b"http://[::1]:80/api/version", b"localhost", 200),
        (b"evil.example:80", b"localhost", 400),
        (b"/api/version", b"evil.example/.localhost", 400),
        (b"/api/version", b"localhost\x0b", 400),
        (b"/api/version", b"169.254.169.254", 403),
    ],
)
async def test_the_host_is_the_one_that_is_asked(gateway: Running, target: bytes, host: bytes, status: int) -> None:
    connection = await gateway.connect()
    connection.send(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, host))
    assert (await connection.head()).status == status


# --- bodies ---


@pytest.mark.parametrize(("header", "value"), [("Host", "evil.example"), ("Origin", "http://evil.example")])
async def test_host_and_origin_are_checked_before_the_body_is_sent(gateway: Running, header: str, value: str) -> None:
    connection = await gateway.connect()
    lines = {"Host": "localhost", header: value, "Content-Length": "100000000", "Expect": "100-continue"}
    head = "".join(f"{name}: {text}\r\n" for name, text in lines.items())
    connection.send(f"POST {GENERATE} HTTP/1.1\r\n{head}\r\n".encode())
    assert (await connection.head()).status == 403


@pytest.mark.parametrize(
    ("path", "size"), [("/api/show", 1 << 20), ("/api/pull", 1 << 20), ("/api/copy", 1 << 20), (GENERATE, 512 << 20)]
)
async def test_a_body_beyond_its_route_s_limit_is_refused_before_it_is_sent(
    gateway: Running, path: str, size: int
) -> None:
    connection = await gateway.connect()
    connection.send(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size + 1}\r\n\r\n".encode())
    assert await error(connection) == (413, f"http: request body too large: the maximum is {size >> 20} MiB")


async def test_bodies_of_all_requests_together_are_limited(run_gateway: RunGateway) -> None:
    async with run_gateway(max_bodies_size=4 << 20) as gateway:
        worker = await gateway.load()
        large = orjson.dumps({"model": MODEL, "prompt": "x" * (3 << 20)})
        first = gateway.send("POST", GENERATE, content=large)
        exchange = await worker.next_exchange()
        reply = await gateway.post(GENERATE, content=large)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert list(reply.json()) == ["error"]
        await answered(gateway)
        exchange.reply(b"{}")
        assert (await first).status_code == 200
        again = gateway.send("POST", GENERATE, content=large)
        (await worker.next_exchange()).reply(b"{}")
        assert (await again).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[' + b"{}," * 100_000 + b"{}]}",
        b'{"model":"m","x":[' + b"[]," * 100_000 + b"[]]}",
        b'{"model":"m","context":[' + b"1," * 5_000_000 + b"1]}",
    ],
    ids=["messages", "lists", "numbers"],
)
async def test_json_of_too_many_values_is_refused_before_it_is_decoded(gateway: Running, body: bytes) -> None:
    reply = await gateway.post("/api/chat", content=body)
    assert reply.status_code == 413
    assert reply.json()["error"].startswith("the request has too many JSON values")


@pytest.mark.parametrize(
    "prompt", ["{" * 400_000, "[,{" * 400_000, '"\\' * 200_000 + "{" * 100_000, "a, b, " * 3_000_000]
)
def test_punctuation_in_a_text_is_no_json(prompt: str) -> None:
    check_values(orjson.dumps({"prompt": prompt}), 1_000_000)


@pytest.mark.parametrize("filler", ["", "x" * 200_000, '\\"' * 1000, "\\" * 100_001 + '"'])
def test_values_are_counted_whatever_text_stands_between_them(filler: str) -> None:
    few = {"a": filler, "b": [{} for _ in range(4_500)]}
    check_values(orjson.dumps([few]), 200_000)
    with pytest.raises(TooManyValues):
        check_values(orjson.dumps([few, few, {"pad": "x" * 200_000}]), 200_000)


# --- time ---


@pytest.mark.parametrize(
    "sent",
    [b"GET /api/version HTTP/1.1\r\nHost:", HEAD + b"Content-Length: 100\r\n\r\nabc", CHUNKED + b"5\r\nab"],
    ids=["half a head", "half a body", "half a chunk"],
)
async def test_a_request_that_does_not_arrive_in_time_is_refused_with_408(run_gateway: RunGateway, sent: bytes) -> None:
    async with run_gateway(header_timeout=10**8, body_timeout=10**8) as gateway:
        connection = await gateway.connect()
        connection.send(sent)
        status, message = await error(connection)
        assert (status, "did not arrive in time" in message) == (408, True)
        assert await connection.rest() == b""


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "an empty line"])
async def test_a_client_that_sends_nothing_is_left(run_gateway: RunGateway, sent: bytes) -> None:
    async with run_gateway(header_timeout=10**8) as gateway:
        connection = await gateway.connect()
        connection.send(sent)
        assert await connection.rest() == b""


async def test_an_empty_line_does_not_keep_an_idle_connection(run_gateway: RunGateway) -> None:
    async with run_gateway(header_timeout=10**8) as gateway:
        connection = await gateway.connect()
        connection.request("GET", "/", b"")
        await connection.exactly(int((await connection.head())["content-length"]))
        connection.send(b"\r\n")
        assert await connection.rest() == b""


async def test_a_reply_may_take_longer_than_a_request(run_gateway: RunGateway) -> None:
    async with run_gateway(header_timeout=10**8, body_timeout=10**8) as gateway:
        worker = await gateway.load()
        connection = await gateway.connect()
        connection.send(request_bytes("POST", GENERATE, ASK))
        exchange = await worker.next_exchange()
        await asyncio.sleep(0.3)
        exchange.reply(b"{}")
        assert (await connection.head()).status == 200


# --- connections ---


async def test_when_all_connections_are_taken_those_without_a_request_make_room(
    run_gateway: RunGateway, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_gateway(max_connections=8) as gateway:
        idle = [await gateway.connect() for _ in range(8)]
        for connection in idle:
            connection.send(b"GET / HTTP/1.1\r\n")
        with caplog.at_level(logging.WARNING):
            late = await gateway.connect()
            late.request("GET", "/")
            assert (await late.head()).status == 200
        assert "all 8 connections are in use; closed 1" in caplog.text


async def test_when_all_connections_have_requests_a_new_one_is_refused_with_503(
    run_gateway: RunGateway, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_gateway(max_connections=3) as gateway:
        worker = await gateway.load()
        busy = [await streaming(gateway, worker) for _ in range(2)]
        waiting = gateway.send("POST", GENERATE, json={"model": MODEL, "prompt": "hi"})
        third = await worker.next_exchange()
        with caplog.at_level(logging.WARNING):
            late = await gateway.connect()
            assert await error(late) == (503, "too many connections; try again later")
        assert "refused a client" in caplog.text
        third.reply(b"{}")
        assert (await waiting).status_code == 200
        assert busy


async def test_when_the_files_that_the_process_may_open_are_used_up_this_is_logged(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (16, 16))
    async with run_gateway(max_connections=10_000) as gateway:
        with caplog.at_level(logging.WARNING):
            for _ in range(13):
                await gateway.connect()
            await answered(gateway)
        assert "all 12 connections are in use" in caplog.text
        assert "(ulimit -n)" in caplog.text


# --- the log ---


async def test_a_path_cannot_forge_lines_of_the_log(gateway: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vllama.access"):
        await gateway.get("/api/x%0a12:00:00%20forged%00%1b[31m%c2%85%e2%80%a8y")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "vllama.access"]
    assert line.endswith(r"GET /api/x\n12:00:00 forged\x00\x1b[31m\x85\u2028y")


def test_further_lines_of_a_message_are_indented(tmp_path: Path) -> None:
    from vllama.log_lines import Formatter

    record = logging.LogRecord("n", logging.INFO, str(tmp_path), 1, "model %s", ("a\n12:00:00 b\r\x1b[0m",), None)
    assert Formatter("%(message)s").format(record) == "model a\n    12:00:00 b\\r\\x1b[0m"
