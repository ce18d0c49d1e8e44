"""One request's way through the engine, for `/api/generate` and `/api/chat` alike."""

from __future__ import annotations

import logging
import time
from contextlib import aclosing
from itertools import count
from typing import Any

from vllama.asgi import Receive, Scope, Send, cancelled_on_disconnect, read_body
from vllama.errors import EngineError, ModelNotFound, PromptTooLong, VllamaError
from vllama.ollama import options
from vllama.ollama.options import Sampling
from vllama.ollama.replies import Clock
from vllama.ollama.status import JSON
from vllama.worker.dialects import Dialect, Rendered, Request
from vllama.worker.engine import Engine
from vllama.worker.profile import Profile
from vllama.worker.sink import HttpSink, Sink
from vllama.worker.timing import Stopwatch
from vllama.worker.transcript import Transcript

log = logging.getLogger(__name__)


class GenerationRoute:
    """The endpoint of one route, over HTTP and over the channel."""

    _numbers = count(1)

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._clock = Clock()
        self._engine: Engine | None = None
        self._profile = Profile("", ("completion",))
        self._defaults: tuple[dict[str, Any], ...] = ()

    def serve(self, engine: Engine | None, profile: Profile) -> None:
        """Begin to answer with this engine; without one, where the profile says that the model cannot do it."""
        self._engine, self._profile = engine, profile
        self._defaults = (dict(profile.parameters), engine.generation_defaults() if engine else {})

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
            await sink.fail(error)
        except Exception:
            log.exception("a request failed")
            await sink.fail(EngineError("an error was encountered while running the model: internal error"))

    async def _answer(self, body: bytes, stopwatch: Stopwatch, sink: Sink) -> None:
        engine, profile = self._engine, self._profile
        request = self._dialect.parse(body)
        if profile.served_names and request.model not in profile.served_names:
            raise ModelNotFound(request.model)
        replies = self._dialect.replies(request.model, self._clock)
        if request.is_empty and request.keep_alive == 0:
            await sink.reply(200, JSON, replies.final("unload"))
            return
        self._dialect.check(request, profile.capabilities, profile.full_name)
        if engine is None:
            raise EngineError("the engine is not ready")
        if request.is_empty:
            await sink.reply(200, JSON, replies.final("load"))
            return
        sampling = options.resolve(options.check(request.options), *self._defaults)
        context = min(sampling.num_ctx, engine.context_length) if sampling.num_ctx > 0 else engine.context_length
        rendered = await self._dialect.render(request, engine, profile, context)
        if request.debug_render_only:
            await sink.reply(200, JSON, replies.rendered(engine.detokenize(rendered.token_ids)))
            return
        params = _params(engine, request, rendered, sampling, context)
        transcript = Transcript(
            request=request,
            replies=replies,
            rendered=rendered,
            engine=engine,
            stopwatch=stopwatch,
            returns_context=self._dialect.returns_context(request),
        )
        stopwatch.submit()
        outputs = engine.generate(rendered.prompt, params, f"vllama-{next(self._numbers)}", rendered.parsed)
        async with aclosing(outputs):
            if request.stream:
                await transcript.stream(outputs, sink)
            else:
                await transcript.whole(outputs, sink)


def _params(engine: Engine, request: Request, rendered: Rendered, sampling: Sampling, context: int) -> Any:
    """vLLM's sampling parameters. Raises PromptTooLong where the context leaves no room for a reply."""
    room = context - len(rendered.token_ids)
    if room < 1:
        raise PromptTooLong
    return engine.sampling_params(
        sampling,
        max_tokens=min(sampling.num_predict, room) if sampling.num_predict > 0 else room,
        stream=request.stream,
        logprobs=max(1, request.top_logprobs) if request.logprobs else None,
        constraint=request.format,
        parsed=rendered.parsed,
    )
