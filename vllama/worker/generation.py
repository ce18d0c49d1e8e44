"""Generation: the route of one request through the engine, for `/api/generate` and `/api/chat`."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from itertools import count
from typing import Any

from vllm.lora.request import LoRARequest

from vllama.asgi import LARGEST_BODY, Receive, Scope, Send
from vllama.errors import EngineError, ModelNotFound, PromptTooLong, VllamaError
from vllama.ollama import options
from vllama.ollama.formats import relaxed_headers
from vllama.ollama.options import Sampling
from vllama.ollama.replies import Clock
from vllama.ollama.status import JSON
from vllama.protocol.frames import Form
from vllama.protocol.profile import Profile
from vllama.worker.adapters import Adapters
from vllama.worker.after_thinking import AfterThinking, Generate, Watch
from vllama.worker.dialects import Dialect, Rendered, Request
from vllama.worker.engine import Engine, Prompt
from vllama.worker.sink import Sink, answer_over_http
from vllama.worker.timing import Stopwatch
from vllama.worker.transcript import Transcript
from vllama.worker.window import Window

log = logging.getLogger(__name__)


class GenerationRoute:
    """The endpoint of one route, over HTTP and over the channel."""

    _numbers = count(1)

    def __init__(self, dialect: Dialect, adapters: Adapters, largest_body: int = LARGEST_BODY) -> None:
        """Take bodies of at most `largest_body` bytes over HTTP; those over the channel were limited before."""
        self._largest_body = largest_body
        self._dialect = dialect
        self._adapters = adapters
        self._clock = Clock()
        self._engine: Engine | None = None
        self._profile = Profile("", ("completion",))
        self._generation_defaults: dict[str, Any] = {}

    def serve(self, engine: Engine | None, profile: Profile) -> None:
        """Answer with this engine from now on; without one, if the model lacks the capability.

        The profile is that of requests over HTTP; those over the channel bring their own.
        """
        self._engine, self._profile = engine, profile
        self._generation_defaults = engine.generation_defaults() if engine else {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that came over HTTP."""
        del scope
        received = time.monotonic_ns()

        async def answer(body: bytes, sink: Sink) -> None:
            await self.answer(body, received, sink, self._profile)

        await answer_over_http(receive, send, self._largest_body, answer)

    async def answer(
        self, body: bytes, received: int, sink: Sink, profile: Profile, form: Form = Form.UNCHECKED
    ) -> None:
        """Answer one request: an error with its status, one record, or a stream of records.

        `received` is when the client's request came, in monotonic ns. Cancelling aborts it in the engine.
        """
        try:
            request = self._dialect.decode(body) if form is Form.RECORD else self._dialect.parse(body)
            await self._answer(request, Stopwatch(received), sink, profile, is_checked=form is not Form.UNCHECKED)
        except VllamaError as error:
            await sink.fail(error)
        except Exception:
            log.exception("a request failed")
            await sink.fail(EngineError("an error was encountered while running the model: internal error"))

    async def _answer(
        self, request: Request, stopwatch: Stopwatch, sink: Sink, profile: Profile, *, is_checked: bool
    ) -> None:
        engine = self._engine
        if profile.served_names and request.model not in profile.served_names:
            raise ModelNotFound(request.model)
        replies = self._dialect.replies(request.model, self._clock)
        if request.is_empty and request.keep_alive == 0:
            await sink.reply(200, JSON, replies.final("unload"))
            return
        if not is_checked:
            self._dialect.check(request, profile.capabilities, profile.full_name)
        if engine is None:
            raise EngineError("the engine is not ready; try again")
        if request.is_empty:
            await sink.reply(200, JSON, replies.final("load"))
            return
        rendered, sampling, window = await self._render(request, engine, profile)
        if request.debug_render_only:
            await sink.reply(200, JSON, replies.rendered(engine.detokenize(rendered.token_ids), rendered.images))
            return
        adapter = await self._adapters.load(profile.adapter)
        await engine.prepare(request.format)
        if told := relaxed_headers(request.format):
            sink.add_headers(told)
        outputs = self._outputs(engine, request, rendered, sampling, window, adapter=adapter)
        transcript = Transcript(
            request=request,
            replies=replies,
            rendered=rendered,
            engine=engine,
            stopwatch=stopwatch,
            returns_context=self._dialect.returns_context(request),
        )
        stopwatch.submit()
        async with aclosing(outputs):
            if request.stream:
                await transcript.stream(outputs, sink)
            else:
                await transcript.whole(outputs, sink)

    def _outputs(
        self,
        engine: Engine,
        request: Request,
        rendered: Rendered,
        sampling: Sampling,
        window: Window,
        *,
        adapter: LoRARequest | None,
    ) -> AsyncGenerator[Any, None]:
        """Start the request in the engine; in two where a format has to wait for the end of thinking.

        Raises RequestError where vLLM refuses a value.
        """
        parsed, request_id = rendered.parsed, f"vllama-{next(self._numbers)}"
        most_tokens = window.longest_reply(len(rendered.token_ids), shift=request.shift)

        def generate(constraint: Any, *, stream: bool) -> Generate:
            params = engine.sampling_params(
                sampling,
                max_tokens=most_tokens,
                stream=stream,
                logprobs=max(1, request.top_logprobs) if request.logprobs else None,
                constraint=constraint,
                parsed=parsed,
            )

            def start(prompt: Prompt, most_tokens: int) -> AsyncGenerator[Any, None]:
                params.max_tokens = most_tokens
                name = request_id if constraint is request.format else f"{request_id}-thinking"
                return engine.generate(prompt, params, name, parsed, bound=constraint is not None, adapter=adapter)

            return start

        bound = generate(request.format, stream=request.stream)
        if request.format is None or parsed is None or parsed.thinking is None:
            return bound(rendered.prompt, most_tokens)
        reply = AfterThinking(
            Watch(parsed.thinking, engine.detokenize),
            generate(None, stream=True),
            bound,
            partial(engine.continuation, rendered.token_ids, skip_special_tokens=parsed.skip_special_tokens),
            request.stream,
        )
        return reply.outputs(rendered.prompt, most_tokens)

    async def prompt_ids(self, body: bytes, profile: Profile) -> list[int]:
        """Return the token ids of the prompt. Raises the errors of `answer`."""
        request = self._dialect.parse(body)
        self._dialect.check(request, profile.capabilities, profile.full_name)
        if self._engine is None:
            raise EngineError("the engine is not ready; try again")
        rendered, _, _ = await self._render(request, self._engine, profile)
        return rendered.token_ids

    async def _render(self, request: Request, engine: Engine, profile: Profile) -> tuple[Rendered, Sampling, Window]:
        """Return the fitted prompt and the sampling values for the reply."""
        sampling = options.resolve(options.check(request.options), profile.parameters, self._generation_defaults)
        window = Window.of(sampling, engine.context_length)
        rendered = await self._dialect.render(request, engine, profile, window)
        _make_fit(rendered, request, window, engine)
        return rendered, sampling, window


def _make_fit(rendered: Rendered, request: Request, window: Window, engine: Engine) -> None:
    """Remove the middle of a prompt that is too long. Raises PromptTooLong if the client forbids that."""
    if window.fits(len(rendered.token_ids)):
        return
    if not (request.truncate and request.shift and rendered.is_text):
        raise PromptTooLong
    log.warning("truncated a prompt of %d tokens to fit a context of %d", len(rendered.token_ids), window.limit)
    special_tokens, ids = engine.special_tokens, rendered.token_ids
    opening = len(special_tokens.before) if special_tokens.begin(ids) else 0
    rendered.replace_ids(window.clipped(ids, opening))
