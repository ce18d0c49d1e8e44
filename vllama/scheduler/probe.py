"""Is the worker ready? It is when it has really produced a token."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

_BODY = b'{"model":"","prompt":"1","raw":true,"stream":false,"options":{"num_predict":1,"temperature":0}}'
_REQUEST = (
    b"POST /api/generate HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_BODY)
) + _BODY


async def produce_one_token(socket: Path, timeout: float | None) -> bool:
    """Have the worker behind the socket generate one token within `timeout` seconds; False where it cannot yet."""
    try:
        async with asyncio.timeout(timeout):
            return await _generate(socket)
    except TimeoutError:
        return False


async def _generate(socket: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False  # it listens only once the engine is up
    try:
        writer.write(_REQUEST)
        await writer.drain()
        answer = await reader.read()
    except OSError:
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.startswith(b"HTTP/1.1 200") and b'"done":true' in body
