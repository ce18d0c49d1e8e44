"""Requests that a model answers: resolved, checked, leased and forwarded."""

from __future__ import annotations

from vllama.asgi import cancelled_on_disconnect, read_body
from vllama.errors import ModelNotFound, NamedModelNotFound, RequestError
from vllama.gateway.replies import send_record
from vllama.gateway.routing import Request
from vllama.gateway.workers import Workers
from vllama.ollama import checks
from vllama.ollama.embedding import EmbeddingsRequest, EmbedRequest, check_embedding
from vllama.ollama.replies import ChatReplies, Clock, GenerateReplies, Replies
from vllama.ollama.requests import ChatRequest, GenerateRequest
from vllama.scheduler.serving import Serving
from vllama.store.manifest import Manifest


class Inference:
    """Ollama's native routes that need a worker."""

    def __init__(self, workers: Workers, serving: Serving) -> None:
        self._workers = workers
        self._serving = serving
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

    async def _native(
        self, request: Request, parsed: GenerateRequest | ChatRequest, body: bytes, replies: Replies
    ) -> None:
        manifest = self._workers.resolve(parsed.model)
        if parsed.is_empty and parsed.keep_alive == 0:
            self._workers.unload(manifest)
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
            manifest = self._workers.resolve(parsed.model)
        except ModelNotFound:
            raise NamedModelNotFound(parsed.model, ", try pulling it first") from None
        if not parsed.inputs and parsed.keep_alive == 0:
            self._workers.unload(manifest)
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
        async with self._workers.lease(manifest, keep_alive):
            pass

    async def _have_answered(
        self, request: Request, manifest: Manifest, profile: bytes, keep_alive: int | None, body: bytes
    ) -> None:
        """Send the body, as it came, to the model's worker, and the worker's reply to the client."""
        async with self._workers.lease(manifest, keep_alive) as resident:
            await self._workers.over_channel(resident, request, profile, body)
