"""Send requests and record when each part of the replies arrives, in a closed or an open loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from vllama.bench.dialects import DIALECTS, refusal
from vllama.bench.prompts import PromptSource
from vllama.bench.result import Api, Arrivals, Outcome, Sample
from vllama.errors import ServerError
from vllama.keys.credentials import credentials

AFTER_FAILURE = 0.05
"""Seconds that a client waits after a failure, so that a server that refuses at once is not flooded."""

_NS = 10**9
_HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. `socket` is a Unix socket to reach `url` through, or ""."""

    url: str
    api: Api
    model: str
    socket: str = ""


@dataclass(frozen=True, slots=True)
class RequestLoad:
    """What one process sends, and until when.

    Closed loop: `clients` of them, each with one request at a time. Open loop: `rate` requests/s, at `arrivals`,
    whether the server keeps up or not. It ends after `iterations` requests or `seconds`, whichever comes first. Of
    `stride` processes this one has `turn`: its prompts are number `turn`, `turn` + `stride`, …, and of the `rate`,
    which is that of all, it sends its part. `keep_texts` replies keep their text. `timeout` is in seconds; `warmup`
    requests per client (open loop: in all) go first and are not reported.
    """

    target: Target
    prompts: PromptSource
    output_tokens: int
    stream: bool = True
    schema: dict[str, Any] | None = None
    clients: int = 1
    rate: float | None = None
    arrivals: Arrivals = "constant"
    iterations: int | None = None
    seconds: float | None = None
    warmup: int = 0
    timeout: float = 300.0
    turn: int = 0
    stride: int = 1
    keep_texts: int = 0


@dataclass(frozen=True, slots=True)
class KeptReply:
    """A reply whose text was wanted: which sample it is of, and the number of its prompt."""

    sample: int
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class GeneratorReport:
    """Measurements of one process: its samples in the order of their ends. `cpu` is CPU time divided by wall time."""

    samples: tuple[Sample, ...]
    kept: tuple[KeptReply, ...]
    cpu: float


@dataclass(slots=True)
class _Body:
    """Of a reply: what came in one read, and when (ns)."""

    pieces: list[bytes]
    times: list[int]


