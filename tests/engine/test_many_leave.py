"""Many requests, of which three in ten are abandoned at any moment, leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from urllib.parse import urlsplit

import pytest
from sampling import count

from engine.processes import wait_for
from engine.server import RUNNING, Server

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

REQUESTS, AT_ONCE, LEAVE = count(300, 1000), 24, 0.3
PATHS = ("/api/generate", "/api/chat", "/v1/chat/completions")


async def ask(address: tuple[str, int], model: str, chance: random.Random) -> str:
    """Send one request; read all of the reply, or leave before it, at its beginning or in its middle."""
    path, leaves = chance.choice(PATHS), chance.random() < LEAVE
    say = {"prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}]}
    length = {"options": {"num_predict": 8}, "max_tokens": 8}
    body = json.dumps({"model": model, "stream": chance.random() < 0.7, **say, **length}).encode()
    reader, writer = await asyncio.open_connection(*address)
    try:
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        if leaves:
            moment = chance.choice(["before", "beginning", "middle"])
            if moment != "before":
                await reader.read(16 if moment == "beginning" else 600)
            return moment
        reply = await reader.read()
        return "whole" if reply.startswith(b"HTTP/1.1 200") else reply[:200].decode(errors="replace")
    finally:
        writer.close()


async def ask_all(server: Server, model: str) -> Counter[str]:
    target = urlsplit(server.url)
    address, chance = (target.hostname or "", target.port or 0), random.Random(11)
    places = asyncio.Semaphore(AT_ONCE)

    async def one() -> str:
        async with places:
            return await asyncio.wait_for(ask(address, model, chance), 120)

    return Counter(await asyncio.gather(*(one() for _ in range(REQUESTS))))


def test_requests_of_which_many_are_abandoned_leave_no_request_and_no_lease(breakable: Server, tiny: str) -> None:
    worker = breakable.load(tiny, keep_alive="10m")
    outcomes = asyncio.run(ask_all(breakable, tiny))

    assert set(outcomes) == {"whole", "before", "beginning", "middle"}
    assert sum(outcomes.values()) == REQUESTS
    assert REQUESTS * 0.2 < REQUESTS - outcomes["whole"] < REQUESTS * 0.4
    wait_for(lambda: worker.metric(RUNNING) == 0, "the engine is idle", 20)
    assert breakable.workers() == [worker]
    breakable.ask("/api/generate", {"model": tiny, "keep_alive": 0})  # what nobody leases goes at once
    assert breakable.client.get("/api/ps?all=true").json() == {"models": []}
    wait_for(lambda: not worker.main.lives, "the worker is gone", 20)
