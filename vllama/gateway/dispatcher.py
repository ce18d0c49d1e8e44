"""Lease a worker for a model, forward the request to it, and relay its reply to the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeVar

from vllama.durations import Nanoseconds
from vllama.errors import CloudDisabled, EngineError, ModelNotFound, ServerStopping, WorkerDied
from vllama.gateway.access import check_model
from vllama.gateway.admission import Admission
from vllama.gateway.channel_client import ChannelPool
from vllama.gateway.relay import OnSlow, Relay, RelayMaker
from vllama.gateway.replies import BrokenReply, closing_error
from vllama.gateway.routing import Request
from vllama.gateway.upstream import HttpConnectionPool, NeverSent
from vllama.names import ModelName
from vllama.protocol.frames import Form
from vllama.scheduler.resident import Resident
from vllama.scheduler.scheduler import Scheduler
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore

T = TypeVar("T")

_EVENT_STREAM = b"text/event-stream"


class Dispatcher:
    """Dispatcher of requests to workers, over the channel or over HTTP for vLLM's own routes."""

    def __init__(self, store: ModelStore, scheduler: Scheduler, admission: Admission) -> None:
        self._store = store
        self._admission = admission
        self._scheduler = scheduler
        self._http_connections = HttpConnectionPool()
        self._channels = ChannelPool()

    def resolve(self, text: str, request: Request) -> Manifest:
        """Return the manifest of a name as typed in a request, which is then about this model.

        Raises InvalidName, CloudDisabled, Forbidden or ModelNotFound.
        """
        name = ModelName.parse(text)
        if name.is_cloud:
            raise CloudDisabled
        check_model(request, name)
        try:
            manifest = self._store.get(name)
        except ModelNotFound:
            raise ModelNotFound(text) from None
        request.subject = manifest.name.display
        return manifest

    def lease(
        self, manifest: Manifest, keep_alive: Nanoseconds | None, request: Request | None = None
    ) -> AbstractAsyncContextManager[Resident]:
        """Hold a ready worker of this model, for a `request` in the turn of its key; see Scheduler.lease."""
        lease = self._scheduler.lease(manifest, keep_alive)
        if request is None or request.key is None:
            return lease
        return self._admission.admitted(lease, request.key)

    def is_ready(self, manifest: Manifest) -> bool:
        """Whether the model has a worker that could answer now; see Scheduler.is_ready."""
        return self._scheduler.is_ready(manifest)

    def unload(self, manifest: Manifest) -> None:
        """Unload the model as soon as it has no requests."""
        self._scheduler.unload(manifest)

    async def over_channel(
        self,
        resident: Resident,
        request: Request,
        profile: bytes,
        body: bytes,
        *,
        form: Form,
        relay_class: type[Relay] = Relay,
    ) -> None:
        """Relay the reply of one of our own routes in the worker. Raises WorkerDied or BrokenReply."""
        ask = partial(self.ask, resident, request.path, request.received, profile=profile, body=body, form=form)
        await relay_reply(request, ask, relay_class, lambda: self._scheduler.report_answer(resident))

    async def over_http(self, resident: Resident, request: Request, outgoing: bytes, relay_class: type[Relay]) -> None:
        """Relay the reply of one of vLLM's own routes. Raises WorkerDied or BrokenReply."""
        connection = await self._reporting(resident, self._http_connections.acquire(resident.socket))

        # A broken connection does not prove a death: vLLM closes the connection of a reply that it cannot complete.
        async def exchange(make_relay: RelayMaker) -> None:
            try:
                await connection.exchange(outgoing, make_relay)
            except NeverSent:
                fresh = await self._reporting(resident, self._http_connections.connect(resident.socket))
                await fresh.exchange(outgoing, make_relay)

        await relay_reply(request, exchange, relay_class, lambda: self._scheduler.report_answer(resident))

    async def ask(
        self,
        resident: Resident,
        path: str,
        received: int,
        make_relay: RelayMaker,
        *,
        profile: bytes,
        body: bytes,
        form: Form,
    ) -> None:
        """Send a request to one of our own routes over the channel. Raises WorkerDied."""
        channel = await self._reporting(resident, self._channels.least_loaded(resident.channels, len(body)))
        await self._reporting(resident, channel.exchange(path, received, profile, body, make_relay, form=form))

    def report_death(self, resident: Resident) -> None:
        """Record that this worker no longer accepts requests."""
        self._scheduler.report_death(resident)

    async def _reporting(self, resident: Resident, work: Awaitable[T]) -> T:
        """Do the work, and report the worker if the work shows that it no longer accepts requests."""
        try:
            return await work
        except WorkerDied:
            self.report_death(resident)
            raise

    def end_replies(self) -> None:
        """End all running replies with an error in their own formats, because the server is stopping."""
        self._admission.end(ServerStopping())
        self._http_connections.end(ServerStopping())
        self._channels.end(ServerStopping())

    def close(self) -> None:
        """Close the connections to the workers."""
        self._http_connections.close()
        self._channels.close()


async def relay_reply(
    request: Request,
    exchange: Callable[[RelayMaker], Awaitable[None]],
    relay_class: type[Relay],
    on_answer: Callable[[], None],
) -> None:
    """Run an exchange and relay its reply to the client; a broken reply ends with an error in its own format.

    `on_answer` is called if the reply shows that the engine works.
    Raises WorkerDied or ServerStopping if nothing was sent yet, BrokenReply if the format cannot express an error.
    """
    relay: Relay | None = None

    def make_relay(on_slow: OnSlow) -> Relay:
        nonlocal relay
        relay = relay_class(request.send, request.extra_headers, on_slow)
        relay.meter = request.meter
        return relay

    try:
        await exchange(make_relay)
    except EngineError as error:
        if relay is None or not relay.status:
            raise
        ending = closing_error(request.path, relay.content_type, error, after=relay.last_byte)
        if ending is None:
            raise BrokenReply from error
        for chunk in ending:
            await request.send({"type": "http.response.body", "body": chunk, "more_body": True})
        await request.send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        request.status = relay.status if relay is not None else 0
        if relay is not None and _is_proof(relay):  # cancelled or not: see ChannelClient.exchange
            on_answer()


def _is_proof(relay: Relay) -> bool:
    """Return whether the reply proves that the engine works: vLLM completes event streams even with a dead engine."""
    return relay.is_complete and 0 < relay.status < 500 and not relay.content_type.startswith(_EVENT_STREAM)
