"""Replies to an HTTP client of the worker."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pytest

from vllama.worker.sink import HttpSink

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Server:
    """Keeps what an ASGI application sends."""

    def __init__(self) -> None:
        self.sent: list[MutableMapping[str, Any]] = []

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.sent.append(message)


async def test_a_whole_reply_tells_its_length() -> None:
    server = Server()
    await HttpSink(server.send).reply(404, "application/json", b'{"error":"x"}')
    headers = [(b"content-type", b"application/json"), (b"content-length", b"13")]
    assert server.sent == [
        {"type": "http.response.start", "status": 404, "headers": headers},
        {"type": "http.response.body", "body": b'{"error":"x"}', "more_body": False},
    ]


async def test_a_stream_tells_no_length_and_ends_with_its_last_piece() -> None:
    server = Server()
    sink = HttpSink(server.send)
    await sink.start("application/x-ndjson")
    await sink.write(b"a\n", last=False)
    await sink.write(b"b\n", last=True)
    assert server.sent == [
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]},
        {"type": "http.response.body", "body": b"a\n", "more_body": True},
        {"type": "http.response.body", "body": b"b\n", "more_body": False},
    ]


async def test_added_headers_go_with_the_reply() -> None:
    server = Server()
    sink = HttpSink(server.send)
    sink.add_headers(((b"x-vllama-format-relaxed", b"/format"),))
    await sink.start("application/x-ndjson")
    headers = [(b"content-type", b"application/x-ndjson"), (b"x-vllama-format-relaxed", b"/format")]
    assert server.sent == [{"type": "http.response.start", "status": 200, "headers": headers}]
