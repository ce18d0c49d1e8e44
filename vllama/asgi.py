"""The little of ASGI that gateway and worker share: bodies in, replies out, a client that leaves."""

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
"""Bytes of a body that is read as a whole: dozens of large pictures, and not the machine's memory."""


async def read_body(receive: Receive, *, most: int = LARGEST_BODY) -> bytes:
    """The whole request body.

    Raises asyncio.CancelledError where the client left before its end, BodyTooLarge where it is longer than `most`.
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
    raise asyncio.CancelledError


@asynccontextmanager
async def cancelled_on_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancel the work inside when the client leaves, and end quietly then.

    Call it after the body has been read: the next thing that `receive` can tell is the disconnect.
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
            raise  # somebody else cancels: the server stops
    finally:
        watcher.cancel()
