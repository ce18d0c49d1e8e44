"""One request's way through a pooling model, for `/api/embed` and `/api/embeddings` alike (contract §1.4, §1.5)."""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from vllama.asgi import Receive, Scope, Send, cancelled_on_disconnect, read_body
from vllama.errors import EngineError, NamedModelNotFound, RequestError, VllamaError
from vllama.ollama import options
from vllama.ollama.embedding import EmbedRequest, check_embedding
from vllama.ollama.replies import Timings
from vllama.ollama.status import JSON
from vllama.worker.profile import Profile
from vllama.worker.sink import HttpSink, Sink

if TYPE_CHECKING:
    from vllama.worker.engine import Prompt
    from vllama.worker.pooling import PoolingEngine, Vector

log = logging.getLogger(__name__)


class EmbeddingRoute:
    """The endpoint of one route, over HTTP and over the channel."""

    _numbers = count(1)

    def __init__(self, request: type[EmbedRequest]) -> None:
        self._request = request
        self._engine: PoolingEngine | None = None
        self._profile = Profile("", ())

    def serve(self, engine: PoolingEngine | None, profile: Profile) -> None:
        """Begin to answer with this engine; without one, where the profile says that the model cannot do it.

        The profile is that of requests over HTTP; those over the channel bring their own.
        """
        self._engine, self._profile = engine, profile

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that came over HTTP."""
        del scope
        received = time.monotonic_ns()
        body = await read_body(receive)
        async with cancelled_on_disconnect(receive):
            await self.answer(body, received, HttpSink(send), self._profile)

    async def answer(self, body: bytes, received: int, sink: Sink, profile: Profile) -> None:
        """Answer one request with one record, or an error with its status.

        `received` is when the client's request came, in monotonic ns. Cancelling aborts it in the engine.
        """
        try:
            await sink.reply(200, JSON, await self._reply(self._request.parse(body), received, profile))
        except VllamaError as error:
            await sink.fail(error)
        except Exception:
            log.exception("a request failed")
            await sink.fail(EngineError("an error was encountered while running the model: internal error"))

    async def _reply(self, request: EmbedRequest, received: int, profile: Profile) -> bytes:
        names = profile.served_names
        if names and request.model not in names:
            raise NamedModelNotFound(request.model, ", try pulling it first")
        check_embedding(request, profile.capabilities)
        engine = self._engine
        if engine is None:
            raise EngineError("the engine is not ready")
        if not request.inputs:
            return request.reply(())
        num_ctx = options.resolve(options.check(request.options), profile.parameters).num_ctx
        limit = min(num_ctx, engine.context_length) if num_ctx > 0 else engine.context_length
        prompts = await _prompts(engine, request, limit)
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
        return request.reply(vectors, timings)

    async def _encode(self, engine: PoolingEngine, prompts: list[Prompt]) -> list[Vector]:
        """All at once, in the order of the inputs. The first failure aborts the others."""
        name = f"vllama-embed-{next(self._numbers)}"
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(engine.encode(prompt, f"{name}-{index}")) for index, prompt in enumerate(prompts)
                ]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]


async def _prompts(engine: PoolingEngine, request: EmbedRequest, limit: int) -> list[Prompt]:
    """The inputs as tokens, none longer than `limit`. Raises RequestError where that cannot be."""
    if request.truncate and limit <= engine.special_tokens:
        raise RequestError("input after truncation exceeds maximum context length")
    prompts = await engine.tokenize(request.inputs, limit if request.truncate else None)
    lengths = [len(prompt["prompt_token_ids"]) for prompt in prompts]
    if max(lengths) > limit:
        raise RequestError("the input length exceeds the context length")
    if not min(lengths):
        raise RequestError("no input provided: this model's tokenizer makes nothing of an empty text")
    return prompts


def _finished(vector: Vector, request: EmbedRequest) -> Vector:
    """Cut to the dimensions asked for, and of length 1 where the route wants that."""
    if 0 < request.dimensions < len(vector):
        vector = vector[: request.dimensions]
    if not np.isfinite(vector).all():
        raise RequestError("embedding contains NaN or Inf values")
    if not request.normalizes:
        return vector
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector / length).astype(np.float32) if length else vector
