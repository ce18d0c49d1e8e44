"""Turns of keys at a worker: no more requests at once than its engine runs; the others wait in a fair queue.

Requests without a key do not pass here. As long as the worker has free slots, a request does not wait.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType

from vllama.errors import EngineError
from vllama.keys.fair_queue import FairQueue
from vllama.keys.key import Key
from vllama.scheduler.resident import Resident

_Turn = asyncio.Future[None]
_NEWEST = 0.2
"""Share of a key's newest request in the mean time that its requests take."""

_LEAST_SECONDS = 1e-3
"""Least cost of a request, so that each one counts."""


class Admission:
    """The gates of all workers. `slots` replaces the number that engines state; 0 leaves it."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._gates: dict[Path, _Gate] = {}

    def admitted(self, lease: AbstractAsyncContextManager[Resident], key: Key) -> AbstractAsyncContextManager[Resident]:
        """Return a context manager that takes the lease and then waits for the key's turn at the worker."""
        return _Admitted(self, lease, key)

    def end(self, error: EngineError) -> None:
        """Fail all waiting requests."""
        for gate in self._gates.values():
            gate.end(error)

    def gate(self, resident: Resident) -> _Gate:
        """Return the gate of a worker; a new one replaces those that are not used. Raises WorkerDied."""
        socket = resident.socket
        gate = self._gates.get(socket)
        if gate is None:
            self._gates = {other: old for other, old in self._gates.items() if not old.is_unused}
            gate = self._gates[socket] = _Gate()
        gate.slots = self.slots or resident.slots
        return gate


class _Gate:
    """The running requests of one worker, and those that wait. With 0 `slots`, none waits."""

    def __init__(self) -> None:
        self.slots = 0
        self._running = 0
        self._queue: FairQueue[_Turn] = FairQueue()
        self._waiting: set[_Turn] = set()
        self._mean = 1.0
        self._means: dict[str, float] = {}

    @property
    def is_unused(self) -> bool:
        return not self._running and not self._waiting

    def starts(self, key: Key) -> bool:
        """Take a slot if one is free, which it nearly always is."""
        if self._waiting or (self.slots and self._running >= self.slots):
            return False
        self._running += 1
        self._queue.start(key.name, key.weight, self._cost(key.name))
        return True

    async def wait(self, key: Key) -> None:
        """Wait for a slot. Raises the error of `end`."""
        turn: _Turn = asyncio.get_running_loop().create_future()
        self._queue.add(key.name, key.weight, turn)
        self._waiting.add(turn)
        self._let_in()  # a reload may have added slots
        try:
            await turn
        except BaseException:
            if turn in self._waiting:
                self._waiting.discard(turn)
                self._queue.remove(key.name, turn)
            else:  # it was let in at the moment in which its client left
                self._free(key)
            raise

    def leave(self, key: Key, seconds: float) -> None:
        """Free a slot, which was held for this many seconds."""
        newest = _NEWEST * seconds
        self._means[key.name] = (1 - _NEWEST) * self._means.get(key.name, self._mean) + newest
        self._mean = (1 - _NEWEST) * self._mean + newest
        self._free(key)

    def end(self, error: EngineError) -> None:
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(error)

    def _free(self, key: Key) -> None:
        self._running -= 1
        self._queue.done(key.name)
        if self._waiting:
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting and (not self.slots or self._running < self.slots):
            _, turn = self._queue.take(self._cost)
            self._waiting.discard(turn)
            self._running += 1
            if not turn.done():
                turn.set_result(None)

    def _cost(self, name: str) -> float:
        """Return the seconds that a request of a key will probably take."""
        return max(self._means.get(name, self._mean), _LEAST_SECONDS)


class _Admitted:
    """A lease together with a slot."""

    __slots__ = ("_admission", "_gate", "_key", "_lease", "_since")

    def __init__(self, admission: Admission, lease: AbstractAsyncContextManager[Resident], key: Key) -> None:
        self._admission, self._lease, self._key = admission, lease, key

    async def __aenter__(self) -> Resident:
        resident = await self._lease.__aenter__()
        try:
            self._gate = gate = self._admission.gate(resident)
            if not gate.starts(self._key):
                await gate.wait(self._key)
        except BaseException:
            await self._lease.__aexit__(None, None, None)
            raise
        self._since = time.monotonic()
        return resident

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.leave(self._key, time.monotonic() - self._since)
        await self._lease.__aexit__(kind, error, trace)
