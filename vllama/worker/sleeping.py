"""Sleep and wake, asked for by the gateway over the worker's own socket, and the canary that tells how it went.

vLLM has routes for it in its development mode only, and these would be open to every client of a plain server. Ours
exist only where a gateway has started the worker, on a socket that is the gateway's own.

A model that woke up with damaged weights still answers, with noise. So the worker makes a short answer to a fixed
prompt before its first sleep, and again after each wake; they must be alike. The gateway keeps the first one, because
another API server process of the same worker may be asked next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vllama.errors import SleepFailed, VllamaError
from vllama.ollama.status import JSON, error_body, status_of
from vllama.worker.controls import SLEEP, WAKE

log = logging.getLogger(__name__)

_ALIKE = 0.25
"""Between two log probabilities of one token: kernels may round differently, damaged weights are far off."""

_ALIKE_DIRECTIONS = 0.99
"""The least cosine between two vectors of one text."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A model's answer to a fixed prompt: each step's chosen token and log probabilities by token, or a vector."""

    steps: tuple[tuple[int, dict[int, float]], ...] = ()
    vector: tuple[float, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """As it travels to the gateway and back."""
        steps = [[token, [[known, logprob] for known, logprob in row.items()]] for token, row in self.steps]
        return {"steps": steps, "vector": list(self.vector)}

    @classmethod
    def from_record(cls, record: Any) -> Canary:
        """Read what `to_record` made."""
        steps = tuple(
            (int(token), {int(known): float(logprob) for known, logprob in row}) for token, row in record["steps"]
        )
        return cls(steps, tuple(record["vector"]))


def difference(before: Canary, after: Canary) -> str:
    """What tells two canaries apart, in words; "" where they are alike.

    Where two tokens are as good as tied, either may be chosen; what follows another token is not compared.
    """
    if len(before.steps) != len(after.steps) or len(before.vector) != len(after.vector):
        return "its answer has another length"
    for number, ((token, known), (other, found)) in enumerate(zip(before.steps, after.steps, strict=True), start=1):
        for one in (token, other):
            expected, got = known.get(one), found.get(one)
            if expected is None or got is None:
                return f"token {number} of its answer is {other} and was {token}"
            if abs(expected - got) > _ALIKE:
                return (
                    f"token {one}, number {number} of its answer, has log probability {got:.2f} and had {expected:.2f}"
                )
        if token != other:
            return ""
    if before.vector and (cosine := _cosine(before.vector, after.vector)) < _ALIKE_DIRECTIONS:
        return f"its vector points elsewhere (cosine {cosine:.3f})"
    return ""


def _cosine(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = sum(a * a for a in one) * sum(b * b for b in other)
    return product / float(lengths**0.5) if lengths > 0 else 0.0


class Sleeper(Protocol):
    """An engine that can sleep; see vllama.worker.sleeping_engine.SleepingEngine."""

    @property
    def refusal(self) -> str:
        """Why it cannot sleep; "" where it can."""

    @property
    def unfinished(self) -> int:
        """How many requests it works on."""

    async def is_asleep(self) -> bool:
        """Whether it sleeps."""

    async def sleep(self) -> None:
        """Move the weights to the host's memory and give up the KV cache."""

    async def wake(self) -> None:
        """Take both back."""

    async def canary(self) -> Canary:
        """Answer the fixed prompt."""


class SleepRoutes:
    """The two routes: `POST /vllama/sleep` and `POST /vllama/wake`, each with the canary as it is known so far."""

    def __init__(self) -> None:
        self._engine: Sleeper | None = None
        self._turn = asyncio.Lock()

    def serve(self, engine: Sleeper) -> None:
        """Begin to answer with this engine."""
        self._engine = engine

    def routes(self) -> list[Route]:
        """The routes for vLLM's app."""
        return [
            Route(SLEEP, self._answer(self._sleep), methods=["POST"]),
            Route(WAKE, self._answer(self._wake), methods=["POST"]),
        ]

    def _answer(self, act: Callable[[Sleeper, Canary | None], Awaitable[Canary]]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            try:
                stated = orjson.loads(await request.body()).get("canary")
                known = Canary.from_record(stated) if stated else None
                started = time.monotonic()
                async with self._turn:
                    canary = await act(self._ready_engine(), known)
            except VllamaError as error:
                return Response(error_body(str(error)), status_of(error), media_type=JSON)
            except Exception as error:
                log.exception("%s failed", request.url.path)
                return Response(error_body(f"{type(error).__name__}: {error}"), 500, media_type=JSON)
            reply = {"canary": canary.to_record(), "seconds": round(time.monotonic() - started, 4)}
            return Response(orjson.dumps(reply), media_type=JSON)

        return endpoint

    def _ready_engine(self) -> Sleeper:
        if self._engine is None:
            raise SleepFailed("the engine is not ready")
        if self._engine.refusal:
            raise SleepFailed(self._engine.refusal)
        return self._engine

    @staticmethod
    async def _sleep(engine: Sleeper, known: Canary | None) -> Canary:
        if engine.unfinished:
            raise SleepFailed(f"the engine works on {engine.unfinished} requests")
        if await engine.is_asleep():
            if known is None:
                raise SleepFailed("the engine sleeps already, and its canary is not known")
            return known
        canary = known or await engine.canary()
        await engine.sleep()
        return canary

    @staticmethod
    async def _wake(engine: Sleeper, known: Canary | None) -> Canary:
        if await engine.is_asleep():
            await engine.wake()
        canary = await engine.canary()
        if known is not None and (reason := difference(known, canary)):
            raise SleepFailed(f"the model is not itself after its sleep: {reason}")
        return known or canary
