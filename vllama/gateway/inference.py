"""Ollama's native inference routes: resolve, check, lease and forward."""

from __future__ import annotations

from functools import partial

from vllama.asgi import cancelled_on_disconnect
from vllama.durations import Nanoseconds
from vllama.errors import ModelNotFound, NamedModelNotFound, RequestError
from vllama.gateway.bodies import read_body
from vllama.gateway.dispatcher import Dispatcher
from vllama.gateway.replies import send_record
from vllama.gateway.routing import Request
from vllama.gateway.schema_preparation import SchemaPreparation
from vllama.ollama import checks
from vllama.ollama.embedding import EmbeddingsRequest, EmbedRequest, check_embedding
from vllama.ollama.formats import relaxed_headers
from vllama.ollama.replies import ChatReplies, Clock, GenerateReplies, Replies
from vllama.ollama.requests import ChatRequest, GenerateRequest
from vllama.protocol import checked_record
from vllama.protocol.frames import Form
from vllama.scheduler.serving import Serving
from vllama.store.manifest import Manifest


class Inference:
    """Ollama's native routes that need a worker."""

    def __init__(self, dispatcher: Dispatcher, serving: Serving, schemas: SchemaPreparation) -> None:
        self._dispatcher = dispatcher
        self._serving = serving
        self._schemas = schemas
        self._clock = Clock()

    async def generate(self, request: Request) -> None:
        """Answer `POST /api/generate`, in Ollama's order of checks (contract §1.2)."""
        body = await read_body(request)
        async with cancelled_on_disconnect(request.receive):
            parsed = GenerateRequest.parse(body)
            if not parsed.model:
                raise ModelNotFound("")
            await self._native(request, parsed, body, GenerateReplies(parsed.model, self._clock))

    async def chat(self, request: Request) -> None:
        """Answer `POST /api/chat` (contract §1.3)."""
        body = await read_body(request)
        async with cancelled_on_disconnect(request.receive):
            parsed = ChatRequest.parse(body)
            if not parsed.model:
                raise RequestError("model is required")
            await self._native(request, parsed, body, ChatReplies(parsed.model, self._clock))

    async def embed(self, request: Request) -> None:
        """Answer `POST /api/embed` (contract §1.4)."""
        body = await read_body(request)
        async with cancelled_on_disconnect(request.receive):
            parsed = EmbedRequest.parse(body)
            if not parsed.model:
                raise ModelNotFound("")
            await self._embed(request, parsed, body)

    async def embeddings(self, request: Request) -> None:
        """Answer `POST /api/embeddings` (contract §1.5)."""
        body = await read_body(request)
        async with cancelled_on_disconnect(request.receive):
            parsed = EmbeddingsRequest.parse(body)
            if not parsed.model:
                raise RequestError("model is required")
            await self._embed(request, parsed, body)

    async def _native(
        self, request: Request, parsed: GenerateRequest | ChatRequest, body: bytes, replies: Replies
    ) -> None:
        manifest = self._dispatcher.resolve(parsed.model, request)
        if parsed.is_empty and parsed.keep_alive == 0:
            self._dispatcher.unload(manifest)
            await send_record(request, replies.final("unload"))
            return
        served = self._serving.served(manifest, recheck=not self._dispatcher.is_ready(manifest))
        if isinstance(parsed, GenerateRequest):
            check = partial(checks.check_generate, parsed, served.capabilities, manifest.name.full)
        else:
            check = partial(checks.check_chat, parsed, served.capabilities, manifest.name.full)
        if isinstance(parsed.format, dict):
            await self._schemas.settled(check)
        else:
            check()
        self._serving.profile(manifest)  # refuses what could not be served before anything is loaded
        if parsed.is_empty:
            await self._load(manifest, parsed.keep_alive)
            await send_record(request, replies.final("load"))
            return
        request.extra_headers += relaxed_headers(parsed.format)
        record = checked_record.encode(parsed) if _has_images(parsed) else None
        form = Form.RECORD if record else Form.CHECKED
        await self._have_answered(request, manifest, parsed.keep_alive, record or body, form)

    async def _embed(self, request: Request, parsed: EmbedRequest, body: bytes) -> None:
        """Embed texts; without texts only load the model, or unload it with a keep_alive of 0."""
        try:
            manifest = self._dispatcher.resolve(parsed.model, request)
        except ModelNotFound:
            raise NamedModelNotFound(parsed.model, ", try pulling it first") from None
        if not parsed.inputs and parsed.keep_alive == 0:
            self._dispatcher.unload(manifest)
            await send_record(request, parsed.reply(()))
            return
        manifest = self._serving.embedder(manifest)
        served = self._serving.served(manifest, recheck=not self._dispatcher.is_ready(manifest))
        check_embedding(parsed, served.capabilities)
        self._serving.profile(manifest)  # refuses what could not be served before anything is loaded
        if not parsed.inputs:
            await self._load(manifest, parsed.keep_alive)
            await send_record(request, parsed.reply(()))
            return
        await self._have_answered(request, manifest, parsed.keep_alive, body, Form.CHECKED)

    async def _load(self, manifest: Manifest, keep_alive: Nanoseconds | None) -> None:
        async with self._dispatcher.lease(manifest, keep_alive):
            pass

    async def _have_answered(
        self, request: Request, manifest: Manifest, keep_alive: Nanoseconds | None, body: bytes, form: Form
    ) -> None:
        """Send the checked body to the model's worker, and the worker's reply to the client."""
        profile = self._serving.profile_json(manifest)
        async with self._dispatcher.lease(manifest, keep_alive, request) as resident:
            await self._dispatcher.over_channel(resident, request, profile, body, form=form)


def _has_images(request: GenerateRequest | ChatRequest) -> bool:
    if isinstance(request, GenerateRequest):
        return bool(request.images)
    return any(message.images for message in request.messages)
