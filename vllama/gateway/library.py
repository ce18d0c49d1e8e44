"""Changes to the store: `/api/pull`, `/api/copy`, `/api/delete`, and no `/api/push` (contract §1.7–1.10)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator

from vllama.asgi import read_body
from vllama.durations import quote
from vllama.errors import InvalidName, ModelNotFound, NamedModelNotFound, RequestError
from vllama.gateway.replies import send_bytes
from vllama.gateway.routing import Request
from vllama.gateway.steps import send_steps
from vllama.names import ModelName
from vllama.ollama.gojson import Fields, decode, known_fields
from vllama.store.garbage import delete
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.pull import pull

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
        await send_steps(request, self._puller(self._store, name), stream=stream)

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
            self._store.copy(source, destination)
        except ModelNotFound:
            raise NamedModelNotFound(fields.string("source")) from None
        await send_bytes(request, 200, "", b"")

    async def delete(self, request: Request) -> None:
        """`DELETE /api/delete`, with the name in its body: files go with the last name that needs them.

        A loaded model goes on until it is unloaded.
        """
        fields = Fields(decode(await read_body(request.receive)), "DeleteRequest", _DELETE)
        asked = fields.string("model") or fields.string("name")
        name = _parse("name", asked)
        try:
            await asyncio.to_thread(delete, self._store, name)
        except ModelNotFound:
            raise ModelNotFound(asked) from None
        await send_bytes(request, 200, "", b"")


def _parse(what: str, text: str) -> ModelName:
    try:
        return ModelName.parse(text)
    except InvalidName:
        raise InvalidName(f"{what} {quote(text)} is invalid") from None
