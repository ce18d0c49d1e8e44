"""A client in a process of its own: streams replies, counts chunks and tokens, notes the first byte.

    python -m vllama.bench.stream_client PLAN

PLAN is a JSON object with the fields of Plan; a JSON object with those of Sample goes to stdout.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import asdict, dataclass

import aiohttp
import orjson
import uvloop


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send. `socket` is a Unix socket, or "" for the host of `url`; `body` is sent by every client."""

    url: str
    socket: str
    body: str
    clients: int
    requests_per_client: int


@dataclass(slots=True)
class Sample:
    """What came back. `chunks` are the server's writes, `ttft` the seconds to the first of each request."""

    tokens: int
    chunks: int
    failures: int
    seconds: float
    ttft: list[float]


async def run(plan: Plan) -> Sample:
    """Run all clients to the end."""
    sample = Sample(0, 0, 0, 0.0, [])
    connector = aiohttp.UnixConnector(plan.socket, limit=0) if plan.socket else aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        started = time.perf_counter()
        await asyncio.gather(*(_client(session, plan, sample) for _ in range(plan.clients)))
        sample.seconds = time.perf_counter() - started
    return sample


async def _client(session: aiohttp.ClientSession, plan: Plan, sample: Sample) -> None:
    headers = {"content-type": "application/json"}
    for _ in range(plan.requests_per_client):
        started = time.perf_counter()
        last = b""
        first = True
        async with session.post(plan.url, data=plan.body.encode(), headers=headers) as response:
            async for chunk, _end_of_chunk in response.content.iter_chunks():
                if first:
                    sample.ttft.append(time.perf_counter() - started)
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


if __name__ == "__main__":
    print(orjson.dumps(asdict(uvloop.run(run(Plan(**orjson.loads(sys.argv[1])))))).decode())
