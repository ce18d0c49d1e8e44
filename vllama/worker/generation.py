"""One request's way through the engine, for `/api/generate` and `/api/chat` alike."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from vllama.asgi import Receive, Scope, Send, cancelled_on_disconnect, read_body
from vllama.errors import EngineError, RequestError, VllamaError
from vllama.ollama import checks, options
from vllama.ollama.replies import ChatReplies, Clock, GenerateReplies, Replies, TokenLogprob
from vllama.ollama.requests import ChatRequest, GenerateRequest
from vllama.ollama.status import JSON, NDJSON, error_body, error_line, status_of
from vllama.worker import conversation
from vllama.worker.engine import Engine, Prompt, as_our_error, token_logprobs
from vllama.worker.profile import Profile
from vllama.worker.sink import HttpSink, Sink
from vllama.worker.timing import Stopwatch

log = logging.getLogger(__name__)

MOST_CONTEXT_IDS = 16_384
"""`context` is left out beyond this many token ids: line readers choke on lines of over 128 KB (contract §1.1)."""

Request = GenerateRequest | ChatRequest


class Dialect(Protocol):
    """What differs between the two routes."""

    def parse(self, body: bytes) -> Request:
        """Decode a body. Raises RequestError."""

    def check(self, request: Any, capabilities: Collection[str], full_name: str) -> None:
        """Raise where the model cannot do it."""

    def replies(self, model: str, clock: Clock) -> Replies:
        """The writer of this route's records."""

    async def render(self, request: Any, engine: Engine, profile: Profile) -> Prompt:
        """Make the prompt."""

    def returns_context(self, request: Any) -> bool:
        """Whether the final record carries the token ids."""


class Generate:
    """`/api/generate`."""

    def parse(self, body: bytes) -> GenerateRequest:
        """Decode a body. Raises RequestError."""
        return GenerateRequest.parse(body)

    def check(self, request: GenerateRequest, capabilities: Collection[str], full_name: str) -> None:
        """Raise where the model cannot do it."""
        checks.check_generate(request, capabilities, full_name)

    def replies(self, model: str, clock: Clock) -> Replies:
        """The writer of this route's records."""
        return GenerateReplies(model, clock)

    async def render(self, request: GenerateRequest, engine: Engine, profile: Profile) -> Prompt:
        """Make the prompt: raw text, or a conversation of one turn; `context` stands before it verbatim."""
        if request.raw or not engine.has_chat_template:
            return await engine.render_text(request.prompt)
        prompt = await engine.render_conversation(conversation.of_generate(request, profile))
        if request.context:
            prompt["prompt_token_ids"] = [*request.context, *prompt["prompt_token_ids"]]
            prompt.pop("prompt", None)
        return prompt

    def returns_context(self, request: GenerateRequest) -> bool:
        """Whether the final record carries the token ids."""
        return not request.raw


class Chat:
    """`/api/chat`."""

    def parse(self, body: bytes) -> ChatRequest:
        """Decode a body. Raises RequestError."""
        return ChatRequest.parse(body)

    def check(self, request: ChatRequest, capabilities: Collection[str], full_name: str) -> None:
        """Raise where the model cannot do it."""
        checks.check_chat(request, capabilities, full_name)

    def replies(self, model: str, clock: Clock) -> Replies:
        """The writer of this route's records."""
        return ChatReplies(model, clock)

    async def render(self, request: ChatRequest, engine: Engine, profile: Profile) -> Prompt:
        """Make the prompt; without a chat template the messages stand one after the other."""
        if engine.has_chat_template:
            return await engine.render_conversation(conversation.of_chat(request, profile))
        return await engine.render_text("\n".join(message.content for message in request.messages))

    def returns_context(self, request: ChatRequest) -> bool:
        """Whether the final record carries the token ids."""
        del request
        return False


@dataclass(frozen=True, slots=True)
class Generation:
    """A request that is ready for the engine."""

    request: Request
    replies: Replies
    prompt: Prompt
    params: Any
    returns_context: bool
    stopwatch: Stopwatch

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt's token ids."""
        ids: list[int] = self.prompt["prompt_token_ids"]
        return ids


