"""Long work of the store as a reply: its steps as NDJSON, or the last one alone (contract §1.7, §1.9)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import suppress
from typing import Any

import orjson

from vllama.asgi import cancelled_on_disconnect
from vllama.errors import VllamaError
from vllama.gateway.replies import send_bytes
from vllama.gateway.routing import Request
from vllama.ollama.status import NDJSON, error_body, error_line, status_of
from vllama.store.progress import Progress

_PLAIN_JSON = "application/json"


async def send_steps(request: Request, steps: Generator[Progress, None, None], *, stream: bool) -> None:
    """Do the work in threads, and reply; a client that leaves ends it after the step under way, as a drain does.

    What goes wrong before the first step, or without a stream, has a status of its own.
    """
    async with cancelled_on_disconnect(request.receive):
        try:
            if stream:
                await _stream(request, in_thread(steps))
                return
            with request.drain.may_end():
                async for step in in_thread(steps):
                    last = step
        except VllamaError as error:
            await send_bytes(request, status_of(error), _PLAIN_JSON, error_body(str(error)))
        else:
            await send_bytes(request, 200, _PLAIN_JSON, orjson.dumps(last.to_record()))


async def _stream(request: Request, steps: AsyncIterator[Progress]) -> None:
    async def line(body: bytes, *, last: bool = False) -> None:
        await request.send({"type": "http.response.body", "body": body, "more_body": not last})

    try:
        with request.drain.may_end():
            async for step in steps:
                if not request.status:
                    request.status = 200
                    headers = [(b"content-type", NDJSON.encode()), *request.extra_headers]
                    await request.send({"type": "http.response.start", "status": 200, "headers": headers})
                await line(orjson.dumps(step.to_record()) + b"\n")
    except VllamaError as error:
        if not request.status:
            raise
        await line(error_line(str(error)), last=True)
    else:
        await line(b"", last=True)


async def in_thread(steps: Generator[Progress, None, None]) -> AsyncIterator[Progress]:
    """Run a blocking generator in threads, step by step; closing or cancelling ends it after the step under way."""
    loop = asyncio.get_running_loop()
    pending: asyncio.Future[Any] = loop.create_future()
    try:
        while True:
            pending = loop.run_in_executor(None, next, steps, None)
            step = await asyncio.shield(pending)
            if step is None:
                return
            yield step
    finally:
        if pending.done():
            steps.close()
        else:
            pending.add_done_callback(lambda done: _close(steps, done))


def _close(steps: Generator[Progress, None, None], done: asyncio.Future[Any]) -> None:
    with suppress(Exception):
        done.result()  # nobody is left to be told
    steps.close()
