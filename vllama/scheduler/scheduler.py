"""Who is resident: one load however many wait, leases while requests run, keep-alive when none do.

All state belongs to the event loop's thread; every method that changes it does so between two awaits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from vllama.durations import NS_PER_SECOND
from vllama.errors import EngineError, LoadFailed, Overloaded, WorkerDied
from vllama.scheduler.load_phases import LoadProgress, Phase
from vllama.scheduler.policy import ResidentFacts, choose_victim
from vllama.scheduler.process import Memory
from vllama.settings import Settings
from vllama.store.manifest import Manifest

log = logging.getLogger(__name__)

_STOP_GRACE_SECONDS = 10.0


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
        """What it holds."""

    def load_progress(self) -> LoadProgress:
        """How far its load is."""

    async def become_ready(self, stall_timeout: float | None) -> None:
        """Return when it can serve; raise LoadFailed otherwise."""

    async def stop(self, grace: float) -> None:
        """End it; idempotent."""


class WorkerLauncher(Protocol):
    """Starts workers; see vllama.scheduler.launcher.Launcher."""

    def engine_of(self, manifest: Manifest) -> str:
        """The identity of the engine that serves the model: models with the same can share a worker."""

    async def start(self, manifest: Manifest) -> Worker:
        """Start a worker that is not ready yet."""


class State(StrEnum):
    """Of a resident. Stopping residents are no longer in the table."""

    LOADING = "loading"
    READY = "ready"


class Resident:
    """One loaded or loading engine. `keep_alive` is ns, or negative for ever; `leases` counts requests at work.

    `manifest` is the model that asked last: those that differ in system, parameters, template or messages share it.
    """

    def __init__(self, engine: str, manifest: Manifest, keep_alive: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.engine = engine
        self.manifest = manifest
        self.keep_alive = keep_alive
        self.state = State.LOADING
        self.leases = 0
        self.waiting = 0
        self.worker: Worker | None = None
        self.load: asyncio.Task[None] | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self.idle_since = clock()

    @property
    def socket(self) -> Path:
        """Where its worker speaks HTTP. Raises WorkerDied where it has none any more."""
        return self._living_worker().socket

    @property
    def channels(self) -> tuple[Path, ...]:
        """The sockets of its worker's channels. Raises WorkerDied where it has none any more."""
        return self._living_worker().channels

    def _living_worker(self) -> Worker:
        if self.worker is None or self.worker.exited.done():
            raise WorkerDied
        return self.worker

    @property
    def is_idle(self) -> bool:
        """Ready, and nobody uses it or waits for it."""
        return self.state is State.READY and not self.leases and not self.waiting

    @property
    def expires_at(self) -> float | None:
        """Unix seconds at which it will go if nobody asks; None for never. Counts from now while it serves."""
        if self.keep_alive < 0:
            return None
        return (self.idle_since if self.is_idle else self._clock()) + self.keep_alive / NS_PER_SECOND

    def view(self) -> ResidentView:
        """How it looks from outside now."""
        return ResidentView(
            engine=self.engine,
            manifest=self.manifest,
            state=self.state,
            expires_at=self.expires_at,
            leases=self.leases,
            context_length=self.worker.context_length if self.worker else 0,
            memory=self.worker.memory if self.worker else Memory(self.manifest.size, 0),
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


class Scheduler:
    """Gives out leases on residents; loads, evicts and expires them. `clock` tells Unix seconds."""

    def __init__(self, settings: Settings, launcher: WorkerLauncher, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._launcher = launcher
        self._clock = clock
        self._residents: dict[str, Resident] = {}
        self._stops: set[asyncio.Task[None]] = set()
        self._waiting = 0  # requests that have no lease yet
        self._load_turn = asyncio.Lock()  # loads go one at a time, in order of arrival (contract §6.4)
        self._changed = asyncio.Event()
        self._closed = False

    @asynccontextmanager
    async def lease(self, manifest: Manifest, keep_alive: int | None) -> AsyncIterator[Resident]:
        """Hold a ready resident of this model until the block ends, loading it first where needed.

        `keep_alive` (ns, negative for ever) replaces the resident's own from now on; None leaves it.
        Raises Overloaded where too many wait, LoadFailed, WorkerDied.
        """
        resident = await self._acquire(manifest, keep_alive)
        try:
            yield resident
        finally:
            resident.leases -= 1
            self._rest(resident)

    def unload(self, manifest: Manifest) -> None:
        """Let the model go as soon as nobody uses it; at once where nobody does."""
        if resident := self._residents.get(self._launcher.engine_of(manifest)):
            resident.keep_alive = 0
            self._rest(resident)

    def report_death(self, resident: Resident) -> None:
        """Take note that a worker does not answer any more: the next request gets a new one."""
        if self._residents.get(resident.engine) is resident and resident.state is State.READY:
            self._on_exit(resident)

    def residents(self) -> list[ResidentView]:
        """All residents, the longest to stay first (contract §4.3)."""
        views = [resident.view() for resident in self._residents.values()]
        return sorted(views, key=lambda view: -(view.expires_at or float("inf")))

    def refuse(self) -> None:
        """Give out no more leases, and tell those who wait for a load; leases held go on."""
        self._closed = True
        for resident in list(self._residents.values()):
            if resident.state is State.LOADING:
                self._drop(resident, "the server stops")
        self._notify()  # who waits for a resident to become idle shall not wait for its last stream

    async def close(self) -> None:
        """Stop every worker; whoever still holds a lease loses it."""
        self.refuse()
        for resident in list(self._residents.values()):
            self._drop(resident, "the server stops")
        await self._stopped()

    async def _acquire(self, manifest: Manifest, keep_alive: int | None) -> Resident:
        """Find or make the resident, and take a lease on it.

        1. closed → refuse            2. ready → lease                3. too many wait → refuse
        4. the name had another engine → that goes when idle    5. nothing → start the load    6. loading → wait, lease
        """
        engine = self._launcher.engine_of(manifest)
        while True:
            if self._closed:  # 1
                raise EngineError("the server is stopping")
            resident = self._residents.get(engine)
            if resident is not None:
                resident.manifest = manifest
                self._set_keep_alive(resident, keep_alive)
                if resident.state is State.READY:  # 2
                    self._take(resident)
                    return resident
            with self._queued():  # 3
                if resident is None:
                    if outdated := self._outdated(manifest):  # 4
                        if not outdated.is_idle:
                            await self._changed.wait()
                            continue
                        self._drop(outdated, "its files changed")
                    resident = self._begin(engine, manifest)  # 5
                    self._set_keep_alive(resident, keep_alive)
                await self._wait_for_load(resident)  # 6
            return resident

    def _outdated(self, manifest: Manifest) -> Resident | None:
        """What is resident under the model's name with another engine: its files or flags were changed since."""
        return next((r for r in self._residents.values() if r.manifest.name.key == manifest.name.key), None)

    @contextmanager
    def _queued(self) -> Iterator[None]:
        """Count a request that has to wait. Raises Overloaded where too many do (contract §6.4)."""
        if self._waiting > self._settings.max_queue:
            raise Overloaded
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def _begin(self, engine: str, manifest: Manifest) -> Resident:
        resident = Resident(engine, manifest, self._settings.keep_alive, self._clock)
        self._residents[engine] = resident
        resident.load = asyncio.create_task(self._load(resident))
        resident.load.add_done_callback(_retrieve)
        return resident

    async def _wait_for_load(self, resident: Resident) -> None:
        """Wait for the load and take a lease. If the client leaves the load goes on: a retry finds it advanced."""
        assert resident.load is not None  # noqa: S101 - a loading resident has a load
        resident.waiting += 1
        try:
            await asyncio.shield(resident.load)
            self._take(resident)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise EngineError("the server is stopping") from None  # the load was cancelled, not the client
        finally:
            resident.waiting -= 1
            self._rest(resident)

    async def _load(self, resident: Resident) -> None:
        """Make room, start the worker, wait until it is ready. A failure takes the resident out of the table."""
        started = time.monotonic()
        try:
            async with self._load_turn:
                await self._make_room(resident)
                worker = await self._start(resident)
        except (EngineError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.exception("loading %s failed", resident.manifest.name)
            raise LoadFailed(f"loading {resident.manifest.name} failed: {error}") from error
        finally:
            if resident.state is State.LOADING:
                self._forget(resident)
        log.info("%s is ready after %.1f s", resident.manifest.name, time.monotonic() - started)
        worker.exited.add_done_callback(lambda _: self._on_exit(resident))
        self._rest(resident)

    async def _start(self, resident: Resident) -> Worker:
        """Start its worker and wait until it is ready; one that fails is gone before the next load begins."""
        worker = resident.worker = await self._launcher.start(resident.manifest)
        try:
            await worker.become_ready(self._settings.load_timeout)
        except BaseException:
            await asyncio.shield(worker.stop(grace=0))
            raise
        resident.state = State.READY
        return worker

    async def _make_room(self, newcomer: Resident) -> None:
        while True:
            # Others that wait for their turn to load hold nothing yet.
            holders = [resident for resident in self._residents.values() if resident.worker is not None]
            if len(holders) < self._settings.resident_limit:
                break
            facts = (ResidentFacts(r.engine, r.manifest.name.key, r.is_idle, r.keep_alive) for r in holders)
            victim = choose_victim(facts)
            if victim is None:
                await self._changed.wait()
            else:
                self._drop(self._residents[victim], f"{newcomer.manifest.name} needs the room")
        await self._stopped()  # their memory is needed

    @staticmethod
    def _set_keep_alive(resident: Resident, keep_alive: int | None) -> None:
        if keep_alive is not None:
            resident.keep_alive = keep_alive

    @staticmethod
    def _take(resident: Resident) -> None:
        resident.leases += 1
        if resident.expiry:
            resident.expiry.cancel()
            resident.expiry = None

    def _rest(self, resident: Resident) -> None:
        """Start the keep-alive of a resident that has become idle."""
        self._notify()
        if not resident.is_idle or self._residents.get(resident.engine) is not resident:
            return
        resident.idle_since = self._clock()
        if resident.expiry:
            resident.expiry.cancel()
            resident.expiry = None
        if resident.keep_alive == 0:
            self._drop(resident, "keep_alive is 0")
        elif resident.keep_alive > 0:
            delay = resident.keep_alive / NS_PER_SECOND
            resident.expiry = asyncio.get_running_loop().call_later(delay, self._drop, resident, "keep_alive ended")

    def _on_exit(self, resident: Resident) -> None:
        if self._residents.get(resident.engine) is resident:
            log.error("the worker of %s died", resident.manifest.name)
            self._drop(resident, "its worker died", grace=0)  # what it left behind has to go as well

    def _drop(self, resident: Resident, why: str, *, grace: float = _STOP_GRACE_SECONDS) -> None:
        """Take a resident out of the table and stop its worker."""
        log.info("%s is unloaded: %s", resident.manifest.name, why)
        self._forget(resident)
        stop = asyncio.create_task(self._stop(resident, grace))
        self._stops.add(stop)
        stop.add_done_callback(self._stops.discard)

    async def _stop(self, resident: Resident, grace: float) -> None:
        if resident.load is not None and not resident.load.done():
            resident.load.cancel()
            with contextlib.suppress(asyncio.CancelledError, EngineError):
                await resident.load
        if resident.worker is not None:
            await resident.worker.stop(grace)

    async def _stopped(self) -> None:
        """Wait until the workers that are stopping now have stopped."""
        if self._stops:
            await asyncio.wait(self._stops)  # and not `gather`: whoever is cancelled here must not cancel the stops

    def _forget(self, resident: Resident) -> None:
        if self._residents.get(resident.engine) is resident:
            del self._residents[resident.engine]
        if resident.expiry:
            resident.expiry.cancel()
            resident.expiry = None
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _retrieve(load: asyncio.Task[None]) -> None:
    """Mark a failure as seen: the clients that waited were told, and there may have been none."""
    if not load.cancelled():
        load.exception()
