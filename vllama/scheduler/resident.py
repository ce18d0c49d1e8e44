"""A resident engine: its state, its users, and its view from outside."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vllama.durations import Nanoseconds, to_seconds
from vllama.errors import WorkerDied
from vllama.scheduler.load_phases import LoadProgress, Phase
from vllama.scheduler.memory import Placement
from vllama.scheduler.policy import Holding, ResidentFacts, State
from vllama.scheduler.process import Memory
from vllama.scheduler.room import Occupant
from vllama.store.manifest import Manifest

_numbers = itertools.count(1)


class Worker(Protocol):
    """The scheduler's interface to a worker process; see vllama.scheduler.process.WorkerProcess."""

    exited: asyncio.Task[int]
    context_length: int
    slots: int
    channels: tuple[Path, ...]

    @property
    def socket(self) -> Path:
        """The path of the HTTP socket."""

    @property
    def memory(self) -> Memory:
        """The memory that it holds while awake."""

    @property
    def adapter_rank(self) -> int:
        """The maximum rank of LoRA adapters that it supports; 0 for none."""

    @property
    def can_sleep(self) -> bool:
        """Whether it was started with support for sleep."""

    def load_progress(self) -> LoadProgress:
        """Return the progress of its load."""

    def why_it_died(self) -> str:
        """Return the cause and fix of its end, as far as known."""

    async def become_ready(self, stall_timeout: float | None) -> None:
        """Wait until it can serve. Raises LoadFailed."""

    async def sleep(self) -> float:
        """Free the devices, keep the weights in host memory and return the seconds taken. Raises SleepFailed."""

    async def wake(self, *, keeps_copy: bool) -> float:
        """Wake it up and return the seconds taken. Raises SleepFailed, also if its weights changed."""

    async def prepare_sleep(self) -> None:
        """Have it begin to copy its weights to host memory while it serves. Raises SleepFailed."""

    async def forget_copy(self) -> None:
        """Have it give up the host's copy of its weights while it is awake. Raises SleepFailed."""

    async def stop(self, grace: float) -> None:
        """End it because it is not needed: politely for up to `grace` seconds, then by force; idempotent."""

    async def give_up(self) -> None:
        """End it at once because it does not serve as it should, and log the cause; idempotent."""


class Resident:
    """A resident engine. `keep_alive` is ns, negative for forever; `leases` and `waiting` count requests.

    `manifest` is the last requested model: models that differ in system, parameters, template, messages or adapter
    share the engine. `move` is the running or last load or wake. `yields`: a newcomer has waited long enough for it.
    `is_outgrown`: a model waits for its end, because its worker does not support that model's adapter. `keeps_copy`:
    its weights are in host memory as well, though it is awake. In seconds of the loop, `awake_since` is when it became
    ready, and `goes_at` when it is unloaded without requests; `expiry` is the timer for that.
    """

    def __init__(self, engine: str, manifest: Manifest, keep_alive: Nanoseconds, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.number = next(_numbers)
        self.engine = engine
        self.manifest = manifest
        self.keep_alive = keep_alive
        self.is_pinned = False
        self.state = State.LOADING
        self.holds = Holding.NOTHING
        self.placement: Placement | None = None
        self.leases = 0
        self.waiting = 0
        self.yields = False
        self.is_outgrown = False
        self.keeps_copy = False
        self.worker: Worker | None = None
        self.move: asyncio.Task[None] | None = None
        self.goes_at: float | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self.idle_since = clock()
        self.awake_since = math.inf

    @property
    def socket(self) -> Path:
        """The HTTP socket of its worker. Raises WorkerDied if it has none any more."""
        return self._living_worker().socket

    @property
    def slots(self) -> int:
        """The number of requests that its worker's engine runs at once; 0 if unknown."""
        return self.worker.slots if self.worker else 0

    @property
    def channels(self) -> tuple[Path, ...]:
        """The channel sockets of its worker. Raises WorkerDied if it has none any more."""
        return self._living_worker().channels

    def has_room_for(self, manifest: Manifest) -> bool:
        """Return whether its worker supports the model's adapter; a worker not yet started will."""
        return self.worker is None or manifest.adapter_rank <= self.worker.adapter_rank

    def serves(self, manifest: Manifest) -> bool:
        """Return whether the model can get a lease at once."""
        is_ready = self.state is State.READY and not self.yields
        return is_ready and not self.is_outgrown and self.has_room_for(manifest)

    def _living_worker(self) -> Worker:
        if self.worker is None or self.worker.exited.done():
            raise WorkerDied
        return self.worker

    @property
    def is_idle(self) -> bool:
        """Whether it is ready and no request uses it or waits for it."""
        return self.state is State.READY and not self.leases and not self.waiting

    @property
    def is_at_rest(self) -> bool:
        """Whether it is idle or asleep, so that it may be unloaded at once."""
        return self.is_idle or self.state is State.ASLEEP

    @property
    def expires_at(self) -> float | None:
        """The Unix time at which it is unloaded without requests; None for never. Counts from now while it serves."""
        if self.state is State.ASLEEP:
            return None if self.goes_at is None else self._clock() + self.goes_at - asyncio.get_running_loop().time()
        if self.keep_alive < 0:
            return None
        return (self.idle_since if self.is_idle else self._clock()) + to_seconds(self.keep_alive)

    @property
    def host_bytes(self) -> int:
        """Host memory in bytes that its sleep takes; if it was not planned, at least the size of its files."""
        return self.placement.host_bytes if self.placement else self.manifest.size

    def occupant(self) -> Occupant | None:
        """Return its facts for the memory plan; None if it was not planned."""
        return Occupant(self.number, self.holds, self.placement, self.state) if self.placement else None

    def facts(self) -> ResidentFacts:
        """Return its facts for the policy."""
        return ResidentFacts(
            number=self.number,
            name=self.manifest.name.display,
            state=self.state,
            holds=self.holds,
            is_busy=bool(self.leases or self.waiting),
            is_pinned=self.is_pinned,
            can_sleep=self.worker is not None and self.worker.can_sleep,
            keep_alive=self.keep_alive,
            idle_since=self.idle_since,
            awake_since=self.awake_since,
            host_bytes=self.host_bytes,
        )

    def view(self) -> ResidentView:
        """Return its current view from outside."""
        awake = self.worker if self.state is not State.ASLEEP else None
        return ResidentView(
            engine=self.engine,
            manifest=self.manifest,
            state=self.state,
            expires_at=self.expires_at,
            leases=self.leases,
            context_length=self.worker.context_length if self.worker else 0,
            memory=awake.memory if awake else Memory(self.host_bytes, 0),
            load=self._load_progress() if self.state is State.LOADING else None,
        )

    def _load_progress(self) -> LoadProgress:
        return self.worker.load_progress() if self.worker else LoadProgress(Phase.WAITING)


@dataclass(frozen=True, slots=True)
class ResidentView:
    """A resident as shown by `/api/ps`. `context_length` is 0 while unknown; `load` is None once loaded."""

    engine: str
    manifest: Manifest
    state: State
    expires_at: float | None
    leases: int
    context_length: int
    memory: Memory
    load: LoadProgress | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether it is loaded in Ollama's sense: sleeping models are not."""
        return self.state not in {State.SLEEPING, State.ASLEEP}
