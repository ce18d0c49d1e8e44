"""Changes to the store: `/api/pull`, `/api/copy`, `/api/delete`, and no `/api/push` (contract §1.7–1.10)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson

from vllama.asgi import cancelled_on_disconnect, read_body
from vllama.durations import quote
from vllama.errors import InvalidName, ModelNotFound, NamedModelNotFound, RequestError, VllamaError
from vllama.gateway.replies import send_bytes
from vllama.gateway.routing import Request
from vllama.names import ModelName
from vllama.ollama.gojson import Fields, decode, known_fields
from vllama.ollama.status import NDJSON, error_line
from vllama.store.model_store import ModelStore
from vllama.store.pull import Progress, pull

_PULL = known_fields("model", "name", "stream", "insecure")
_COPY = known_fields("source", "destination")
_DELETE = known_fields("model", "name")
_PLAIN_JSON = "application/json"

Puller = Callable[[ModelStore, ModelName], Generator[Progress, None, None]]


class Library:
    """The routes that bring, copy and remove models."""

    def __init__(self, store: ModelStore, puller: Puller = pull) -> None:
        self._store = store
        self._puller = puller

    async def pull(self, request: Request) -> None:
        """`POST /api/pull`: steps as NDJSON; what goes wrong after the first step is said in the stream."""
        fields = Fields(decode(await read_body(request.receive)), "PullRequest", _PULL)
        name = ModelName.parse(fields.string("model") or fields.string("name"))
        stream = fields.boolean("stream") is not False
        async with cancelled_on_disconnect(request.receive):
            steps = _in_thread(self._puller(self._store, name))
            if stream:
                await _send_steps(request, steps)
            else:
                async for _ in steps:
                    pass
                await send_bytes(request, 200, _PLAIN_JSON, b'{"status":"success"}')

    async def push(self, request: Request) -> None:
        """`POST /api/push`: nothing leaves this server."""
        fields = Fields(decode(await read_body(request.receive)), "PushRequest", _PULL)
        if not (fields.string("model") or fields.string("name")):
            raise RequestError("model is required")
        raise RequestError("push is not supported by this server")

    async def copy(self, request: Request) -> None:
        """`POST /api/copy`: another name for the same files."""
        fields = Fields(decode(await read_body(request.receive)), "CopyRequest", _COPY)
        source = _parse("source", fields.string("source"))
        destination = _parse("destination", fields.string("destination"))
        try:
            manifest = self._store.get(source)
        except ModelNotFound:
            raise NamedModelNotFound(fields.string("source")) from None
        self._store.put(replace(manifest, name=destination, modified_at=datetime.now(UTC)))
        await send_bytes(request, 200, "", b"")

    async def delete(self, request: Request) -> None:
        """`DELETE /api/delete`, with the name in its body. A loaded model goes on until it is unloaded."""
        fields = Fields(decode(await read_body(request.receive)), "DeleteRequest", _DELETE)
        asked = fields.string("model") or fields.string("name")
        name = _parse("name", asked)
        try:
            self._store.remove(name)
        except ModelNotFound:
            raise ModelNotFound(asked) from None
        await send_bytes(request, 200, "", b"")


def _parse(what: str, text: str) -> ModelName:
    try:
        return ModelName.parse(text)
    except InvalidName:
        raise InvalidName(f"{what} {quote(text)} is invalid") from None


async def _send_steps(request: Request, steps: AsyncIterator[Progress]) -> None:
    request.status = 200
    headers = [(b"content-type", NDJSON.encode()), *request.extra_headers]
    await request.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def line(body: bytes, *, last: bool = False) -> None:
        await request.send({"type": "http.response.body", "body": body, "more_body": not last})

    try:
        async for step in steps:
            await line(orjson.dumps(step.to_record()) + b"\n")
    except VllamaError as error:
        await line(error_line(str(error)), last=True)
    else:
        await line(b"", last=True)


async def _in_thread(steps: Generator[Progress, None, None]) -> AsyncIterator[Progress]:
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
