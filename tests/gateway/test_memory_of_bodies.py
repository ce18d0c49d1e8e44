"""The memory of large bodies goes back to the system when no request needs it any more."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from vllama.gateway import bodies
from vllama.gateway.bodies import Bodies
from vllama.settings import Settings

pytestmark = pytest.mark.anyio
LARGE = 2 << 20


async def test_memory_is_given_back_once_after_the_last_of_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, given_back = asyncio.get_running_loop(), asyncio.Event()
    times: list[None] = []

    def give_back() -> None:
        times.append(None)
        loop.call_soon_threadsafe(given_back.set)

    monkeypatch.setattr(bodies, "_return_free_memory", give_back)
    monkeypatch.setattr(bodies, "_PAUSE_SECONDS", 0.0)
    own = Bodies(Settings.from_environment({}))
    requests: list[Any] = [SimpleNamespace(held=0) for _ in range(3)]
    for request in requests:
        own.hold(request, LARGE)
    own.release(requests[0])
    own.release(requests[1])
    await asyncio.sleep(0)
    assert times == []
    own.release(requests[2])
    own.hold(requests[0], LARGE)
    own.release(requests[0])
    await asyncio.wait_for(given_back.wait(), 60)
    assert len(times) == 1
