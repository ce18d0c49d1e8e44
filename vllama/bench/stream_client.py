"""A client in a process of its own: streams replies, counts chunks and tokens, notes the first byte.

    python -m vllama.bench.stream_client PLAN

PLAN is a JSON object with the fields of Plan; a JSON object with those of Sample goes to stdout.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass

import aiohttp
import orjson
import uvloop


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send. `socket` is a Unix socket, or "" for the host of `url`."""

    url: str
    socket: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send. Every client sends `body` to the targets in turns, `requests_per_client` times to each."""

    targets: list[Target]
    body: str
    clients: int
    requests_per_client: int


@dataclass(slots=True)
class Sample:
    """What came back. `chunks` are the servers' writes, `ttft` the seconds to the first of each request, by target."""

    tokens: int
    chunks: int
    failures: int
    seconds: float
    ttft: list[list[float]]


async def run(plan: Plan) -> Sample:
    """Run all clients to the end."""
    sample = Sample(0, 0, 0, 0.0, [[] for _ in plan.targets])
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(_session(target)) for target in plan.targets]
        started = time.perf_counter()
        await asyncio.gather(*(_client(sessions, plan, sample) for _ in range(plan.clients)))
        sample.seconds = time.perf_counter() - started
    return sample


def _session(target: Target) -> aiohttp.ClientSession:
    connector = aiohttp.UnixConnector(target.socket, limit=0) if target.socket else aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=300))


async def _client(sessions: list[aiohttp.ClientSession], plan: Plan, sample: Sample) -> None:
    for _ in range(plan.requests_per_client):
        for session, target, ttft in zip(sessions, plan.targets, sample.ttft, strict=True):
            await _request(session, target.url, plan.body.encode(), sample, ttft)


async def _request(session: aiohttp.ClientSession, url: str, body: bytes, sample: Sample, ttft: list[float]) -> None:
    started = time.perf_counter()
    first, last = True, b""
    async with session.post(url, data=body, headers={"content-type": "application/json"}) as response:
        async for chunk, _end_of_chunk in response.content.iter_chunks():
            if first:
                ttft.append(time.perf_counter() - started)
                first = False
            sample.chunks += 1
            last = (last + chunk)[-2000:]
    sample.tokens += _tokens(last)
    sample.failures += response.status != 200


def _tokens(tail: bytes) -> int:
    """The count in the last record of either protocol."""
    for line in reversed(tail.split(b"\n")):
        text = line.removeprefix(b"data: ")
        if not text.startswith(b"{"):
            continue
        record = orjson.loads(text)
        if count := record.get("eval_count") or (record.get("usage") or {}).get("completion_tokens"):
            return int(count)
    return 0


def _plan(text: str) -> Plan:
    values = orjson.loads(text)
    return Plan(**{**values, "targets": [Target(**target) for target in values["targets"]]})


if __name__ == "__main__":
    print(orjson.dumps(asdict(uvloop.run(run(_plan(sys.argv[1]))))).decode())
