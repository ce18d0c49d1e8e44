"""Sleep and wake, asked for by the gateway over the worker's own socket.

vLLM has routes for it in its development mode only, and these would be open to every client of a plain server. Ours
exist only where a gateway has started the worker, on a socket that is the gateway's own. That a model has woken up with
the weights that it had is checked where they are (vllama.worker.sleep_backend).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vllama.errors import SleepFailed, VllamaError
from vllama.ollama.status import JSON, error_body, status_of
from vllama.protocol.paths import FORGET_COPY, PREPARE_SLEEP, SLEEP, WAKE

log = logging.getLogger(__name__)


class Sleeper(Protocol):
    """An engine that can sleep; see vllama.worker.sleeping_engine.SleepingEngine."""

    @property
    def refusal(self) -> str:
        """The reason why it cannot sleep; "" if it can."""

    @property
    def unfinished(self) -> int:
        """The number of unfinished requests."""

    async def is_asleep(self) -> bool:
        """Return whether it sleeps."""

    async def prepare(self) -> None:
        """Begin to copy the weights to host memory while it serves."""

    async def sleep(self) -> None:
        """Move the weights to host memory and free the KV cache."""

    async def wake(self, *, keeps_copy: bool) -> None:
        """Restore the weights and the KV cache. Raises an exception if the weights are not what they were."""

    async def forget_copy(self) -> None:
        """Give up the host's copy of the weights."""


class SleepRoutes:
    """The routes, which take and return JSON objects; each returns the seconds that it took."""

    def __init__(self) -> None:
        self._engine: Sleeper | None = None
        self._turn = asyncio.Lock()

    def serve(self, engine: Sleeper) -> None:
        """Answer with this engine from now on."""
        self._engine = engine

    def routes(self) -> list[Route]:
        """Return the routes for vLLM's app."""
        acts = {SLEEP: _sleep, WAKE: _wake, PREPARE_SLEEP: _prepare, FORGET_COPY: _forget_copy}
        return [Route(path, self._answer(act), methods=["POST"]) for path, act in acts.items()]

    def _answer(self, act: Callable[[Sleeper, dict[str, Any]], Awaitable[None]]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            try:
                stated = orjson.loads(await request.body())
                started = time.monotonic()
                async with self._turn:
                    await act(self._ready_engine(), stated)
            except VllamaError as error:
                return Response(error_body(str(error)), status_of(error), media_type=JSON)
            except Exception as error:
                log.exception("%s failed", request.url.path)
                return Response(error_body(f"{type(error).__name__}: {error}"), 500, media_type=JSON)
            return Response(orjson.dumps({"seconds": round(time.monotonic() - started, 4)}), media_type=JSON)

        return endpoint

    def _ready_engine(self) -> Sleeper:
        if self._engine is None:
            raise SleepFailed("the engine is not ready; try again")
        if self._engine.refusal:
            raise SleepFailed(self._engine.refusal)
        return self._engine


async def _sleep(engine: Sleeper, _: dict[str, Any]) -> None:
    if engine.unfinished:
        raise SleepFailed(f"the engine is still processing {engine.unfinished} requests")
    if not await engine.is_asleep():
        await engine.sleep()


async def _wake(engine: Sleeper, stated: dict[str, Any]) -> None:
    if await engine.is_asleep():
        await engine.wake(keeps_copy=bool(stated.get("keeps_copy")))


async def _prepare(engine: Sleeper, _: dict[str, Any]) -> None:
    if not await engine.is_asleep():
        await engine.prepare()


async def _forget_copy(engine: Sleeper, _: dict[str, Any]) -> None:
    if await engine.is_asleep():
        raise SleepFailed("the model sleeps, and the copy is all that it has")
    await engine.forget_copy()
