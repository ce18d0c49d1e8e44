"""Readiness checks: a worker is ready when it has produced a token, a vector or a class."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson

_ONE_TOKEN = b'{"model":"","prompt":"1","raw":true,"stream":false,"options":{"num_predict":1,"temperature":0}}'
_ONE_TEXT = b'{"model":"","input":"1"}'
Trial = Callable[[Path, float | None], Awaitable[bool]]
"""Function that requests real output from the worker at a socket with a timeout; False if not ready."""


async def produce_one_token(socket: Path, timeout: float | None) -> bool:
    """Generate one token with the worker within `timeout` seconds; return False if it is not ready."""
    body = await _exchange(socket, b"POST", b"/api/generate", _ONE_TOKEN, timeout)
    return body is not None and b'"done":true' in body


async def produce_one_embedding(socket: Path, timeout: float | None) -> bool:
    """Like produce_one_token, create one embedding."""
    body = await _exchange(socket, b"POST", b"/api/embed", _ONE_TEXT, timeout)
    return body is not None and b'"embeddings":[[' in body


async def produce_one_class(socket: Path, timeout: float | None) -> bool:
    """Like produce_one_token, classify one text or pair of texts."""
    body = await _exchange(socket, b"POST", b"/classify", _ONE_TEXT, timeout)
    return body is not None and b'"probs":[' in body


async def served_context(socket: Path, timeout: float | None) -> int:
    """Return the context that the worker serves, in tokens; 0 if unknown."""
    body = await _exchange(socket, b"GET", b"/v1/models", b"", timeout)
    if body is None:
        return 0
    models = orjson.loads(body).get("data") or [{}]
    return int(models[0].get("max_model_len") or 0)


async def engine_slots(socket: Path, timeout: float | None) -> int:
    """Return how many requests the worker's engine runs at once; 0 if unknown."""
    body = await _exchange(socket, b"GET", b"/api/ps", b"", timeout)
    models = orjson.loads(body).get("models") if body else None
    return int(models[0].get("slots") or 0) if models else 0


async def _exchange(socket: Path, method: bytes, path: bytes, body: bytes, timeout: float | None) -> bytes | None:
    """Return the body of a reply with status 200; None otherwise, and if no process listens."""
    try:
        status, reply = await ask(socket, method, path, body, timeout)
    except (OSError, TimeoutError):
        return None
    return reply if status == 200 else None


async def ask(socket: Path, method: bytes, path: bytes, body: bytes, timeout: float | None) -> tuple[int, bytes]:
    """Return status and body of one HTTP exchange with a worker. Raises OSError or TimeoutError."""
    # vLLM's own routes insist on the type.
    headers = b"host: worker\r\nconnection: close\r\ncontent-type: application/json\r\n"
    request = b"%b %b HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n%b" % (method, path, headers, len(body), body)
    async with asyncio.timeout(timeout):
        answer = await _talk(socket, request)
    head, _, reply = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if not status or not status[0].isdigit():
        raise ConnectionResetError(f"{socket} closed the connection without a response")
    return int(status[0]), reply


async def _talk(socket: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        writer.write(request)
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
