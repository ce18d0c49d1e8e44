"""The fuzz finds what it looks for: in servers that drop, cut and misname, and in routes that no test names."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.replies import Reply, ask
from fuzz.requests import Sent, requests
from fuzz.routes import Route, routes
from fuzz.values import Names
from fuzz.verdicts import ALLOWED, faulty_status, wrong_shape
from vllama.gateway.openapi.document import document

ROUTE = Route("POST", "/api/chat", "application/json")
ASKED = Sent(ROUTE, "POST", b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
NAMES = Names(("m:latest",), ("v",))


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """A server that sends these to the requests of one connection, and closes it."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            for answer in answers:
                connection.recv(1 << 16)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ((b"",), "dropped"),
        ((b"HTTP/1.1 2",), "dropped"),
        ((WHOLE[:-1],), "cut"),
        ((WHOLE.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked")[:-2] + b"5\r\nab",), "cut"),
        ((WHOLE,), "unusable"),
        ((WHOLE + b"{}", WHOLE), "unusable"),
        ((WHOLE, WHOLE), ""),
        ((WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),), ""),
    ],
)
def test_a_connection_that_breaks_is_told(answers: tuple[bytes, ...], problem: str) -> None:
    with answering(*answers) as url:
        assert ask(url, ASKED).problem == problem


def test_a_client_that_sends_half_a_request_is_owed_no_reply() -> None:
    with answering(b"") as url:
        assert ask(url, Sent(ROUTE, "POST", ASKED.data[:-1], is_whole=False, is_reusable=False)).problem == ""


def replied(status: int, body: object, path: str = "/api/chat", kind: str = "application/json") -> tuple[Sent, Reply]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Sent(Route("POST", path), "POST", b""), Reply(status, (("content-type", kind),), data)


OPENAI = {"error": {"message": "m", "type": "t", "param": None, "code": None}}
ANTHROPIC = {"type": "error", "error": {"type": "t", "message": "m"}, "request_id": "r"}


@pytest.mark.parametrize(
    ("status", "body", "is_faulty"),
    [
        (500, {"error": "anything"}, True),
        (502, b"Bad Gateway", True),
        (503, {"error": "the server is stopping"}, True),
        (503, {"error": "server busy, please try again.  maximum pending requests exceeded"}, False),
        (500, {"error": 'invalid format: "x"; expected "json" or a valid JSON Schema object'}, False),
        (400, {"error": "invalid model name"}, False),
        (400, {"error": "internal error; check the server's log"}, True),
    ],
)
def test_a_5xx_is_faulty_unless_it_is_documented(status: int, body: object, is_faulty: bool) -> None:
    assert bool(faulty_status(*replied(status, body))) is is_faulty


def test_a_fault_within_a_stream_that_began_well_is_found() -> None:
    stream = b'{"done":false}\n{"error":"internal error; check the server\'s log"}\n'
    assert faulty_status(*replied(200, stream, kind="application/x-ndjson"))
    events = b'data: {"error":{"message":"EngineCore encountered an issue"}}\n\n'
    assert faulty_status(*replied(200, events, "/v1/messages", "text/event-stream"))


@pytest.mark.parametrize(
    ("path", "body", "is_wrong"),
    [
        ("/api/chat", {"error": "m"}, False),
        ("/api/chat", OPENAI, True),
        ("/api/chat", {"error": ""}, True),
        ("/api/chat", {"error": "'NoneType' object has no attribute 'x'"}, True),
        ("/v1/chat/completions", OPENAI, False),
        ("/v1/chat/completions", {"detail": "m"}, True),
        ("/v1/chat/completions", {"error": "m"}, True),
        ("/v1/messages", ANTHROPIC, False),
        ("/v1/messages", OPENAI, True),
        ("/v1/messages", b"Internal Server Error", True),
    ],
)
def test_an_error_has_the_form_of_its_api(path: str, body: object, is_wrong: bool) -> None:
    assert bool(wrong_shape(*replied(400, body, path))) is is_wrong


def test_a_reply_that_its_schema_forbids_is_found() -> None:
    route = next(route for route in routes(document(), ()) if route.name == "GET /api/version")
    sent = Sent(route, "GET", b"")
    kind = (("content-type", "application/json"),)
    assert wrong_shape(sent, Reply(200, kind, b'{"version": "0.24.0"}')) == ""
    assert wrong_shape(sent, Reply(200, kind, b'{"version": 5}'))


def test_every_allowed_5xx_has_its_reason() -> None:
    assert all(allowed.status >= 500 and allowed.reason for allowed in ALLOWED)


def test_a_new_route_is_fuzzed_without_being_named() -> None:
    gateway = {**document()}
    gateway["paths"] = {**gateway["paths"], "/api/new": gateway["paths"]["/api/chat"]}
    worker = {
        "paths": {"/v1/rerank": {"post": {"requestBody": {"content": {"application/json": {"schema": {"x": 1}}}}}}}
    }
    found = {route.name: route for route in routes(gateway, [("m", worker)])}
    assert found["POST /api/new"].examples
    assert (found["POST /v1/rerank"].schema, found["POST /v1/rerank"].models) == ({"x": 1}, ("m",))
    assert {"GET /openapi.json", "HEAD /docs"} <= found.keys()


EVERY = routes(document(), ())


@settings(max_examples=200)
@given(st.data())
def test_a_whole_request_names_its_route_and_ends_where_it_says(data: st.DataObject) -> None:
    route = data.draw(st.sampled_from(EVERY))
    sent = data.draw(requests(route, NAMES))
    assert isinstance(sent.data, bytes)
    if sent.is_reusable:
        assert sent.is_whole
        assert sent.data.startswith(f"{route.method} ".encode())
