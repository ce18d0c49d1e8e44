"""Long work of the store as a reply: its steps as NDJSON, or the last one alone (contract §1.7, §1.9)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import orjson

from vllama.asgi import cancelled_on_disconnect
from vllama.errors import VllamaError
from vllama.gateway.replies import send_bytes
from vllama.gateway.routing import Request
from vllama.ollama.status import NDJSON, error_body, error_line, status_of
from vllama.store.progress import Progress

_PLAIN_JSON = "application/json"


async def send_steps(request: Request, steps: AsyncGenerator[Progress, None], *, stream: bool) -> None:
    """Reply with the steps of a transfer; a disconnect or a drain ends it if no other client watches it.

    Errors before the first step, or without a stream, have their own status.
    """
    async with cancelled_on_disconnect(request.receive), aclosing(steps):
        try:
            if stream:
                await _stream(request, steps)
                return
            with request.drain.may_end():
                async for step in steps:
                    last = step
        except VllamaError as error:
            await send_bytes(request, status_of(error), _PLAIN_JSON, error_body(str(error)))
        else:
            await send_bytes(request, 200, _PLAIN_JSON, orjson.dumps(last.to_record()))


async def _stream(request: Request, steps: AsyncGenerator[Progress, None]) -> None:
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
