"""Send recorded requests to a server, each on a connection of its own."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from contextlib import ExitStack
from http.client import HTTPResponse
from typing import Any

from replay.recording import Request, Response

RECORDED_ADDRESS = "127.0.0.1:11435"
"""Where the recorded server listened: what stands in the Host header is the server's own address there."""

TIMEOUT = 240.0
"""Seconds for one exchange, a load of a model among it."""


def play(*requests: Request, port: int) -> list[Response]:
    """Send requests as they were recorded, but to this server and all at once, and return the whole responses.

    Each has a connection of its own; they arrive in the order of the requests.
    """
    with ExitStack() as open_ones:
        sent = [(request, open_ones.enter_context(_send(request, port))) for request in requests]
        return [_receive(request, connection) for request, connection in sent]


def _send(request: Request, port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
    head = request.head.replace(f"Host: {RECORDED_ADDRESS}", f"Host: 127.0.0.1:{port}")
    connection.sendall(head.encode() + request.body)
    return connection


def _receive(request: Request, connection: socket.socket) -> Response:
    with HTTPResponse(connection, method=request.method) as reply:
        reply.begin()
        body = reply.read()
        headers = tuple((name.lower(), value) for name, value in reply.getheaders())
        return Response(reply.status, reply.reason, headers, body)


def with_fields(request: Request, **fields: Any) -> Request:
    """Return the request with other values in its JSON body; None takes a field out."""
    body = json.dumps({key: value for key, value in {**request.fields, **fields}.items() if value is not None}).encode()
    return Request(re.sub(r"Content-Length: \d+", f"Content-Length: {len(body)}", request.head), body)


def post(path: str, **fields: Any) -> Request:
    """A request of our own."""
    return _request("POST", path, json.dumps(fields).encode())


def delete(model: str) -> Request:
    """A request that deletes a model."""
    return _request("DELETE", "/api/delete", json.dumps({"model": model}).encode())


def blob(content: bytes) -> Request:
    """A request that uploads a blob."""
    return _request("POST", f"/api/blobs/sha256:{hashlib.sha256(content).hexdigest()}", content)


def _request(method: str, path: str, body: bytes) -> Request:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {RECORDED_ADDRESS}", f"Content-Length: {len(body)}", "", ""]
    return Request("\r\n".join(lines), body)
