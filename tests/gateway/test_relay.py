"""One reply on its way to one client that may block at any message."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from fake_worker import within
from hypothesis import given, settings
from hypothesis import strategies as st

from vllama.errors import WorkerDied
from vllama.gateway.relay import Relay

pytestmark = pytest.mark.anyio


class Client:
    """An ASGI server's `send`: blocks while `is_slow`, fails once `error` is set, keeps what it got."""

    def __init__(self) -> None:
        self._free = asyncio.Event()
        self._free.set()
        self.error: Exception | None = None
        self.messages: list[MutableMapping[str, Any]] = []
        self.told: list[bool] = []

    def block(self) -> None:
        self._free.clear()

    async def unblock(self) -> None:
        self._free.set()
        for _ in range(3):
            await asyncio.sleep(0)

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if not self._free.is_set():
            await self._free.wait()
        if self.error is not None:
            raise self.error
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def is_complete(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("more_body") is False

    def relay(self) -> Relay:
        relay = Relay(self.send, ((b"vary", b"Origin"),), self.told.append)
        relay.head(200, [(b"content-type", b"text/plain")])
        return relay


async def test_the_head_goes_out_with_the_first_piece() -> None:
    client = Client()
    relay = client.relay()
    assert (client.messages, relay.status) == ([], 0)
    relay.body(b"a", last=False)
    assert [message["type"] for message in client.messages] == ["http.response.start", "http.response.body"]
    assert client.messages[0]["headers"] == [(b"content-type", b"text/plain"), (b"vary", b"Origin")]
    assert (relay.status, relay.content_type, relay.last_byte) == (200, b"text/plain", b"a")


async def test_a_client_that_takes_everything_is_served_in_the_call_that_brought_it() -> None:
    client = Client()
    relay = client.relay()
    relay.body(b"a", last=False)
    relay.body(b"b", last=True)
    assert (client.body, client.is_complete, relay.is_complete) == (b"ab", True, True)
    assert client.told == []
    await within(relay.finished())


async def test_a_client_that_blocks_gets_the_rest_when_it_can() -> None:
    client = Client()
    relay = client.relay()
    relay.body(b"a", last=False)
    client.block()
    for piece in (b"b", b"c"):
        relay.body(piece, last=False)
    relay.body(b"d", last=True)
    assert (client.body, client.told) == (b"a", [True])
    await client.unblock()
    await within(relay.finished())
    assert (client.body, client.told, relay.is_complete) == (b"abcd", [True, False], True)
    assert [message.get("body", b"") for message in client.messages] == [b"", b"a", b"b", b"c", b"d"]


async def test_a_client_may_block_at_the_head() -> None:
    client = Client()
    relay = client.relay()
    client.block()
    relay.body(b"all", last=True)
    await client.unblock()
    await within(relay.finished())
    assert (client.body, client.is_complete) == (b"all", True)


async def test_the_worker_may_go_on_after_a_last_piece_that_blocked() -> None:
    client = Client()
    relay = client.relay()
    relay.body(b"a", last=False)
    client.block()
    relay.body(b"b", last=True)
    await client.unblock()
    await within(relay.finished())
    assert client.told == [True, False]


async def test_a_failure_ends_the_reply() -> None:
    client = Client()
    relay = client.relay()
    relay.body(b"a", last=False)
    relay.fail(WorkerDied())
    with pytest.raises(WorkerDied):
        await within(relay.finished())
    assert not relay.is_complete


async def test_a_failure_waits_for_what_a_slow_client_has_not_got_yet() -> None:
    client = Client()
    relay = client.relay()
    client.block()
    relay.body(b"a", last=False)
    relay.body(b"b", last=False)
    relay.fail(WorkerDied())
    finished = asyncio.ensure_future(relay.finished())
    await asyncio.sleep(0)
    assert not finished.done()
    await client.unblock()
    with pytest.raises(WorkerDied):
        await within(finished)
    assert client.body == b"ab"


@pytest.mark.parametrize("blocked_at", ["head", "middle", "end"])
async def test_a_worker_that_has_said_all_may_fail(blocked_at: str) -> None:
    client = Client()
    relay = client.relay()
    if blocked_at == "head":
        client.block()
    relay.body(b"a", last=False)
    if blocked_at == "middle":
        client.block()
    relay.body(b"b", last=False)
    if blocked_at == "end":
        client.block()
    relay.body(b"c", last=True)
    relay.fail(WorkerDied())
    await client.unblock()
    await within(relay.finished())
    assert (client.body, relay.is_complete) == (b"abc", True)


@pytest.mark.parametrize("blocks", [False, True])
async def test_what_the_server_raises_ends_this_reply_only(*, blocks: bool) -> None:
    client = Client()
    relay = client.relay()
    client.error = RuntimeError("Invalid HTTP header value.")
    if blocks:
        client.block()
    relay.body(b"a", last=False)
    relay.body(b"b", last=False)
    await client.unblock()
    with pytest.raises(RuntimeError, match="Invalid HTTP header"):
        await within(relay.finished())
    assert not relay.is_complete


steps = st.lists(st.sampled_from(["block", "unblock"]) | st.binary(max_size=3))


@settings(max_examples=60, deadline=None)
@given(steps=steps, last=st.binary(max_size=3))
async def test_whenever_a_client_blocks_nothing_is_lost_and_the_worker_hears_of_it(
    steps: list[str | bytes], last: bytes
) -> None:
    client = Client()
    relay = client.relay()
    for step in steps:
        if step == "block":
            client.block()
        elif step == "unblock":
            await client.unblock()
        elif isinstance(step, bytes):
            relay.body(step, last=False)
    relay.body(last, last=True)
    await client.unblock()
    await within(relay.finished())
    assert client.body == b"".join(step for step in steps if isinstance(step, bytes)) + last
    assert client.is_complete
    assert client.told == [True, False] * (len(client.told) // 2)
