"""Relay of a worker's reply to the client, unparsed and in the call that received it.

For each token of each stream this code runs once, so it does as little as asyncio allows: no queue and no task
switch is between the worker's socket and the server's `send`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

from vllama.asgi import Send

if TYPE_CHECKING:
    from vllama.gateway.metering import Meter

Header = tuple[bytes, bytes]
OnSlow = Callable[[bool], None]


class _Resume:
    """Awaits the rest of a coroutine that was already run up to its first suspension."""

    __slots__ = ("_coroutine", "_future")

    def __init__(self, coroutine: Coroutine[Any, Any, None], future: Any) -> None:
        self._coroutine, self._future = coroutine, future

    def __await__(self) -> Generator[Any, Any, None]:
        future = self._future
        while True:
            yield future
            try:
                future = self._coroutine.send(None)
            except StopIteration:
                return


class Relay:
    """The relay of one reply to one client.

    `on_slow(True)` is called when the client cannot take more, `on_slow(False)` when it has caught up; what
    comes in between is kept. `status` is 0 until the client has got a status line, which goes with the first
    bytes of the body: until then the reply can still become an error. `is_complete` when the client has got all.
    `meter` counts the tokens of a request with a key.
    """

    __slots__ = (
        "_blocked", "_done", "_ended", "_extra_headers", "_failure", "_head", "_kept", "_on_slow", "_send",
        "content_type", "is_complete", "last_byte", "meter", "status",
    )  # fmt: skip

    def __init__(self, send: Send, extra_headers: tuple[Header, ...], on_slow: OnSlow) -> None:
        self._send = send
        self._extra_headers = extra_headers
        self._on_slow = on_slow
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head: tuple[int, list[Header]] | None = None
        self._kept: list[bytes] = []
        self._ended = False
        self._failure: Exception | None = None
        self._blocked: asyncio.Task[None] | None = None
        self.is_complete = False
        self.status = 0
        self.content_type = b""
        self.last_byte = b""
        self.meter: Meter | None = None

    async def finished(self) -> None:
        """Wait until the client has got all; raise the error of `fail`."""
        await self._done

    def head(self, status: int, headers: list[Header]) -> None:
        """Store the status line and the headers (names in lower case)."""
        self._head = (status, headers)
        self.content_type = next((value for name, value in headers if name == b"content-type"), b"")

    def body(self, data: bytes, *, last: bool) -> None:
        """Pass on a piece of the body."""
        self._ended = last
        if self._blocked is not None:
            self._kept.append(data)
            return
        if self._head is not None:
            self.status, headers = self._head
            self._head = None
            start = {"type": "http.response.start", "status": self.status, "headers": [*headers, *self._extra_headers]}
            if not self._push(start, last=False):
                self._kept.append(data)
                return
        if data:
            self.last_byte = data[-1:]
        if self._push({"type": "http.response.body", "body": data, "more_body": not last}, last=last) and last:
            self._finish()

    def fail(self, error: Exception) -> None:
        """Fail an incomplete reply, after sending the data kept for a slow client."""
        if self._blocked is None:
            if not self._done.done():
                self._done.set_exception(error)
        elif not self._ended:  # a worker may exit after a complete reply
            self._failure = error

    def _push(self, message: dict[str, Any], *, last: bool) -> bool:
        """Run `send` at once; if it must wait for the client, continue later and return False."""
        coroutine: Any = self._send(message)
        try:
            future = coroutine.send(None)
        except StopIteration:
            return True
        except Exception as error:  # noqa: BLE001 - of this reply only: others share the connection that brought it
            self.fail(error)
            return False
        self._on_slow(True)
        self._blocked = asyncio.ensure_future(self._unblock(_Resume(coroutine, future), last=last))
        return False

    async def _unblock(self, rest: _Resume, *, last: bool) -> None:
        failure: Exception | None = None
        try:
            await rest
        except Exception as error:  # noqa: BLE001 - whatever the server raises ends this reply
            failure = error
        self._blocked = None
        self._on_slow(False)
        if failure is not None:
            self.fail(failure)
        elif last:
            self._finish()
        else:
            kept, self._kept = self._kept, []
            ended = self._ended
            for number, data in enumerate(kept, start=1):  # each by itself, as one HTTP chunk
                self.body(data, last=ended and number == len(kept))
            if self._failure is not None:
                self.fail(self._failure)

    def _finish(self) -> None:
        self.is_complete = True
        if not self._done.done():
            self._done.set_result(None)


RelayMaker = Callable[[OnSlow], Relay]
"""Function that creates the relay of an exchange, given the callback that pauses the worker."""
