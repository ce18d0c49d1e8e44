"""`/v1`: vLLM's own OpenAI, Responses, Anthropic and rerank routes under our names, with Ollama's habits (§5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import orjson

from vllama.asgi import cancelled_on_disconnect
from vllama.errors import ModelNotFound, NamedModelNotFound, RequestError, WorkerDied
from vllama.gateway.bodies import model_of_form, read_form_body, read_json_body
from vllama.gateway.refusal import Kept, Refused, V1Relay
from vllama.gateway.relay import Header
from vllama.gateway.replies import send_refusal
from vllama.gateway.routing import Handler, Request, Router
from vllama.gateway.upstream import request_bytes
from vllama.gateway.workers import Workers
from vllama.ollama.embedding import OpenAIEmbedRequest, check_embedding
from vllama.ollama.openai.call import Call
from vllama.ollama.openai.chat import ChatCompletion
from vllama.ollama.openai.completions import Completion
from vllama.ollama.openai.messages import AnthropicMessage
from vllama.ollama.openai.own import CLASSIFY, RERANK, TOKENIZE, TRANSCRIBE, VllmCall
from vllama.ollama.openai.responses import Response
from vllama.scheduler.resident import Resident
from vllama.scheduler.serving import Serving
from vllama.store.manifest import Manifest
from vllama.worker.profile import Profile
from vllama.worker.prompt import PROMPT
from vllama.worker.spoken import HEADER, SpokenModel

_JSON = b"application/json"
# vLLM gets the body as we wrote it; a name of its own that a client may send must not pass for ours.
_OURS = frozenset({HEADER, b"content-type", b"content-encoding"})

Parse = Callable[[bytes], Call]


class OpenAI:
    """The routes of `/v1` that need a worker, and vLLM's rerank, score, classify and tokenize beside them."""

    def __init__(self, workers: Workers, serving: Serving) -> None:
        self._workers = workers
        self._serving = serving

    def add_routes(self, router: Router) -> None:
        """All that vLLM serves and clients may use. Its routes for operators and developers are not among them."""
        for path, parse in _PARSERS.items():
            router.add("POST", path, self._answering(parse))
        for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
            router.add("POST", path, self.transcribe)
        router.add("POST", "/v1/completions", self.complete)
        router.add("POST", "/v1/embeddings", self.embed)

    def _answering(self, parse: Parse) -> Handler:
        async def handler(request: Request) -> None:
            body = await read_json_body(request)
            async with cancelled_on_disconnect(request.receive):
                call = parse(body)
                manifest, profile = self._model_for(call)
                outgoing = _dumped(call.for_vllm(profile))
                spoken = _spoken(call, profile)
                async with self._workers.lease(manifest, None) as resident:
                    await self._relay(request, resident, _written(request, spoken, outgoing))

        return handler

    async def complete(self, request: Request) -> None:
        """`POST /v1/completions`: the prompt that `/api/generate` would make of it, unless it is raw (§5.2)."""
        body = await read_json_body(request)
        async with cancelled_on_disconnect(request.receive):
            call = Completion.parse(body)
            manifest, profile = self._model_for(call)
            outgoing = call.for_vllm(profile)
            async with self._workers.lease(manifest, None) as resident:
                try:
                    if not call.raw:
                        outgoing["prompt"] = await self._prompt(request, resident, call, profile)
                except Refused as refusal:
                    await self._tell(request, resident, refusal)
                else:
                    written = _written(request, _spoken(call, profile), _dumped(outgoing))
                    await self._relay(request, resident, written)

    async def embed(self, request: Request) -> None:
        """`POST /v1/embeddings`: our own route in the worker, which can do what Ollama does (contract §5.4)."""
        body = await read_json_body(request)
        async with cancelled_on_disconnect(request.receive):
            parsed = OpenAIEmbedRequest.parse(body)
            try:
                manifest = self._workers.resolve(parsed.model) if parsed.model else None
            except ModelNotFound:
                raise NamedModelNotFound(parsed.model, ", try pulling it first") from None
            if manifest is None:
                raise RequestError("model is required")
            profile = self._profile(manifest)
            check_embedding(parsed, profile.capabilities)
            async with self._workers.lease(manifest, None) as resident:
                try:
                    await self._workers.over_channel(resident, request, profile.to_json(), body, V1Relay)
                except Refused as refusal:
                    await self._tell(request, resident, refusal)

    async def transcribe(self, request: Request) -> None:
        """`POST /v1/audio/…`: a form, which goes to vLLM as it came (contract §5.6)."""
        body = await read_form_body(request)
        async with cancelled_on_disconnect(request.receive):
            call = VllmCall(await model_of_form(request, body), {}, task=TRANSCRIBE)
            manifest, profile = self._model_for(call)
            spoken = _spoken(call, profile)
            async with self._workers.lease(manifest, None) as resident:
                content_type = request.headers[b"content-type"]
                await self._relay(request, resident, _written(request, spoken, body, content_type))

    def _profile(self, manifest: Manifest) -> Profile:
        return self._serving.profile(manifest, self._serving.plan(manifest))

    def _model_for(self, call: Call) -> tuple[Manifest, Profile]:
        """The model that the call names, once it is known to be able to answer it."""
        if not call.model:
            raise RequestError("model is required")
        manifest = self._workers.resolve(call.model)
        profile = self._profile(manifest)
        call.check(profile)
        return manifest, profile

    async def _prompt(self, request: Request, resident: Resident, call: Completion, profile: Profile) -> list[int]:
        """The prompt of a completion, as our own route in the worker makes it. Raises Refused."""
        kept: Kept | None = None

        def keep(on_slow: Callable[[bool], None]) -> Kept:
            nonlocal kept
            kept = Kept(on_slow)
            return kept

        asked = orjson.dumps(call.as_generate())
        await self._workers.ask(resident, PROMPT, request.received, keep, profile=profile.to_json(), body=asked)
        assert kept is not None  # noqa: S101 - an exchange makes its relay
        tokens: list[int] = orjson.loads(kept.content)
        return tokens

    async def _relay(self, request: Request, resident: Resident, outgoing: bytes) -> None:
        try:
            await self._workers.over_http(resident, request, outgoing, V1Relay)
        except Refused as refusal:
            await self._tell(request, resident, refusal)

    async def _tell(self, request: Request, resident: Resident, refusal: Refused) -> None:
        """Tell the client why the worker refused. Raises WorkerDied where that is because its engine is dead."""
        if refusal.engine_is_dead:
            self._workers.report_death(resident)
            raise WorkerDied from refusal
        await send_refusal(request, refusal.status, str(refusal), refusal.param)


