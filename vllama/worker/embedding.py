"""One request's way through a pooling model, for `/api/embed` and `/api/embeddings` alike (contract §1.4, §1.5)."""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from vllama.asgi import LARGEST_BODY, Receive, Scope, Send
from vllama.errors import EngineError, NamedModelNotFound, RequestError, VllamaError
from vllama.ollama import options
from vllama.ollama.embedding import EmbedRequest, check_embedding
from vllama.ollama.replies import Timings
from vllama.ollama.status import JSON
from vllama.protocol.frames import Form
from vllama.protocol.profile import Profile
from vllama.protocol.token_counts import TokenCounts
from vllama.worker.sink import Sink, answer_over_http

if TYPE_CHECKING:
    from vllama.worker.engine import Prompt
    from vllama.worker.pooling import PoolingEngine, Vector

log = logging.getLogger(__name__)

_SMALLEST_CONTEXT = 4
"""Tokens of the context that Ollama loads a model with at least."""


class EmbeddingRoute:
    """The endpoint of one route, over HTTP and over the channel."""

    _numbers = count(1)

    def __init__(self, request: type[EmbedRequest], largest_body: int = LARGEST_BODY) -> None:
        """Take bodies of at most `largest_body` bytes over HTTP; those over the channel were limited before."""
        self._largest_body = largest_body
        self._request = request
        self._engine: PoolingEngine | None = None
        self._profile = Profile("", ())

    def serve(self, engine: PoolingEngine | None, profile: Profile) -> None:
        """Answer with this engine from now on; without one, if the model lacks the capability.

        The profile is that of requests over HTTP; those over the channel bring their own.
        """
        self._engine, self._profile = engine, profile

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
        """Answer one request with one record, or an error with its status.

        `received` is when the client's request came, in monotonic ns. Cancelling aborts it in the engine.
        """
        try:
            request = self._request.parse(body)
            if form is Form.UNCHECKED:
                self._check(request, profile)
            reply, tokens = await self._reply(request, received, profile)
            sink.count(TokenCounts(tokens))
            await sink.reply(200, JSON, reply)
        except VllamaError as error:
            await sink.fail(error)
        except Exception:
            log.exception("a request failed")
            await sink.fail(EngineError("an error was encountered while running the model: internal error"))

    @staticmethod
    def _check(request: EmbedRequest, profile: Profile) -> None:
        names = profile.served_names
        if names and request.model not in names:
            raise NamedModelNotFound(request.model, ", try pulling it first")
        check_embedding(request, profile.capabilities)

    async def _reply(self, request: EmbedRequest, received: int, profile: Profile) -> tuple[bytes, int]:
        """Return the reply and its number of prompt tokens."""
        engine = self._engine
        if engine is None:
            raise EngineError("the engine is not ready; try again")
        if not request.inputs:
            return request.reply(()), 0
        num_ctx = {**profile.parameters, **options.check(request.options)}.get("num_ctx", engine.context_length)
        prompts = await _prompts(engine, request, num_ctx)
        submitted = time.monotonic_ns()
        vectors = [_finished(vector, request) for vector in await self._encode(engine, prompts)]
        timings = Timings(
            total_duration=time.monotonic_ns() - received,
            load_duration=submitted - received,
            prompt_eval_count=sum(len(prompt["prompt_token_ids"]) for prompt in prompts),
            prompt_eval_duration=0,
            eval_count=0,
            eval_duration=0,
        )
        return request.reply(vectors, timings), timings.prompt_eval_count

    async def _encode(self, engine: PoolingEngine, prompts: list[Prompt]) -> list[Vector]:
        """Encode all inputs at once, in order. The first failure aborts the others."""
        name = f"vllama-embed-{next(self._numbers)}"
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(engine.encode(prompt, f"{name}-{index}")) for index, prompt in enumerate(prompts)
                ]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]


async def _prompts(engine: PoolingEngine, request: EmbedRequest, num_ctx: int) -> list[Prompt]:
    """Return the inputs as tokens, none longer than the context. Raises RequestError if that is impossible.

    A `num_ctx` of 0 gives the smallest context, and a text that is longer is not truncated, as in Ollama.
    """
    is_cut = request.truncate and num_ctx > 0
    limit = min(num_ctx if num_ctx > 0 else _SMALLEST_CONTEXT, engine.context_length)
    if is_cut and limit <= engine.special_tokens:
        raise RequestError("input after truncation exceeds maximum context length")
    prompts = await engine.tokenize(request.inputs, limit if is_cut else None)
    lengths = [len(prompt["prompt_token_ids"]) for prompt in prompts]
    if max(lengths) > limit and request.truncate:
        raise RequestError("input exceeds maximum context length and cannot be truncated further")
    if max(lengths) > limit:
        raise RequestError("the input length exceeds the context length")
    if not min(lengths):
        raise RequestError("no input provided: this model's tokenizer produces no tokens for an empty text")
    return prompts


def _finished(vector: Vector, request: EmbedRequest) -> Vector:
    """Return the vector with the requested dimensions, normalised if the route requires it."""
    if 0 < request.dimensions < len(vector):
        vector = vector[: request.dimensions]
    if not np.isfinite(vector).all():
        raise RequestError("embedding contains NaN or Inf values")
    if not request.normalizes:
        return vector
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector / length).astype(np.float32) if length else vector
