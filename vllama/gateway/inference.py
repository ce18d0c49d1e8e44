"""Requests that a model answers: resolved, checked, leased and forwarded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from vllama.asgi import cancelled_on_disconnect, read_body
from vllama.errors import CloudDisabled, ModelNotFound, NamedModelNotFound, RequestError, WorkerDied
from vllama.gateway.channel import Channels
from vllama.gateway.relay import OnSlow, Relay, RelayMaker
from vllama.gateway.replies import BrokenReply, closing_error, send_record
from vllama.gateway.routing import Request
from vllama.gateway.upstream import Pool, request_bytes
from vllama.names import ModelName
from vllama.ollama import checks
from vllama.ollama.embedding import EmbeddingsRequest, EmbedRequest, check_embedding
from vllama.ollama.gojson import Fields, decode, known_fields
from vllama.ollama.replies import ChatReplies, Clock, GenerateReplies, Replies
from vllama.ollama.requests import ChatRequest, GenerateRequest
from vllama.scheduler.scheduler import Resident, Scheduler
from vllama.scheduler.serving import Serving
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore

_ENVELOPE = known_fields("model")
T = TypeVar("T")


class Inference:
    """The routes that need a worker."""

    def __init__(self, store: ModelStore, scheduler: Scheduler, serving: Serving) -> None:
        self._store = store
        self._serving = serving
        self._scheduler = scheduler
        self._pool = Pool()
        self._channels = Channels()
        self._clock = Clock()

    async def generate(self, request: Request) -> None:
        """`POST /api/generate`, in Ollama's order of checks (contract §1.2)."""
        body = await read_body(request.receive)
        async with cancelled_on_disconnect(request.receive):
            parsed = GenerateRequest.parse(body)
            if not parsed.model:
                raise ModelNotFound("")
            await self._native(request, parsed, body, GenerateReplies(parsed.model, self._clock))

    async def chat(self, request: Request) -> None:
        """`POST /api/chat` (contract §1.3)."""
        body = await read_body(request.receive)
        async with cancelled_on_disconnect(request.receive):
            parsed = ChatRequest.parse(body)
            if not parsed.model:
                raise RequestError("model is required")
            await self._native(request, parsed, body, ChatReplies(parsed.model, self._clock))

    async def embed(self, request: Request) -> None:
        """`POST /api/embed` (contract §1.4)."""
        body = await read_body(request.receive)
        async with cancelled_on_disconnect(request.receive):
            parsed = EmbedRequest.parse(body)
            if not parsed.model:
                raise ModelNotFound("")
            await self._embed(request, parsed, body)

    async def embeddings(self, request: Request) -> None:
        """`POST /api/embeddings` (contract §1.5)."""
        body = await read_body(request.receive)
        async with cancelled_on_disconnect(request.receive):
            parsed = EmbeddingsRequest.parse(body)
            if not parsed.model:
                raise RequestError("model is required")
            await self._embed(request, parsed, body)

    async def openai(self, request: Request) -> None:
        """`POST /v1/…`: whatever vLLM serves there, under our names (contract §5)."""
        body = await read_body(request.receive)
        async with cancelled_on_disconnect(request.receive):
            model = Fields(decode(body), "Request", _ENVELOPE).string("model")
            if not model:
                raise RequestError("model is required")
            # vLLM insists on the type of what we just read as JSON; Ollama's clients may have sent another.
            request.headers = {**request.headers, b"content-type": b"application/json"}
            outgoing = request_bytes(request.method, request.target, request.headers.items(), body)
            async with self._scheduler.lease(self._resolve(model), None) as resident:
                connection = await self._reporting(resident, self._pool.acquire(resident.socket))
                # One that breaks proves nothing: vLLM closes the connection of a reply that it cannot complete.
                await _relay(request, lambda make_relay: connection.exchange(outgoing, make_relay))

    def _resolve(self, text: str) -> Manifest:
        """The manifest behind what the client typed. Raises InvalidName, CloudDisabled, ModelNotFound."""
        name = ModelName.parse(text)
        if name.is_cloud:
            raise CloudDisabled
        try:
            return self._store.get(name)
        except ModelNotFound:
            raise ModelNotFound(text) from None

    async def _native(
        self, request: Request, parsed: GenerateRequest | ChatRequest, body: bytes, replies: Replies
    ) -> None:
        manifest = self._resolve(parsed.model)
        if parsed.is_empty and parsed.keep_alive == 0:
            self._scheduler.unload(manifest)
            await send_record(request, replies.final("unload"))
            return
        served = self._serving.plan(manifest)
        if isinstance(parsed, GenerateRequest):
            checks.check_generate(parsed, served.capabilities, manifest.name.full)
        else:
            checks.check_chat(parsed, served.capabilities, manifest.name.full)
        profile = self._serving.profile(manifest, served).to_json()
        if parsed.is_empty:
            await self._load(manifest, parsed.keep_alive)
            await send_record(request, replies.final("load"))
            return
        await self._have_answered(request, manifest, profile, parsed.keep_alive, body)

    async def _embed(self, request: Request, parsed: EmbedRequest, body: bytes) -> None:
        """Without a text to embed it only loads; with a keep_alive of 0 as well, what was loaded goes."""
        try:
            manifest = self._resolve(parsed.model)
        except ModelNotFound:
            raise NamedModelNotFound(parsed.model, ", try pulling it first") from None
        if not parsed.inputs and parsed.keep_alive == 0:
            self._scheduler.unload(manifest)
            await send_record(request, parsed.reply(()))
            return
        served = self._serving.plan(manifest)
        check_embedding(parsed, served.capabilities)
        profile = self._serving.profile(manifest, served).to_json()
        if not parsed.inputs:
            await self._load(manifest, parsed.keep_alive)
            await send_record(request, parsed.reply(()))
            return
        await self._have_answered(request, manifest, profile, parsed.keep_alive, body)

    async def _load(self, manifest: Manifest, keep_alive: int | None) -> None:
        async with self._scheduler.lease(manifest, keep_alive):
            pass

    async def _have_answered(
        self, request: Request, manifest: Manifest, profile: bytes, keep_alive: int | None, body: bytes
    ) -> None:
        """Send the body, as it came, to the model's worker, and the worker's reply to the client."""
        async with self._scheduler.lease(manifest, keep_alive) as resident:
            channel = await self._reporting(resident, self._channels.least_loaded(resident.channels))

            def exchange(make_relay: RelayMaker) -> Awaitable[None]:
                answered = channel.exchange(request.path, request.received, profile, body, make_relay)
                return self._reporting(resident, answered)

            await _relay(request, exchange)

    async def _reporting(self, resident: Resident, work: Awaitable[T]) -> T:
        """Do the work, and report the worker where that shows that nothing can be asked of it any more."""
        try:
            return await work
        except WorkerDied:
            self._scheduler.report_death(resident)
            raise

    def close(self) -> None:
        """Close the connections to the workers."""
        self._pool.close()
        self._channels.close()


async def _relay(request: Request, exchange: Callable[[RelayMaker], Awaitable[None]]) -> None:
    """Run an exchange whose reply goes to the client; one that breaks in the middle ends in its own format.

    Raises WorkerDied where nothing was sent yet, BrokenReply where the format has no room for an error.
    """
    relay: Relay | None = None

    def make_relay(on_slow: OnSlow) -> Relay:
        nonlocal relay
        relay = Relay(request.send, request.extra_headers, on_slow)
        return relay

    try:
        await exchange(make_relay)
    except WorkerDied as error:
        if relay is None or not relay.status:
            raise
        ending = closing_error(request.path, relay.content_type, str(error), after=relay.last_byte)
        if ending is None:
            raise BrokenReply from error
        await request.send({"type": "http.response.body", "body": ending, "more_body": False})
    finally:
        request.status = relay.status if relay is not None else 0