def _spoken(call: Call, profile: Profile) -> SpokenModel:
    return SpokenModel(call.model, profile.chat_template, call.beyond_the_api(profile), profile.adapter)


def _dumped(body: dict[str, Any]) -> bytes:
    """The body as JSON. Raises RequestError where it is nested deeper than vLLM would read it."""
    try:
        return orjson.dumps(body)
    except TypeError as error:
        raise RequestError(f"the request cannot be passed on: {error}") from None


def _written(request: Request, spoken: SpokenModel, body: bytes, content_type: bytes = _JSON) -> bytes:
    """The request as the worker gets it: the client's own headers, but for those that are about our body."""

    def headers() -> Iterator[Header]:
        yield from ((name, value) for name, value in request.headers.items() if name not in _OURS)
        yield b"content-type", content_type  # vLLM insists on it; Ollama's clients may have sent another
        yield spoken.to_header()

    return request_bytes(request.method, request.target, headers(), body)


_PARSERS: dict[str, Parse] = {
    "/v1/chat/completions": ChatCompletion.parse,
    "/v1/responses": Response.parse,
    "/v1/messages": AnthropicMessage.parse,
    "/v1/messages/count_tokens": AnthropicMessage.parse_count,
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), partial(VllmCall.parse, task=RERANK)),
    **dict.fromkeys(("/score", "/v1/score"), partial(VllmCall.parse, task=RERANK)),
    "/classify": partial(VllmCall.parse, task=CLASSIFY),
    **dict.fromkeys(("/tokenize", "/detokenize"), partial(VllmCall.parse, task=TOKENIZE)),
}
