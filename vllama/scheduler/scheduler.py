"""Leases on resident models. Requests wait in order; a model without requests is unloaded after its keep-alive.

All state belongs to the event loop's thread; every method that changes it does so between two awaits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from types import TracebackType

from vllama.durations import FOREVER, ZERO, Nanoseconds, to_seconds
from vllama.errors import InvalidName, Overloaded, ServerStopping
from vllama.machine.host import HostMemory, host_memory
from vllama.names import ModelName
from vllama.scheduler.policy import State
from vllama.scheduler.residency import STOP_GRACE_SECONDS, Residency, WorkerLauncher
from vllama.scheduler.resident import Resident, ResidentView
from vllama.settings import Settings
from vllama.store.manifest import Manifest

log = logging.getLogger(__name__)


class Scheduler:
    """Scheduler that gives out leases and unloads unused residents. `clock` returns Unix seconds."""

    def __init__(
        self,
        settings: Settings,
        launcher: WorkerLauncher,
        *,
        clock: Callable[[], float] = time.time,
        host_memory: Callable[[], HostMemory] = host_memory,
    ) -> None:
        self._launcher = launcher
        self._clock = clock
        self._residency = Residency(settings, launcher, clock, self._rest, host_memory)
        self._waiting = 0  # requests that have no lease yet
        self._closed = False
        self.adopt(settings)

    def adopt(self, settings: Settings) -> None:
        """Use these settings from now on; current residents stay unchanged."""
        self._settings = self._residency.settings = settings
        self._pins = frozenset(_keys(settings.pin))
        for resident in self._residency:
            was_pinned = resident.is_pinned
            if was_pinned:
                resident.is_pinned, resident.keep_alive = False, settings.keep_alive
            self._pin(resident)
            if resident.is_pinned != was_pinned:
                self._rest(resident)
        self._residency.notify()

    def lease(self, manifest: Manifest, keep_alive: Nanoseconds | None) -> AbstractAsyncContextManager[Resident]:
        """Hold a ready resident of this model until the block ends, loading it first where needed.

        `keep_alive` (ns, negative for ever) replaces the resident's own from now on; None leaves it.
        Raises Overloaded where too many wait, ServerStopping, LoadFailed, WorkerDied.
        """
        return _Lease(self, manifest, keep_alive)

    def is_ready(self, manifest: Manifest) -> bool:
        """Whether a worker of this very manifest could answer now: what it was loaded with is what counts."""
        resident = self._residency.get(self._launcher.engine_of(manifest))
        return resident is not None and resident.state is State.READY

    def unload(self, manifest: Manifest) -> None:
        """Stop the model as soon as it has no requests, whether awake or asleep; also the worker of its vectors."""
        engine = self._launcher.engine_of(manifest)
        for resident in self._residency:
            if resident.engine == engine or resident.manifest.name.key == manifest.name.key:
                resident.keep_alive = ZERO
                self._rest(resident)

    def report_answer(self, resident: Resident) -> None:
        """Record that its worker has answered a request, which clears earlier failures."""
        if resident.state is State.READY:
            self._residency.failures.forget(resident.engine)

    def report_death(self, resident: Resident) -> None:
        """Record that a worker no longer answers: the next request gets a new one."""
        if resident.state is State.READY:
            self._residency.on_exit(resident)

    def residents(self) -> list[ResidentView]:
        """Return all residents, latest expiry first (contract §4.3)."""
        views = [resident.view() for resident in self._residency]
        return sorted(views, key=lambda view: -(view.expires_at or float("inf")))

    @property
    def is_quiet(self) -> bool:
        """Whether no request runs or waits."""
        return not any(resident.leases or resident.waiting for resident in self._residency)

    def refuse(self) -> None:
        """Give out no more leases and refuse waiting requests; held leases continue."""
        self._closed = True
        for resident in self._residency:
            if resident.state in {State.LOADING, State.WAKING}:
                self._residency.drop(resident, "the server is stopping")
        self._residency.notify()  # who waits for a resident to become idle shall not wait for its last stream

    async def close(self, *, grace: float = STOP_GRACE_SECONDS) -> None:
        """Stop every worker, gracefully for up to `grace` seconds; remaining leases are lost."""
        self.refuse()
        for resident in self._residency:
            self._residency.drop(resident, "the server is stopping", grace=grace)
        await self._residency.all_stopped()

    async def acquire(self, manifest: Manifest, keep_alive: Nanoseconds | None) -> Resident:
        """Find or make the resident, and take a lease on it; see `lease`, which gives it back."""
        engine = self._launcher.engine_of(manifest)
        resident = self._residency.get(engine)
        if resident is None or not resident.serves(manifest) or self._closed:
            with self._queued():
                return await self._wait_for(engine, manifest, keep_alive)
        self._ask(resident, manifest, keep_alive)
        resident.leases += 1
        return resident

    def release(self, resident: Resident) -> None:
        """Release a lease."""
        resident.leases -= 1
        self._rest(resident)

    async def _wait_for(self, engine: str, manifest: Manifest, keep_alive: Nanoseconds | None) -> Resident:
        """Wait for a resident that can be had, however often that changes.

        1. closed → refuse       2. ready → lease       3. ready, but it yields to a newcomer, or just goes → wait
        4. the name had another engine, or there is no room for its adapter → that goes when idle
        5. nothing → load; asleep → wake; wait, lease
        """
        while not self._closed:  # 1
            resident = self._residency.get(engine)
            outdated = self._outdated(manifest, resident)
            if outdated is None and resident is None:
                resident = self._residency.load(engine, manifest)  # 5
                self._pin(resident)
            elif outdated is not None and outdated.is_at_rest:  # 4
                self._residency.drop(outdated, f"{manifest.name} needs a different worker")
                continue
            if resident is not None and outdated is None:
                if resident.serves(manifest):  # 2
                    self._ask(resident, manifest, keep_alive)
                    resident.leases += 1
                    return resident
                if resident.state is State.ASLEEP:  # 5
                    self._residency.wake(resident)
                if resident.state in {State.LOADING, State.WAKING}:
                    self._ask(resident, manifest, keep_alive)
                    await self._wait_for_move(resident)
                    if resident.has_room_for(manifest):
                        return resident
                    self.release(resident)  # its load had begun before the adapter was there
                    continue
            await self._residency.change()  # 3, 4
        raise ServerStopping

    def _outdated(self, manifest: Manifest, resident: Resident | None) -> Resident | None:
        """Return the resident to unload before the model can be loaded; `resident` is its engine's current one.

        That is a worker that does not support its adapter, which gets no more requests, so that it becomes idle; or the
        resident with the model's name and another engine, whose files or flags have changed.
        """
        if resident is not None:
            resident.is_outgrown |= not resident.has_room_for(manifest)
            return resident if resident.is_outgrown else None
        same = (r for r in self._residency if r.manifest.name.key == manifest.name.key)
        return next((r for r in same if r.manifest.embeds == manifest.embeds), None)

    @contextmanager
    def _queued(self) -> Iterator[None]:
        """Count a waiting request. Raises Overloaded if too many wait (contract §6.4)."""
        if self._waiting > self._settings.max_queue:
            raise Overloaded
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _wait_for_move(self, resident: Resident) -> None:
        """Wait for the load and take a lease. If the client leaves the load goes on: a retry finds it advanced."""
        assert resident.move is not None  # noqa: S101 - who is loading has a load
        resident.waiting += 1
        try:
            await asyncio.shield(resident.move)
            resident.leases += 1
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ServerStopping from None  # the load was cancelled, not the client
        finally:
            resident.waiting -= 1
            self._rest(resident)

    def _ask(self, resident: Resident, manifest: Manifest, keep_alive: Nanoseconds | None) -> None:
        if resident.manifest is not manifest:
            resident.manifest = manifest
            self._pin(resident)
        if keep_alive is not None and not resident.is_pinned:
            resident.keep_alive = keep_alive

    def _pin(self, resident: Resident) -> None:
        """Keep a resident forever if one of its names is pinned, until it is unloaded by request."""
        if not resident.is_pinned and resident.manifest.name.key in self._pins:
            resident.is_pinned, resident.keep_alive = True, FOREVER

    def _rest(self, resident: Resident) -> None:
        """Start the keep-alive of a resident without requests."""
        self._residency.notify()
        if not resident.is_at_rest or not self._residency.holds(resident):
            return
        if resident.keep_alive == 0:
            self._residency.drop(resident, "keep_alive is 0")
        elif resident.state is State.ASLEEP:
            self._let_go_after(resident, self._settings.sleep_timeout)
        else:
            resident.idle_since = self._clock()
            self._residency.copies.note_idle(resident)
            self._let_go_after(resident, resident.keep_alive if resident.keep_alive > 0 else None)

    def _let_go_after(self, resident: Resident, delay: Nanoseconds | None) -> None:
        """Set the expiry. A running timer that ends earlier is kept: it checks the expiry then."""
        loop = asyncio.get_running_loop()
        resident.goes_at = None if delay is None else loop.time() + to_seconds(delay)
        if resident.expiry and (resident.goes_at is None or resident.expiry.when() > resident.goes_at):
            resident.expiry.cancel()
            resident.expiry = None
        if resident.goes_at is not None and resident.expiry is None:
            resident.expiry = loop.call_at(resident.goes_at, self._let_go, resident)

    def _let_go(self, resident: Resident) -> None:
        resident.expiry = None
        if not resident.is_at_rest or resident.goes_at is None:
            return  # the end of its last lease restarts the keep-alive
        loop = asyncio.get_running_loop()
        if resident.goes_at > loop.time():
            resident.expiry = loop.call_at(resident.goes_at, self._let_go, resident)
        elif resident.state is State.ASLEEP:
            self._residency.drop(resident, "its sleep timeout ended")
        else:
            self._residency.retire(resident)


class _Lease:
    """Context manager of a lease."""

    __slots__ = ("_keep_alive", "_manifest", "_resident", "_scheduler")

    def __init__(self, scheduler: Scheduler, manifest: Manifest, keep_alive: Nanoseconds | None) -> None:
        self._scheduler, self._manifest, self._keep_alive = scheduler, manifest, keep_alive

    async def __aenter__(self) -> Resident:
        self._resident = await self._scheduler.acquire(self._manifest, self._keep_alive)
        return self._resident

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scheduler.release(self._resident)


def _keys(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        try:
            yield ModelName.parse(name).key
        except InvalidName:
            log.warning("VLLAMA_PIN: ignored '%s', which is not a model name", name)
