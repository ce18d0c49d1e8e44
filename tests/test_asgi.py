"""Bodies in, and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from vllama.asgi import cancelled_on_disconnect, read_body
from vllama.errors import BodyTooLarge

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Client:
    """What an ASGI server's `receive` tells of one client; it waits where nothing is left to tell."""

    def __init__(self, *messages: MutableMapping[str, Any]) -> None:
        self._messages: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        for message in messages:
            self._messages.put_nowait(message)

    async def receive(self) -> MutableMapping[str, Any]:
        return await self._messages.get()

    def leave(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})


def body_message(body: bytes, *, more: bool) -> MutableMapping[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_in_one_piece_is_that_piece() -> None:
    assert await read_body(Client(body_message(b"whole", more=False)).receive) == b"whole"


async def test_a_body_may_be_absent() -> None:
    assert await read_body(Client({"type": "http.request"}).receive) == b""


async def test_a_body_in_pieces_is_joined() -> None:
    client = Client(body_message(b"a", more=True), body_message(b"", more=True), body_message(b"b", more=False))
    assert await read_body(client.receive) == b"ab"


async def test_a_body_has_a_largest_size() -> None:
    def client() -> Client:
        return Client(body_message(b"ab", more=True), body_message(b"cd", more=True), body_message(b"", more=False))

    assert await read_body(client().receive, most=4) == b"abcd"
    with pytest.raises(BodyTooLarge, match="too large"):
        await read_body(client().receive, most=3)
    with pytest.raises(BodyTooLarge, match="too large"):
        await read_body(Client(body_message(b"abcd", more=False)).receive, most=3)


@pytest.mark.parametrize("pieces", [(), (b"half",), (b"half", b"more")])
async def test_a_client_that_leaves_in_the_middle_of_its_body_cancels(pieces: tuple[bytes, ...]) -> None:
    client = Client(*(body_message(piece, more=True) for piece in pieces))
    client.leave()
    with pytest.raises(asyncio.CancelledError):
        await read_body(client.receive)


async def test_work_is_cancelled_when_the_client_leaves_and_ends_quietly() -> None:
    client = Client()
    was_cancelled = False
    async with cancelled_on_disconnect(client.receive):
        client.leave()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled = True
            raise
    assert was_cancelled
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0  # the task can go on


async def test_bytes_after_the_body_are_no_reason_to_cancel() -> None:
    client = Client(body_message(b"late", more=False))
    finished = asyncio.Event()
    async with cancelled_on_disconnect(client.receive):
        await asyncio.sleep(0)  # the watcher reads the late bytes
        await asyncio.sleep(0)
        finished.set()
    assert finished.is_set()


async def test_work_that_finishes_leaves_no_watcher_behind() -> None:
    before = asyncio.all_tasks()
    async with cancelled_on_disconnect(Client().receive):
        await asyncio.sleep(0)
        watchers = asyncio.all_tasks() - before
        assert len(watchers) == 1
    await asyncio.gather(*watchers, return_exceptions=True)
    assert all(watcher.cancelled() for watcher in watchers)


async def test_an_error_of_the_work_comes_through() -> None:
    with pytest.raises(LookupError, match="mine"):
        async with cancelled_on_disconnect(Client().receive):
            raise LookupError("mine")


async def serve(client: Client, working: asyncio.Event) -> str:
    async with cancelled_on_disconnect(client.receive):
        working.set()
        await asyncio.Event().wait()
    return "went on"


async def test_a_cancellation_by_somebody_else_is_not_swallowed() -> None:
    working = asyncio.Event()
    work = asyncio.create_task(serve(Client(), working))
    await working.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_a_server_that_stops_while_the_client_leaves_stops_the_work_too() -> None:
    client, working = Client(), asyncio.Event()
    work = asyncio.create_task(serve(client, working))
    await working.wait()
    await asyncio.sleep(0)  # the watcher waits for the client
    client.leave()
    await asyncio.sleep(0)  # it wakes and cancels the work, which has not run yet
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
