"""Is the worker ready, and what does it serve? It is ready when it has really produced a token or an embedding."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson

_ONE_TOKEN = b'{"model":"","prompt":"1","raw":true,"stream":false,"options":{"num_predict":1,"temperature":0}}'
_ONE_EMBEDDING = b'{"model":"","input":"1"}'

Trial = Callable[[Path, float | None], Awaitable[bool]]
"""Asks the worker behind a socket for something real, within so many seconds; False where it cannot yet."""


async def produce_one_token(socket: Path, timeout: float | None) -> bool:
    """Have the worker behind the socket generate one token within `timeout` seconds; False where it cannot yet."""
    body = await _exchange(socket, b"POST", b"/api/generate", _ONE_TOKEN, timeout)
    return body is not None and b'"done":true' in body


async def produce_one_embedding(socket: Path, timeout: float | None) -> bool:
    """As produce_one_token, of a worker whose model makes embeddings."""
    body = await _exchange(socket, b"POST", b"/api/embed", _ONE_EMBEDDING, timeout)
    return body is not None and b'"embeddings":[[' in body


async def served_context(socket: Path, timeout: float | None) -> int:
    """The context that the worker serves, in tokens; 0 where it does not say."""
    body = await _exchange(socket, b"GET", b"/v1/models", b"", timeout)
    if body is None:
        return 0
    models = orjson.loads(body).get("data") or [{}]
    return int(models[0].get("max_model_len") or 0)


async def _exchange(socket: Path, method: bytes, path: bytes, body: bytes, timeout: float | None) -> bytes | None:
    """The body of a reply with status 200; None for anything else, and where nothing listens yet."""
    request = b"%b %b HTTP/1.1\r\nhost: worker\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
    try:
        async with asyncio.timeout(timeout):
            answer = await _talk(socket, request % (method, path, len(body), body))
    except (OSError, TimeoutError):
        return None
    head, _, reply = answer.partition(b"\r\n\r\n")
    return reply if head.startswith(b"HTTP/1.1 200") else None


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
