"""One engine that is held, or is about to be: its state, who uses it, and how it looks from outside."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vllama.durations import NS_PER_SECOND
from vllama.errors import WorkerDied
from vllama.scheduler.load_phases import LoadProgress, Phase
from vllama.scheduler.memory import Placement
from vllama.scheduler.policy import Holding, ResidentFacts, State
from vllama.scheduler.process import Memory
from vllama.scheduler.room import Occupant
from vllama.store.manifest import Manifest

_numbers = itertools.count(1)


class Worker(Protocol):
    """What the scheduler needs of a worker's process; see vllama.scheduler.process.WorkerProcess."""

    exited: asyncio.Task[int]
    context_length: int
    channels: tuple[Path, ...]

    @property
    def socket(self) -> Path:
        """Where it speaks HTTP."""

    @property
    def memory(self) -> Memory:
        """What it holds while it is awake."""

    @property
    def adapter_rank(self) -> int:
        """The highest rank of LoRA adapters that it has room for; 0 for none."""

    @property
    def can_sleep(self) -> bool:
        """Whether it was started so that it can sleep."""

    def load_progress(self) -> LoadProgress:
        """How far its load is."""

    def why_it_died(self) -> str:
        """Cause and fix of its end, as far as they are known by now."""

    async def become_ready(self, stall_timeout: float | None) -> None:
        """Return when it can serve; raise LoadFailed otherwise."""

    async def sleep(self) -> float:
        """Free the devices and keep the weights in the host's memory; return the seconds. Raises SleepFailed."""

    async def wake(self) -> float:
        """Return, when it can serve again, the seconds. Raises SleepFailed, also where what it says is wrong."""

    async def stop(self, grace: float) -> None:
        """End it; idempotent."""


class Resident:
    """One engine. `keep_alive` is ns, or negative for ever; `leases` counts requests at work, `waiting` those to come.

    `manifest` is the model that asked last: those that differ in system, parameters, template, messages or adapter
    share it. `move` is the load or the wake under way, or the last one. `yields`: a newcomer has waited long enough for
    it. `is_outgrown`: a model waits for it to go, because its worker has no room for that one's adapter. In seconds of
    the loop, `awake_since` is when it became ready, and `goes_at` when it goes if nobody asks; `expiry` is the timer
    for that.
    """

    def __init__(self, engine: str, manifest: Manifest, keep_alive: int, clock: Callable[[], float]) -> None:
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
        self.worker: Worker | None = None
        self.move: asyncio.Task[None] | None = None
        self.goes_at: float | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self.idle_since = clock()
        self.awake_since = math.inf

    @property
    def socket(self) -> Path:
        """Where its worker speaks HTTP. Raises WorkerDied where it has none any more."""
        return self._living_worker().socket

    @property
    def channels(self) -> tuple[Path, ...]:
        """The sockets of its worker's channels. Raises WorkerDied where it has none any more."""
        return self._living_worker().channels

    def has_room_for(self, manifest: Manifest) -> bool:
        """Whether its worker takes the model's adapter; one that is not started yet will."""
        return self.worker is None or manifest.adapter_rank <= self.worker.adapter_rank

    def serves(self, manifest: Manifest) -> bool:
        """Whether the model can have a lease at once."""
        is_ready = self.state is State.READY and not self.yields
        return is_ready and not self.is_outgrown and self.has_room_for(manifest)

    def _living_worker(self) -> Worker:
        if self.worker is None or self.worker.exited.done():
            raise WorkerDied
        return self.worker

    @property
    def is_idle(self) -> bool:
        """Ready, and nobody uses it or waits for it."""
        return self.state is State.READY and not self.leases and not self.waiting

    @property
    def is_at_rest(self) -> bool:
        """Idle or asleep: it may go at once."""
        return self.is_idle or self.state is State.ASLEEP

    @property
    def expires_at(self) -> float | None:
        """Unix seconds at which it will go if nobody asks; None for never. Counts from now while it serves."""
        if self.state is State.ASLEEP:
            return None if self.goes_at is None else self._clock() + self.goes_at - asyncio.get_running_loop().time()
        if self.keep_alive < 0:
            return None
        return (self.idle_since if self.is_idle else self._clock()) + self.keep_alive / NS_PER_SECOND

    @property
    def host_bytes(self) -> int:
        """What its sleep takes of the host's memory; where it was not planned, no less than its files."""
        return self.placement.host_bytes if self.placement else self.manifest.size

    def occupant(self) -> Occupant | None:
        """What the memory plan may know of it now; None where it was not planned."""
        return Occupant(self.number, self.holds, self.placement, self.state) if self.placement else None

    def facts(self) -> ResidentFacts:
        """What the policy may know of it now."""
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
        """How it looks from outside now."""
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
    """A resident as `/api/ps` shows it. `context_length` is 0 while it is not known yet; `load` is None once loaded."""

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
        """As Ollama has it: a model whose keep-alive has ended is not, although it may sleep here."""
        return self.state not in {State.SLEEPING, State.ASLEEP}
