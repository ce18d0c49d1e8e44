"""The order of requests where keys compete: start-time fair queueing (Goyal, Vin and Cheng, 1996). No clock, no tasks.

A request of a key starts, in virtual time, when the key's request before it has ended, but not before now; it takes its
cost divided by the key's weight. The request with the earliest start is next, and its start becomes now. Hence

- a key that keeps the queue full gets a share in proportion to its weight;
- the first request of a key that has not been served lately starts now, and nothing that waits starts earlier. However
  much other keys have queued, at most one request of each goes before it, and none of a key that has just been served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Flow(Generic[T]):
    """A key: when its last request ends in virtual time, its running requests, and the waiting ones with weights.

    `arrived` orders keys between which nothing else decides.
    """

    end: float = 0.0
    running: int = 0
    arrived: int = 0
    waiting: deque[tuple[T, float]] = field(default_factory=deque)


class FairQueue(Generic[T]):
    """The waiting requests of keys. A key that has none, and whose turn has passed, is forgotten."""

    def __init__(self) -> None:
        self._flows: dict[str, _Flow[T]] = {}
        self._now = 0.0
        self._arrivals = 0

    def __len__(self) -> int:
        return sum(len(flow.waiting) for flow in self._flows.values())

    def add(self, key: str, weight: float, item: T) -> None:
        """Add a request behind those of its key."""
        flow = self._flows.setdefault(key, _Flow())
        if not flow.waiting:
            self._arrivals += 1
            flow.arrived = self._arrivals
        flow.waiting.append((item, weight))

    def start(self, key: str, weight: float, cost: float = 1.0) -> None:
        """Record that a request of a key runs which did not have to wait; none may wait then."""
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow()
        self._begin(flow, cost / weight)

    def remove(self, key: str, item: T) -> None:
        """Remove a request that waits."""
        flow = self._flows[key]
        flow.waiting = deque((other, weight) for other, weight in flow.waiting if other is not item)
        self._forget(key, flow)

    def take(self, cost: Callable[[str], float] = lambda _: 1.0) -> tuple[str, T]:
        """Return the key and the request that are next, which is running from now on. Raises ValueError if none waits.

        `cost` returns what a key's request takes of the engine, in any unit. Between equal starts, the key with fewer
        running requests for its weight is next, then the one that has waited longer.
        """
        key, flow = min(((key, flow) for key, flow in self._flows.items() if flow.waiting), key=self._rank)
        item, weight = flow.waiting.popleft()
        self._begin(flow, cost(key) / weight)
        return key, item

    def done(self, key: str) -> None:
        """Record that a request of a key is not running any more."""
        flow = self._flows[key]
        flow.running -= 1
        self._forget(key, flow)

    def _begin(self, flow: _Flow[T], length: float) -> None:
        self._now = max(self._now, flow.end)
        flow.end = self._now + length
        flow.running += 1
        self._arrivals += 1
        flow.arrived = self._arrivals

    def _rank(self, candidate: tuple[str, _Flow[T]]) -> tuple[float, float, int]:
        flow = candidate[1]
        return max(self._now, flow.end), flow.running / flow.waiting[0][1], flow.arrived

    def _forget(self, key: str, flow: _Flow[T]) -> None:
        if flow.waiting or flow.running:
            return
        if flow.end <= self._now:
            del self._flows[key]
        if all(not other.waiting and not other.running for other in self._flows.values()):
            self._flows.clear()  # where nothing competes, no key has had too much
