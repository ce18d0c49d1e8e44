"""`/v1`: vLLM's own OpenAI, Responses, Anthropic and rerank routes under our names, with Ollama's behaviour (§5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import orjson

from vllama.asgi import cancelled_on_disconnect
from vllama.errors import ModelNotFound, NamedModelNotFound, RequestError, WorkerDied
from vllama.gateway.bodies import model_of_form, read_form_body, read_json_body
from vllama.gateway.choices import Choices, put_last, sequences
from vllama.gateway.dispatcher import Dispatcher
from vllama.gateway.metering import CountedV1Relay
from vllama.gateway.refusal import Kept, Refused, V1Relay
from vllama.gateway.relay import Header
from vllama.gateway.replies import send_refusal
from vllama.gateway.routing import Handler, Request, Routes
from vllama.gateway.schema_preparation import SchemaPreparation
from vllama.gateway.upstream import request_bytes
from vllama.ollama.embedding import OpenAIEmbedRequest, check_embedding
from vllama.ollama.openai.call import Call
from vllama.ollama.openai.chat import ChatCompletion
from vllama.ollama.openai.completions import Completion
from vllama.ollama.openai.messages import AnthropicMessage
from vllama.ollama.openai.own import CLASSIFY, RERANK, TOKENIZE, TRANSCRIBE, DecisionCall, VllmCall
from vllama.ollama.openai.responses import Response
from vllama.protocol.frames import Form
from vllama.protocol.model_header import HEADER, ModelHeader
from vllama.protocol.paths import PROMPT
from vllama.protocol.profile import Profile
from vllama.scheduler.resident import Resident
from vllama.scheduler.serving import Serving
from vllama.store.manifest import Manifest

_JSON = b"application/json"
# vLLM gets our body; clients must not be able to set our internal header.
_OURS = frozenset({HEADER, b"content-type", b"content-encoding"})

Parse = Callable[[bytes], Call]


class OpenAI:
    """The routes of `/v1` that need a worker, and vLLM's rerank, score, classify and tokenize beside them."""

    def __init__(self, dispatcher: Dispatcher, serving: Serving, choices: Choices, schemas: SchemaPreparation) -> None:
        self._dispatcher = dispatcher
        self._serving = serving
        self._choices = choices
        self._schemas = schemas

    def add_routes(self, routes: Routes) -> None:
        """Add vLLM's routes for clients, without those for operators and developers."""
        for path, parse in _PARSERS.items():
            routes.add("POST", path, self._answering(parse))
        for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
            routes.add("POST", path, self.transcribe)
        routes.add("POST", "/v1/completions", self.complete)
        routes.add("POST", "/v1/embeddings", self.embed)

    def _answering(self, parse: Parse) -> Handler:
        async def handler(request: Request) -> None:
            body = await read_json_body(request)
            async with cancelled_on_disconnect(request.receive):
                call = await self._schemas.settled(partial(parse, body))
                manifest, profile = self._model_for(request, call)
                request.extra_headers += call.reply_headers
                body_for_vllm = call.for_vllm(profile)
                number = self._counted(manifest, body_for_vllm)
                outgoing = _dumped(body_for_vllm)
                spoken = _spoken(request, call, profile)
                async with self._dispatcher.lease(manifest, call.keep_alive, request) as resident:
                    written = _written(request, spoken, outgoing)
                    async with self._choices.held(resident.socket, number):
                        await self._relay(request, resident, written)

        return handler

    async def complete(self, request: Request) -> None:
        """Answer `POST /v1/completions` with the prompt of `/api/generate`, unless it is raw (§5.2)."""
        body = await read_json_body(request)
        async with cancelled_on_disconnect(request.receive):
            call = await self._schemas.settled(partial(Completion.parse, body))
            manifest, profile = self._model_for(request, call)
            request.extra_headers += call.reply_headers
            outgoing = call.for_vllm(profile)
            number = self._counted(manifest, outgoing)
            async with self._dispatcher.lease(manifest, None, request) as resident:
                try:
                    if not call.raw:
                        profile_json = self._serving.profile_json(manifest)
                        outgoing["prompt"] = await self._prompt(request, resident, call, profile_json)
                except Refused as refusal:
                    await self._tell(request, resident, refusal)
                else:
                    written = _written(request, _spoken(request, call, profile), _dumped(outgoing))
                    async with self._choices.held(resident.socket, number):
                        await self._relay(request, resident, written)

    async def embed(self, request: Request) -> None:
        """Answer `POST /v1/embeddings` with our own route in the worker, as Ollama does (contract §5.4)."""
        body = await read_json_body(request)
        async with cancelled_on_disconnect(request.receive):
            parsed = OpenAIEmbedRequest.parse(body)
            try:
                manifest = self._dispatcher.resolve(parsed.model, request) if parsed.model else None
            except ModelNotFound:
                raise NamedModelNotFound(parsed.model, ", try pulling it first") from None
            if manifest is None:
                raise RequestError("model is required")
            manifest = self._serving.embedder(manifest)
            check_embedding(parsed, self._profile(manifest).capabilities)
            profile_json = self._serving.profile_json(manifest)
            async with self._dispatcher.lease(manifest, None, request) as resident:
                try:
                    await self._dispatcher.over_channel(
                        resident, request, profile_json, body, form=Form.CHECKED, relay_class=V1Relay
                    )
                except Refused as refusal:
                    await self._tell(request, resident, refusal)

    async def transcribe(self, request: Request) -> None:
        """Answer `POST /v1/audio/…`: forward the form to vLLM unchanged (contract §5.6)."""
        body = await read_form_body(request)
        async with cancelled_on_disconnect(request.receive):
            call = VllmCall(await model_of_form(request, body), {}, task=TRANSCRIBE)
            manifest, profile = self._model_for(request, call)
            spoken = _spoken(request, call, profile)
            async with self._dispatcher.lease(manifest, None, request) as resident:
                content_type = request.headers[b"content-type"]
                await self._relay(request, resident, _written(request, spoken, body, content_type))

    def _profile(self, manifest: Manifest) -> Profile:
        self._serving.served(manifest, recheck=not self._dispatcher.is_ready(manifest))
        return self._serving.profile(manifest)

    def _model_for(self, request: Request, call: Call) -> tuple[Manifest, Profile]:
        """Return the model that the call names, after checking its capabilities."""
        if not call.model:
            raise RequestError("model is required")
        manifest = self._dispatcher.resolve(call.model, request)
        profile = self._profile(manifest)
        call.check(profile)
        return manifest, profile

    def _counted(self, manifest: Manifest, body: dict[str, Any]) -> int:
        """Return the number of replies that a body asks for. Raises RequestError if they are too many."""
        number = sequences(body)
        self._choices.check(number)
        if self._serving.has_priorities(manifest):
            put_last(body, number)
        return number

    async def _prompt(self, request: Request, resident: Resident, call: Completion, profile: bytes) -> list[int]:
        """Return the prompt of a completion from our own route in the worker. Raises Refused."""
        kept: Kept | None = None

        def keep(on_slow: Callable[[bool], None]) -> Kept:
            nonlocal kept
            kept = Kept(on_slow)
            return kept

        asked = orjson.dumps(call.as_generate())
        await self._dispatcher.ask(
            resident, PROMPT, request.received, keep, profile=profile, body=asked, form=Form.UNCHECKED
        )
        assert kept is not None  # noqa: S101 - an exchange makes its relay
        tokens: list[int] = orjson.loads(kept.content)
        return tokens

    async def _relay(self, request: Request, resident: Resident, outgoing: bytes) -> None:
        try:
            relay_class = V1Relay if request.meter is None else CountedV1Relay
            await self._dispatcher.over_http(resident, request, outgoing, relay_class)
        except Refused as refusal:
            await self._tell(request, resident, refusal)

    async def _tell(self, request: Request, resident: Resident, refusal: Refused) -> None:
        """Send the worker's refusal to the client. Raises WorkerDied if its engine is dead."""
        if refusal.engine_is_dead:
            self._dispatcher.report_death(resident)
            raise WorkerDied from refusal
        await send_refusal(request, refusal)


def _spoken(request: Request, call: Call, profile: Profile) -> ModelHeader:
    is_counted = request.meter is not None
    return ModelHeader(call.model, profile.chat_template, call.beyond_the_api(profile), profile.adapter, is_counted)


def _dumped(body: dict[str, Any]) -> bytes:
    """Return the body as JSON. Raises RequestError if it is nested too deeply for vLLM."""
    try:
        return orjson.dumps(body)
    except TypeError as error:
        raise RequestError(f"cannot forward the request: {error}") from None


def _written(request: Request, spoken: ModelHeader, body: bytes, content_type: bytes = _JSON) -> bytes:
    """Return the request for the worker, with the client's headers except those about its body."""

    def headers() -> Iterator[Header]:
        yield from ((name, value) for name, value in request.headers.items() if name not in _OURS)
        yield b"content-type", content_type  # vLLM requires it; Ollama's clients may have sent another
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
    "/v1/systemone": DecisionCall.parse,
    **dict.fromkeys(("/tokenize", "/detokenize"), partial(VllmCall.parse, task=TOKENIZE)),
}
