"""Workers at work: a name becomes a lease, a request goes to the worker, and its reply to the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeVar

from vllama.errors import CloudDisabled, EngineError, ModelNotFound, ServerStopping, WorkerDied
from vllama.gateway.channel import Channels
from vllama.gateway.relay import OnSlow, Relay, RelayMaker
from vllama.gateway.replies import BrokenReply, closing_error
from vllama.gateway.routing import Request
from vllama.gateway.upstream import Pool
from vllama.names import ModelName
from vllama.scheduler.resident import Resident
from vllama.scheduler.scheduler import Scheduler
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore

T = TypeVar("T")

_EVENT_STREAM = b"text/event-stream"


class Workers:
    """The models of the store, and both ways to ask their workers: the channel, and HTTP for vLLM's own routes."""

    def __init__(self, store: ModelStore, scheduler: Scheduler) -> None:
        self._store = store
        self._scheduler = scheduler
        self._pool = Pool()
        self._channels = Channels()

    def resolve(self, text: str) -> Manifest:
        """The manifest behind what the client typed. Raises InvalidName, CloudDisabled, ModelNotFound."""
        name = ModelName.parse(text)
        if name.is_cloud:
            raise CloudDisabled
        try:
            return self._store.get(name)
        except ModelNotFound:
            raise ModelNotFound(text) from None

    def lease(self, manifest: Manifest, keep_alive: int | None) -> AbstractAsyncContextManager[Resident]:
        """Hold a ready worker of this model; see Scheduler.lease."""
        return self._scheduler.lease(manifest, keep_alive)

    def unload(self, manifest: Manifest) -> None:
        """Let the model go as soon as nobody uses it."""
        self._scheduler.unload(manifest)

    async def over_channel(
        self, resident: Resident, request: Request, profile: bytes, body: bytes, relay_class: type[Relay] = Relay
    ) -> None:
        """Have one of our own routes in the worker answer the client. Raises WorkerDied, BrokenReply."""
        ask = partial(self.ask, resident, request.path, request.received, profile=profile, body=body)
        await relay_reply(request, ask, relay_class, lambda: self._scheduler.report_answer(resident))

    async def over_http(self, resident: Resident, request: Request, outgoing: bytes, relay_class: type[Relay]) -> None:
        """Have one of vLLM's own routes answer the client. Raises WorkerDied, BrokenReply."""
        connection = await self._reporting(resident, self._pool.acquire(resident.socket))
        # One that breaks proves nothing: vLLM closes the connection of a reply that it cannot complete.
        exchange = partial(connection.exchange, outgoing)
        await relay_reply(request, exchange, relay_class, lambda: self._scheduler.report_answer(resident))

    async def ask(
        self, resident: Resident, path: str, received: int, make_relay: RelayMaker, *, profile: bytes, body: bytes
    ) -> None:
        """Ask one of our own routes, over the channel. Raises WorkerDied."""
        channel = await self._reporting(resident, self._channels.least_loaded(resident.channels))
        await self._reporting(resident, channel.exchange(path, received, profile, body, make_relay))

    def report_death(self, resident: Resident) -> None:
        """Take note that nothing can be asked of this worker any more."""
        self._scheduler.report_death(resident)

    async def _reporting(self, resident: Resident, work: Awaitable[T]) -> T:
        """Do the work, and report the worker where that shows that nothing can be asked of it any more."""
        try:
            return await work
        except WorkerDied:
            self.report_death(resident)
            raise

    def end_replies(self) -> None:
        """End all replies under way, each with an error in its own format: the server stops."""
        self._pool.end(ServerStopping())
        self._channels.end(ServerStopping())

    def close(self) -> None:
        """Close the connections to the workers."""
        self._pool.close()
        self._channels.close()


async def relay_reply(
    request: Request,
    exchange: Callable[[RelayMaker], Awaitable[None]],
    relay_class: type[Relay],
    on_answer: Callable[[], None],
) -> None:
    """Run an exchange whose reply goes to the client; one that breaks in the middle ends in its own format.

    `on_answer` is called where the reply shows that the engine works.
    Raises WorkerDied, ServerStopping where nothing was sent yet, BrokenReply where the format has no room for an error.
    """
    relay: Relay | None = None

    def make_relay(on_slow: OnSlow) -> Relay:
        nonlocal relay
        relay = relay_class(request.send, request.extra_headers, on_slow)
        return relay

    try:
        await exchange(make_relay)
    except EngineError as error:
        if relay is None or not relay.status:
            raise
        ending = closing_error(request.path, relay.content_type, error, after=relay.last_byte)
        if ending is None:
            raise BrokenReply from error
        await request.send({"type": "http.response.body", "body": ending, "more_body": False})
    finally:
        request.status = relay.status if relay is not None else 0
        if relay is not None and _is_proof(relay):  # cancelled or not: see Channel.exchange
            on_answer()


def _is_proof(relay: Relay) -> bool:
    """Whether the engine works: vLLM completes an event stream even where it says in it that its engine is dead."""
    return relay.is_complete and 0 < relay.status < 500 and not relay.content_type.startswith(_EVENT_STREAM)
