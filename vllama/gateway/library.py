"""Changes to the store: `/api/pull`, `/api/copy`, `/api/delete`, and no `/api/push` (contract §1.7–1.10)."""

from __future__ import annotations

from collections.abc import Callable, Generator

from vllama.durations import quote
from vllama.errors import InvalidName, ModelNotFound, NamedModelNotFound, RequestError
from vllama.gateway.bodies import read_small_body
from vllama.gateway.replies import send_bytes
from vllama.gateway.routing import Request
from vllama.gateway.steps import send_steps
from vllama.gateway.transfers import Transfers
from vllama.machine.threads import Threads
from vllama.names import ModelName
from vllama.ollama.creation import precision
from vllama.ollama.gojson import Fields, decode, known_fields
from vllama.store.garbage import delete
from vllama.store.model_store import ModelStore
from vllama.store.progress import Progress
from vllama.store.pull import pull

_PULL = known_fields("model", "name", "stream", "insecure", "precision")
_PUSH = known_fields("model", "name", "stream", "insecure")
_COPY = known_fields("source", "destination")
_DELETE = known_fields("model", "name")
_PLAIN_JSON = "application/json"

Puller = Callable[[ModelStore, ModelName], Generator[Progress, None, None]]


class Library:
    """The routes that bring, copy and remove models."""

    def __init__(self, store: ModelStore, transfers: Transfers, threads: Threads, puller: Puller = pull) -> None:
        """Take the running pulls, and the threads for short work on the store."""
        self._store = store
        self._transfers = transfers
        self._threads = threads
        self._puller = puller

    async def pull(self, request: Request) -> None:
        """Answer `POST /api/pull` with steps as NDJSON; errors after the first step are in the stream.

        Clients that ask for the same model at the same time watch one pull.
        """
        fields = Fields(decode(await read_small_body(request)), "PullRequest", _PULL)
        name = ModelName.parse(fields.string("model") or fields.string("name"))
        request.subject = name.display
        store = self._store.converting(precision(fields))
        stream = fields.boolean("stream") is not False
        steps = self._transfers.watch(
            lambda: self._puller(store, name), ("pull", name.key, store.precision, store.insists)
        )
        await send_steps(request, steps, stream=stream)

    async def push(self, request: Request) -> None:
        """Refuse `POST /api/push`: nothing leaves this server."""
        fields = Fields(decode(await read_small_body(request)), "PushRequest", _PUSH)
        if not (fields.string("model") or fields.string("name")):
            raise RequestError("model is required")
        raise RequestError("push is not supported by this server")

    async def copy(self, request: Request) -> None:
        """Answer `POST /api/copy`: another name for the same files."""
        fields = Fields(decode(await read_small_body(request)), "CopyRequest", _COPY)
        source = _parse("source", fields.string("source"))
        destination = _parse("destination", fields.string("destination"))
        request.subject = f"{source.display} {destination.display}"
        try:
            await self._threads.run(self._store.copy, source, destination)
        except ModelNotFound:
            raise NamedModelNotFound(fields.string("source")) from None
        await send_bytes(request, 200, "", b"")

    async def delete(self, request: Request) -> None:
        """Answer `DELETE /api/delete`: files are removed with the last name that needs them.

        A loaded model stays until it is unloaded.
        """
        fields = Fields(decode(await read_small_body(request)), "DeleteRequest", _DELETE)
        asked = fields.string("model") or fields.string("name")
        name = _parse("name", asked)
        request.subject = name.display
        try:
            await self._threads.run(delete, self._store, name)
        except ModelNotFound:
            raise ModelNotFound(asked) from None
        await send_bytes(request, 200, "", b"")


def _parse(what: str, text: str) -> ModelName:
    try:
        return ModelName.parse(text)
    except InvalidName:
        raise InvalidName(f"{what} {quote(text)} is invalid") from None
