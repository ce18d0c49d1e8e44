"""Requests that a model answers: resolved, checked, leased and forwarded."""

from __future__ import annotations

from typing import Any

from vllama.asgi import cancelled_on_disconnect, read_body
from vllama.errors import CloudDisabled, ModelNotFound, RequestError, WorkerDied
from vllama.gateway.replies import BrokenReply, closing_error, send_record
from vllama.gateway.routing import Request
from vllama.gateway.upstream import Header, Pool, request_bytes
from vllama.names import ModelName
from vllama.ollama import checks
from vllama.ollama.gojson import Fields, decode, known_fields
from vllama.ollama.replies import ChatReplies, Clock, GenerateReplies, Replies
from vllama.ollama.requests import ChatRequest, GenerateRequest
from vllama.scheduler.scheduler import Scheduler
from vllama.store.description import describe
from vllama.store.manifest import Manifest
from vllama.store.model_store import ModelStore
from vllama.worker.timing import RECEIVED_HEADER

_ENVELOPE = known_fields("model")
_FORGED = frozenset({RECEIVED_HEADER})


class Inference:
    """The routes that need a worker."""

    def __init__(self, store: ModelStore, scheduler: Scheduler) -> None:
        self._store = store
        self._scheduler = scheduler
        self._pool = Pool()
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

    async def openai(self, request: Request) -> None:
        """`POST /v1/…`: whatever vLLM serves there, under our names (contract §5)."""
        body = await read_body(request.receive)
        async with cancelled_on_disconnect(request.receive):
            model = Fields(decode(body), "Request", _ENVELOPE).string("model")
            if not model:
                raise RequestError("model is required")
            # vLLM insists on the type of what we just read as JSON; Ollama's clients may have sent another.
            request.headers = {**request.headers, b"content-type": b"application/json"}
            await self._forward(request, self._resolve(model), None, body)

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
        capabilities = describe(manifest).capabilities
        if isinstance(parsed, GenerateRequest):
            checks.check_generate(parsed, capabilities, manifest.name.full)
        else:
            checks.check_chat(parsed, capabilities, manifest.name.full)
        if parsed.is_empty:
            async with self._scheduler.lease(manifest, parsed.keep_alive):
                pass
            await send_record(request, replies.final("load"))
            return
        await self._forward(request, manifest, parsed.keep_alive, body)

    async def _forward(self, request: Request, manifest: Manifest, keep_alive: int | None, body: bytes) -> None:
        headers: list[Header] = [header for header in request.headers.items() if header[0] not in _FORGED]
        headers.append((RECEIVED_HEADER, b"%d" % request.received))
        outgoing = request_bytes(request.method, request.target, headers, body)
        async with self._scheduler.lease(manifest, keep_alive) as resident:
            connection = await self._pool.acquire(resident.socket)
            try:
                await connection.exchange(outgoing, request.send, request.extra_headers)
            except WorkerDied as error:
                if not connection.started:
                    raise
                await _end_stream(request, connection.content_type, connection.last_byte, str(error))
            request.status = connection.status

    def close(self) -> None:
        """Close the connections to the workers."""
        self._pool.close()


async def _end_stream(request: Request, content_type: bytes, last_byte: bytes, message: str) -> None:
    """End a stream whose worker died: with an error in its format, or by breaking the connection off."""
    ending = closing_error(request.path, content_type, message)
    if ending is None:
        raise BrokenReply
    if last_byte not in {b"", b"\n"}:
        ending = b"\n" + ending
    final: dict[str, Any] = {"type": "http.response.body", "body": ending, "more_body": False}
    await request.send(final)
