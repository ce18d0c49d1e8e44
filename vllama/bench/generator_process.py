"""The load generator as a process.

    python -m vllama.bench.generator_process

Orders come on stdin and answers go to stdout, one JSON object per line. The answer to a RequestLoad is {"ready": true}
after the warm-up, or {"failed": TEXT}. Then {"start": NS} begins the measurement, {"ended": N} counts the requests that
have ended, and a GeneratorReport is the last answer. {"stop": true} ends a load early. The process ends with stdin.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import uvloop

from vllama.bench.dataclass_json import read
from vllama.bench.generator import Generator, GeneratorReport, RequestLoad, open_session
from vllama.errors import RequestError, ServerError

_PROGRESS_SECONDS = 0.1


class _Process:
    """The orders from stdin and the answers to stdout."""

    def __init__(self, orders: asyncio.Queue[dict[str, Any] | None], answer: Callable[[Any], None]) -> None:
        self._orders = orders
        self._answer = answer

    async def work(self) -> None:
        """Carry out loads until stdin ends."""
        while (order := await self._orders.get()) is not None:
            if "stop" in order:
                continue  # it came too late for the load before
            load = read(RequestLoad, order, "load")
            try:
                async with open_session(load.target) as session:
                    await self._carry_out(Generator(load, session))
            except (ServerError, RequestError) as error:
                self._answer({"failed": str(error)})

    async def _carry_out(self, generator: Generator) -> None:
        empty = GeneratorReport((), (), 0.0)
        if not await self._unless_stopped(generator.warm_up()):
            self._answer(empty)
            return
        self._answer({"ready": True})
        order = await self._orders.get()
        if order is None or "start" not in order:
            self._answer(empty)
            return
        measuring = asyncio.ensure_future(generator.measure(order["start"]))
        counting = asyncio.ensure_future(self._count(generator))
        await self._unless_stopped(measuring)
        counting.cancel()
        self._answer(await measuring)

    async def _unless_stopped(self, work: Awaitable[Any]) -> bool:
        """Await the work, cancelled if an order to stop comes, or the end of all orders; whether it came to its end."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._orders.get())
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            stopping.cancel()
            await working
            return True
        working.cancel()
        await asyncio.wait((working,))
        if stopping.result() is None:
            self._orders.put_nowait(None)
        return False

    async def _count(self, generator: Generator) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            self._answer({"ended": generator.ended})


async def _main() -> None:
    orders: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    lines = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def listen() -> None:
        while line := await lines.readline():
            orders.put_nowait(orjson.loads(line))
        orders.put_nowait(None)

    def answer(value: Any) -> None:
        sys.stdout.buffer.write(orjson.dumps(value) + b"\n")
        sys.stdout.buffer.flush()

    listening = asyncio.ensure_future(listen())
    await _Process(orders, answer).work()
    await listening


if __name__ == "__main__":
    try:
        uvloop.run(_main())
    except BrokenPipeError:
        # Who gave the orders was killed. What is still in the buffer must not fail once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
