"""ASGI helpers of gateway and worker: reading bodies, sending replies, noticing disconnected clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from vllama.errors import BodyTooLarge

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


LARGEST_BODY = 512 << 20
"""Maximum size in bytes of a body that is read into memory; enough for dozens of large images."""


async def read_body(
    receive: Receive, *, most: int = LARGEST_BODY, hold: Callable[[int], None] = lambda _: None
) -> bytes:
    """Return the whole request body, of at most `most` bytes.

    `hold` is called with the number of bytes that have arrived, while more are to come. Raises its errors,
    asyncio.CancelledError where the client left before the end, and BodyTooLarge where the body is longer.
    """
    parts: list[bytes] = []
    size = 0
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise BodyTooLarge(most)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)
        hold(size)
    raise asyncio.CancelledError


@asynccontextmanager
async def cancelled_on_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancel the enclosed work when the client disconnects, without raising an error.

    Call it after the body has been read: the next event from `receive` is then the disconnect.
    """
    work: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]  # ASGI apps run in tasks
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        work.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not left or work.uncancel() > 0:
            raise  # cancelled from outside: the server is stopping
    finally:
        watcher.cancel()
