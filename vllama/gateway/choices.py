"""Bounds of requests for several replies, by `n` or a list of prompts: each reply is a sequence in the engine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllama.errors import RequestError


def sequences(body: Mapping[str, Any]) -> int:
    """Return the number of sequences that the engine generates for a body of vLLM's."""
    number, prompt = body.get("n"), body.get("prompt")
    choices = number if isinstance(number, int) and number > 1 else 1
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return choices * len(prompt)
    return choices


def put_last(body: dict[str, Any], number: int) -> None:
    """Have the engine serve the sequences of a request for several when no request for one reply waits.

    A model with few places would serve all of them first: each counts as one client, and they came at once. A priority
    that the client states would put it before all others, and is left out.
    """
    if isinstance(body.get("priority"), int):  # vLLM says what is wrong with others
        del body["priority"]
    if number > 1:
        body["priority"] = 1


@dataclass(slots=True)
class _Worker:
    running: int = 0
    waiting: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)


class Choices:
    """Sequences of requests for several, by worker. Requests for one reply never wait here."""

    def __init__(self, most: int) -> None:
        """Let a worker generate at most `most` sequences for such requests at once."""
        self.most = most
        self._workers: dict[Path, _Worker] = {}

    def check(self, number: int) -> None:
        """Raise RequestError if a request asks for more sequences than ever may be generated at once."""
        if number > self.most:
            raise RequestError(f"the request asks for {number} replies; the maximum is {self.most}")

    @asynccontextmanager
    async def held(self, socket: Path, number: int) -> AsyncIterator[None]:
        """Wait until the worker may generate this many sequences, at most `most`; first come, first served."""
        if number <= 1:
            yield
            return
        worker = self._workers.setdefault(socket, _Worker())
        await self._wait(worker, number)
        try:
            yield
        finally:
            worker.running -= number
            self._let_in(worker)
            if not worker.running and not worker.waiting:
                self._workers.pop(socket, None)

    async def _wait(self, worker: _Worker, number: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        worker.waiting.append((number, turn))
        self._let_in(worker)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                worker.running -= number
            else:
                worker.waiting.remove((number, turn))
            self._let_in(worker)
            raise

    def _let_in(self, worker: _Worker) -> None:
        while worker.waiting and (
            not worker.running or worker.running + worker.waiting[0][0] <= self.most
        ):  # a reload may have lowered the maximum
            number, turn = worker.waiting.popleft()
            if not turn.cancelled():
                worker.running += number
                turn.set_result(None)