class GenerationRoute:
    """The endpoint of one route, over HTTP and over the channel."""

    _numbers = count(1)

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._clock = Clock()
        self._engine: Engine | None = None
        self._profile = Profile("", ("completion",))
        self._defaults: tuple[dict[str, Any], ...] = ()

    def serve(self, engine: Engine, profile: Profile) -> None:
        """Begin to answer with this engine."""
        self._engine, self._profile = engine, profile
        self._defaults = (dict(profile.parameters), engine.generation_defaults())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that came over HTTP."""
        del scope
        received = time.monotonic_ns()
        body = await read_body(receive)
        async with cancelled_on_disconnect(receive):
            await self.answer(body, received, HttpSink(send))

    async def answer(self, body: bytes, received: int, sink: Sink) -> None:
        """Answer one request: an error with its status, one record, or a stream of records.

        `received` is when the client's request came, in monotonic ns. Cancelling aborts it in the engine.
        """
        try:
            await self._answer(body, Stopwatch(received), sink)
        except VllamaError as error:
            await sink.reply(status_of(error), JSON, error_body(str(error)))

    async def _answer(self, body: bytes, stopwatch: Stopwatch, sink: Sink) -> None:
        engine, profile = self._engine, self._profile
        if engine is None:
            raise EngineError("the engine is not ready")
        request = self._dialect.parse(body)
        replies = self._dialect.replies(request.model, self._clock)
        if request.is_empty:
            reason = "unload" if request.keep_alive == 0 else "load"
            await sink.reply(200, JSON, replies.final(reason))
            return
        self._dialect.check(request, profile.capabilities, profile.full_name)
        prompt = await self._dialect.render(request, engine, profile)
        if request.debug_render_only:
            await sink.reply(200, JSON, replies.rendered(engine.detokenize(prompt["prompt_token_ids"])))
            return
        generation = Generation(
            request=request,
            replies=replies,
            prompt=prompt,
            params=self._params(engine, request, prompt),
            returns_context=self._dialect.returns_context(request),
            stopwatch=stopwatch,
        )
        stopwatch.submit()
        outputs = engine.generate(prompt, generation.params, f"vllama-{next(self._numbers)}")
        async with aclosing(outputs):
            if request.stream:
                await _stream(generation, engine, outputs, sink)
            else:
                await _whole(generation, engine, outputs, sink)

    def _params(self, engine: Engine, request: Request, prompt: Prompt) -> Any:
        sampling = options.resolve(options.check(request.options), *self._defaults)
        context = engine.context_length
        if sampling.num_ctx > 0:
            context = min(sampling.num_ctx, context)
        room = context - len(prompt["prompt_token_ids"])
        if room < 1:
            raise RequestError(checks.TOO_LONG)
        return engine.sampling_params(
            sampling,
            max_tokens=min(sampling.num_predict, room) if sampling.num_predict > 0 else room,
            stream=request.stream,
            logprobs=max(1, request.top_logprobs) if request.logprobs else None,
            constraint=request.format,
        )


async def _whole(generation: Generation, engine: Engine, outputs: AsyncGenerator[Any, None], sink: Sink) -> None:
    try:
        async for output in outputs:
            last = output
    except Exception as error:
        raise as_our_error(error) from error
    completion = last.outputs[0]
    _raise_if_failed(completion)
    ids = list(completion.token_ids)
    spoken = _without_end(completion, ids)
    body = generation.replies.final(
        _done_reason(completion),
        generation.stopwatch.timings(last.metrics, len(generation.prompt_ids), len(ids)),
        text=completion.text,
        context=_context(generation, engine, completion, spoken, completion.text),
        logprobs=token_logprobs(completion, len(spoken), generation.request.top_logprobs),
    )
    await sink.reply(200, JSON, body)


async def _stream(generation: Generation, engine: Engine, outputs: AsyncGenerator[Any, None], sink: Sink) -> None:
    replies, stopwatch, top = generation.replies, generation.stopwatch, generation.request.top_logprobs
    wants_logprobs = generation.request.logprobs
    ids: list[int] = []
    texts: list[str] = []
    started = False
    try:
        async for output in outputs:
            completion = output.outputs[0]
            if not started:
                stopwatch.output()
                _raise_if_failed(completion)  # still in time for a status
                started = True
                await sink.start(NDJSON)
            text = completion.text
            ids.extend(completion.token_ids)
            finished = output.finished
            logprobs: Sequence[TokenLogprob] = ()
            if wants_logprobs:
                spoken = _without_end(completion, completion.token_ids) if finished else completion.token_ids
                logprobs = token_logprobs(completion, len(spoken), top)
            body = b""
            if text or logprobs:
                texts.append(text)
                body = replies.delta(text, logprobs) + b"\n"
            if finished:
                _raise_if_failed(completion)
                body += _last_line(generation, engine, output, ids, "".join(texts))
            if body:
                await sink.write(body, last=finished)
    except Exception as error:  # translated, and raised again where it is not vLLM's
        ours = as_our_error(error)
        if not started:
            raise ours from error
        if not isinstance(ours, VllamaError):
            log.exception("a stream failed")
        await sink.write(error_line(_in_stream(ours)), last=True)


def _last_line(generation: Generation, engine: Engine, output: Any, ids: list[int], text: str) -> bytes:
    completion = output.outputs[0]
    timings = generation.stopwatch.timings(output.metrics, len(generation.prompt_ids), len(ids))
    context = _context(generation, engine, completion, _without_end(completion, ids), text)
    return generation.replies.final(_done_reason(completion), timings, context=context) + b"\n"


def _done_reason(completion: Any) -> str:
    return "length" if completion.finish_reason == "length" else "stop"


def _raise_if_failed(completion: Any) -> None:
    if completion.finish_reason in {"abort", "error"}:
        raise EngineError(
            f"an error was encountered while running the model: request ended by {completion.finish_reason}"
        )


def _in_stream(error: Exception) -> str:
    if isinstance(error, VllamaError):
        return str(error)
    return "an error was encountered while running the model: internal error, check the server's log"


def _without_end(completion: Any, ids: Sequence[int]) -> Sequence[int]:
    """The ids without the end-of-text or stop token that closed the reply."""
    ended_by_token = completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str)
    return ids[:-1] if ended_by_token and ids else ids


def _context(
    generation: Generation, engine: Engine, completion: Any, spoken: Sequence[int], text: str
) -> Sequence[int]:
    if not generation.returns_context:
        return ()
    if isinstance(completion.stop_reason, str):
        spoken = engine.tokenize(text)  # the ids run past the cut that the stop string made
    if len(generation.prompt_ids) + len(spoken) > MOST_CONTEXT_IDS:
        return ()
    return [*generation.prompt_ids, *spoken]