class Generator:
    """Sends one load: first `warm_up`, then `measure`. `clock` gives ns, in step with the event loop's own clock."""

    def __init__(
        self, load: RequestLoad, session: aiohttp.ClientSession, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._clock = clock
        self._load = load
        self._session = session
        self._dialect = DIALECTS[load.target.api]
        self._url = load.target.url.rstrip("/") + self._dialect.path
        self._prompts = load.prompts.open()
        self._sent = 0
        self._samples: list[Sample] = []
        self._bodies: list[tuple[int, int, bytes]] = []

    @property
    def ended(self) -> int:
        """How many requests have ended so far."""
        return len(self._samples)

    async def warm_up(self) -> None:
        """Send what is not counted. Raises ServerError if one of them fails."""
        clients = 1 if self._load.rate else self._load.clients
        await asyncio.gather(*(self._warm_client(client) for client in range(clients)))
        self._samples.clear()
        self._bodies.clear()

    async def _warm_client(self, client: int) -> None:
        load = self._load
        for i in range(load.warmup):
            # Numbers that no measured request has, or its prompt would be in the prefix cache.
            sample = await self._ask(-1 - load.turn - load.stride * (client + load.clients * i), None)
            if sample.outcome != "ok":
                message = f"{self._url}: {sample.error or sample.outcome}"
                raise ServerError(message)

    async def measure(self, start: int) -> GeneratorReport:
        """Send the load from `start` (ns of the monotonic clock) on, to its end; cancelling it ends it now."""
        cpu = time.process_time_ns()
        work: list[asyncio.Future[None]] = []
        try:
            await self._sleep_until(start)
            cpu = time.process_time_ns()
            if self._load.rate:
                work.append(asyncio.ensure_future(self._open_loop(start, self._load.rate)))
            else:
                work += [asyncio.ensure_future(self._client(start)) for _ in range(self._load.clients)]
            await asyncio.gather(*work)
        except asyncio.CancelledError:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        share = (time.process_time_ns() - cpu) / max(self._clock() - start, 1)
        kept = (KeptReply(sample, number, self._dialect.text(body)) for sample, number, body in self._bodies)
        return GeneratorReport(tuple(self._samples), tuple(kept), share)

    async def _client(self, start: int) -> None:
        while (number := self._next(self._clock() - start)) is not None:
            if (await self._ask(number, None)).outcome != "ok":
                await asyncio.sleep(AFTER_FAILURE)

    async def _open_loop(self, start: int, rate: float) -> None:
        async with asyncio.TaskGroup() as requests:
            for offset in self._offsets(rate):
                if (number := self._next(offset)) is None:
                    return
                await self._sleep_until(start + offset)
                requests.create_task(self._ask(number, start + offset))

    async def _sleep_until(self, moment: int) -> None:
        # uvloop's timers are as coarse as a millisecond, and may be early.
        while (left := moment - self._clock()) > 0:  # noqa: ASYNC110 - the clock is what is awaited
            await asyncio.sleep(left / _NS)

    def _offsets(self, rate: float) -> Iterator[int]:
        """Yield when the requests of this process are due, in ns after the start."""
        load = self._load
        if load.arrivals == "constant":
            yield from (int(number / rate * _NS) for number in itertools.count(load.turn, load.stride))
        dice = random.Random(f"{load.prompts.salt}:{load.turn}:arrivals")  # noqa: S311 - no secret
        at = 0.0
        while True:
            at += dice.expovariate(rate / load.stride)
            yield int(at * _NS)

    def _next(self, elapsed: int) -> int | None:
        """Return the number of the next request, or None if the load has ended after `elapsed` ns."""
        load = self._load
        if load.iterations is not None and self._sent >= load.iterations:
            return None
        if load.seconds is not None and elapsed >= load.seconds * _NS:
            return None
        self._sent += 1
        return load.turn + (self._sent - 1) * load.stride

    async def _ask(self, number: int, due: int | None) -> Sample:
        """Send one request and note what comes of it, whatever that is."""
        load = self._load
        prompt = self._prompts[number]
        request = self._dialect.encode(
            load.target.model, prompt, load.output_tokens, stream=load.stream, schema=load.schema
        )
        body = _Body([], [])
        outcome: Outcome = "cancelled"
        error = ""
        sent = self._clock()
        try:
            outcome, error = await self._receive(request, body)
        finally:
            sample = self._sample(sent if due is None else due, sent, body, outcome, error)
            if sample.outcome == "ok" and len(self._bodies) < load.keep_texts:
                self._bodies.append((len(self._samples), number, b"".join(body.pieces)))
            self._samples.append(sample)
        return sample

    async def _receive(self, request: bytes, body: _Body) -> tuple[Outcome, str]:
        """Send the request and collect the reply's body. This is the hot path."""
        now, pieces, times = self._clock, body.pieces, body.times
        timeout = self._load.timeout
        try:
            async with (
                asyncio.timeout(timeout),
                self._session.post(self._url, data=request, headers=_HEADERS) as response,
            ):
                async for piece in response.content.iter_any():
                    times.append(now())
                    pieces.append(piece)
        except TimeoutError:
            return "timeout", f"no end within {timeout:g} s"
        except aiohttp.ClientConnectorError as error:
            return "error", str(error)
        except (aiohttp.ClientError, OSError) as error:
            return "dropped", str(error) or type(error).__name__
        if response.status != 200:
            return "error", refusal(response.status, b"".join(pieces))
        return ("ok", "") if pieces else ("dropped", "an empty reply")

    def _sample(self, start: int, sent: int, body: _Body, outcome: Outcome, error: str) -> Sample:
        end = body.times[-1] if outcome == "ok" else self._clock()
        if outcome == "error" or not body.pieces:
            return Sample(start, sent, None, end, outcome, error)
        reply = self._dialect.read(body.pieces, body.times, streamed=self._load.stream)
        if outcome == "ok" and reply.error:
            outcome, error = "error", reply.error
        elif outcome == "ok" and not reply.finished:
            outcome, error = "dropped", "the reply ended before its end"
        return Sample(
            start,
            sent,
            reply.texts[0] if reply.texts else None,
            end,
            outcome,
            error,
            reply.tokens_in,
            reply.tokens_out,
            chunks=tuple(at - start for at in reply.texts),
            server=reply.server,
        )


@contextlib.asynccontextmanager
async def open_session(target: Target) -> AsyncIterator[aiohttp.ClientSession]:
    """Give a session with as many connections as are asked for, which neither waits nor decodes."""
    kind = aiohttp.UnixConnector(target.socket, limit=0) if target.socket else aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        headers=credentials(),
        connector=kind,
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        trust_env=False,
    ) as session:
        yield session
