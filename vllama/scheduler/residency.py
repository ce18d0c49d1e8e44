"""The table of residents and their transitions: load, sleep, wake, stop (DESIGN.md).

Decisions are the policy's. All state belongs to the event loop's thread; every method that changes it does so between
two awaits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from vllama.durations import ZERO, to_seconds
from vllama.errors import EngineError, LoadFailed, NoRoom, OutOfMemory, WorkerDied
from vllama.machine.host import HostMemory, host_memory
from vllama.scheduler.failures import Failures
from vllama.scheduler.host_memory_copies import HostMemoryCopies
from vllama.scheduler.making_room import RoomMaker
from vllama.scheduler.memory import Placement
from vllama.scheduler.policy import Evict, Holding, Room, State, after_keep_alive, make_way
from vllama.scheduler.resident import Resident, Worker
from vllama.scheduler.room import Occupant
from vllama.settings import Settings
from vllama.store.manifest import Manifest

log = logging.getLogger(__name__)

_T = TypeVar("_T")

STOP_GRACE_SECONDS = 10.0

_PROVEN_AFTER = 30.0
"""Seconds after which a ready worker counts as working, so that its end starts a new row of failures."""

_SHORTEST_WAIT = 0.001
"""Minimum wait in seconds, so that a slow clock does not cause a busy loop."""


class WorkerLauncher(Protocol):
    """The interface to start workers; see vllama.scheduler.launcher.Launcher."""

    def engine_of(self, manifest: Manifest) -> str:
        """Return the identity of the model's engine; models with the same engine can share a worker."""

    async def room(self, manifest: Manifest, occupants: Sequence[Occupant | None], asleep: Placement | None) -> Room:
        """Return the current room for the model; `asleep` is its placement if its worker sleeps."""

    async def start(self, manifest: Manifest, placement: Placement | None) -> Worker:
        """Start a worker at this placement without waiting until it is ready."""

    async def bring_up(
        self, worker: Any, manifest: Manifest, placement: Placement | None, stall_timeout: float | None
    ) -> Placement | None:
        """Wait until it can serve and return the measured placement. Raises LoadFailed."""

    async def put_to_sleep(
        self, worker: Any, manifest: Manifest, placement: Placement | None
    ) -> tuple[float, Placement | None]:
        """Put it to sleep; return the seconds and the measured placement. Raises SleepFailed."""


class Residency:
    """The table of residents. `on_rest` is called after each load or wake; `clock` returns Unix seconds.

    `host_memory` returns the memory available for sleeping models.
    """

    def __init__(
        self,
        settings: Settings,
        launcher: WorkerLauncher,
        clock: Callable[[], float],
        on_rest: Callable[[Resident], None],
        host_memory: Callable[[], HostMemory] = host_memory,
    ) -> None:
        self.settings = settings
        self._launcher = launcher
        self._clock = clock
        self._on_rest = on_rest
        self._residents: dict[str, Resident] = {}
        self._stopping: dict[asyncio.Task[None], Resident] = {}
        self.failures = Failures()
        self._load_turn = asyncio.Lock()  # loads go one at a time, in order of arrival (contract §6.4)
        self._rooms = RoomMaker(self, launcher.room, host_memory)
        self.copies = HostMemoryCopies(self.everyone, lambda: self._rooms.limits().sleep_budget)
        self._changed: asyncio.Event | None = None

    def get(self, engine: str) -> Resident | None:
        """Return the resident of this engine in any state except stopping."""
        return self._residents.get(engine)

    def __iter__(self) -> Iterator[Resident]:
        return iter(list(self._residents.values()))

    def everyone(self) -> Iterator[Resident]:
        """Return all residents that may hold resources, including those that are stopping."""
        yield from self._residents.values()
        yield from self._stopping.values()

    def holds(self, resident: Resident) -> bool:
        """Return whether it is still in the table."""
        return self._residents.get(resident.engine) is resident

    def load(self, engine: str, manifest: Manifest) -> Resident:
        """Add a resident, whose load starts when it is its turn. Raises KeepsFailing."""
        self.failures.check(engine, manifest.name.display, self._now())
        resident = Resident(engine, manifest, self.settings.keep_alive, self._clock)
        self._residents[engine] = resident
        self._begin(resident, State.LOADING, self._load(resident))
        return resident

    def wake(self, resident: Resident) -> None:
        """Start to wake a sleeping resident."""
        self._cancel_expiry(resident)
        self._begin(resident, State.WAKING, self._wake(resident))

    def retire(self, resident: Resident) -> None:
        """Put an idle resident whose keep-alive has ended to sleep, or stop it."""
        others = [other.facts() for other in self.everyone() if other is not resident]
        plan = after_keep_alive(resident.facts(), others, self._rooms.limits())
        self.carry_out(plan, f"the keep-alive of {resident.manifest.name} ended")

    def drop(self, resident: Resident, why: str, *, grace: float = STOP_GRACE_SECONDS, is_broken: bool = False) -> None:
        """Take a resident out of the table and stop its worker, which has `grace` seconds unless it is broken."""
        log.info("unloading %s: %s", resident.manifest.name, why)
        self._forget(resident)
        if self._now() - resident.awake_since > _PROVEN_AFTER:
            self.failures.forget(resident.engine)
        resident.state = State.STOPPING
        stop = asyncio.create_task(self._stop(resident, grace, is_broken=is_broken))
        self._stopping[stop] = resident
        stop.add_done_callback(self._stopped)

    def carry_out(self, plan: Evict, why: str) -> None:
        """Put residents to sleep and stop others, as planned."""
        residents = {resident.number: resident for resident in self}
        for number in plan.stop:
            resident = residents[number]
            if resident.state is State.WAKING:
                log.info("%s must be loaded again: %s", resident.manifest.name, why)
                self._discard_worker(resident)
            else:
                self.drop(resident, why)
        for number in plan.sleep:
            resident = residents[number]
            log.info("putting %s to sleep: %s", resident.manifest.name, why)
            self._cancel_expiry(resident)
            self._begin(resident, State.SLEEPING, self._sleep(resident))

    def on_exit(self, resident: Resident) -> None:
        """Record that its worker has exited. A running load or wake notices that too."""
        if self.holds(resident) and resident.state not in {State.LOADING, State.WAKING}:
            log.error("the worker of %s died", resident.manifest.name)
            cause = resident.worker.why_it_died() if resident.worker is not None else ""
            self.drop(resident, "its worker died", is_broken=True)  # its leftovers must be removed as well
            self.failures.note(resident.engine, cause, self._now())

    def notify(self) -> None:
        """Notify all waiters of a change."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def change(self, seconds: float | None = None) -> None:
        """Wait for a change, or for at most this many seconds."""
        if self._changed is None:
            self._changed = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds is None else max(seconds, _SHORTEST_WAIT)):
                await self._changed.wait()

    async def all_stopped(self) -> None:
        """Wait until the workers that are stopping now have stopped."""
        if self._stopping:
            await asyncio.wait(self._stopping)  # not `gather`: a cancellation here must not cancel the stops

    def _begin(self, resident: Resident, state: State, move: Any) -> None:
        resident.state = state
        resident.move = asyncio.create_task(move)
        resident.move.add_done_callback(_retrieve)

    async def _load(self, resident: Resident) -> None:
        """Make room, start the worker, wait until it is ready. A failure takes the resident out of the table."""
        started = self._now()
        try:
            async with self._load_turn:
                try:
                    await self._take_room_and_start(resident)
                except OutOfMemory as error:
                    if not self._make_way(resident, error):
                        raise
                    await self._take_room_and_start(resident)
        except (NoRoom, asyncio.CancelledError):
            raise
        except Exception as error:
            self.failures.note(resident.engine, str(error), self._now())
            if isinstance(error, EngineError):
                raise
            log.exception("loading %s failed", resident.manifest.name)
            raise LoadFailed(f"loading {resident.manifest.name} failed: {error}") from error
        finally:
            if resident.state is State.LOADING:
                self._forget(resident)
        log.info("%s is ready after %.1f s", resident.manifest.name, self._now() - started)
        self._on_rest(resident)

    async def _take_room_and_start(self, resident: Resident) -> None:
        async with self._rooms.turn:
            await self._rooms.make(resident)
        await self._start(resident)

    def _make_way(self, resident: Resident, error: OutOfMemory) -> bool:
        """Stop residents for a load that ran out of memory; return False if there are none."""
        name = resident.manifest.name
        plan = make_way([other.facts() for other in self.everyone() if other is not resident])
        if plan.stop:
            log.warning("loading %s again after unloading %d other models: %s", name, len(plan.stop), error)
            resident.worker, resident.holds, resident.placement = None, Holding.NOTHING, None
            self.carry_out(plan, f"{name} ran out of memory while loading")
        return bool(plan.stop)

    async def _start(self, resident: Resident) -> None:
        """Start its worker and wait until it is ready; a failed one is stopped before the next load."""
        manifest, placement = resident.manifest, resident.placement
        worker = resident.worker = await self._launcher.start(manifest, placement)
        try:
            timeout = to_seconds(self.settings.load_timeout)
            resident.placement = await self._launcher.bring_up(worker, manifest, placement, timeout)
        except BaseException:
            await asyncio.shield(worker.stop(grace=0))
            raise
        worker.exited.add_done_callback(lambda _: self._on_exit_of(worker, resident))
        self._is_ready(resident)

    async def _wake(self, resident: Resident) -> None:
        """Make room and wake the worker; if that fails, load the model again."""
        seconds = 0.0
        try:
            async with self._rooms.turn:
                if resident.worker is not None:
                    await self._rooms.make(resident)
            if resident.worker is not None:
                seconds = await self._wake_worker(resident, resident.worker)
                self._is_ready(resident)
        except NoRoom:
            resident.state = State.ASLEEP
            self._on_rest(resident)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, a fresh worker is the cure
            log.warning("%s did not wake up; loading it again: %s", resident.manifest.name, error)
            self._discard_worker(resident, is_broken=True)
        if resident.state is State.READY:
            log.info("%s woke in %.2f s", resident.manifest.name, seconds)
            self._on_rest(resident)
        else:
            resident.state = State.LOADING
            await self._load(resident)

    async def _wake_worker(self, resident: Resident, worker: Worker) -> float:
        resident.keeps_copy = self.copies.has_room_for(resident)
        return await _unless_it_exits(worker, worker.wake(keeps_copy=resident.keeps_copy))

    async def _sleep(self, resident: Resident) -> None:
        assert resident.worker is not None  # noqa: S101 - who is ready has a worker
        try:
            await self.copies.make_room_for(resident)
            falling_asleep = self._launcher.put_to_sleep(resident.worker, resident.manifest, resident.placement)
            seconds, resident.placement = await _unless_it_exits(resident.worker, falling_asleep)
        except Exception as error:  # noqa: BLE001 - whatever it is, its memory has to be freed
            log.warning("cannot put %s to sleep: %s", resident.manifest.name, error)
            if self.holds(resident):
                self.drop(resident, "it could not be put to sleep", is_broken=True)
            return
        if resident.state is State.STOPPING:
            return
        resident.state, resident.holds, resident.keeps_copy = State.ASLEEP, Holding.ASLEEP, False
        if resident.keep_alive:  # the requests end here, as after an unload
            resident.keep_alive = self.settings.keep_alive
        log.info("%s fell asleep in %.2f s", resident.manifest.name, seconds)
        self._on_rest(resident)

    def _discard_worker(self, resident: Resident, *, is_broken: bool = False) -> None:
        """Stop the worker of a resident that stays in the table without one."""
        former = Resident(resident.engine, resident.manifest, ZERO, self._clock)
        former.worker, former.holds, former.placement = resident.worker, resident.holds, resident.placement
        resident.worker, resident.holds, resident.keeps_copy = None, Holding.NOTHING, False
        former.state = State.STOPPING
        stop = asyncio.create_task(self._stop(former, STOP_GRACE_SECONDS, is_broken=is_broken))
        self._stopping[stop] = former
        stop.add_done_callback(self._stopped)

    async def _stop(self, resident: Resident, grace: float, *, is_broken: bool) -> None:
        if resident.move is not None and not resident.move.done():
            resident.move.cancel()
            with contextlib.suppress(asyncio.CancelledError, EngineError):
                await resident.move
        if resident.worker is None:
            return
        if is_broken:
            await resident.worker.give_up()
        else:
            await resident.worker.stop(grace)

    def _stopped(self, stop: asyncio.Task[None]) -> None:
        del self._stopping[stop]
        self.notify()

    def _on_exit_of(self, worker: Worker, resident: Resident) -> None:
        if resident.worker is worker:  # not one of its successors
            self.on_exit(resident)

    def _is_ready(self, resident: Resident) -> None:
        if resident.state is not State.STOPPING:
            resident.state = State.READY
            resident.awake_since = self._now()

    def _forget(self, resident: Resident) -> None:
        if self.holds(resident):
            del self._residents[resident.engine]
        self._cancel_expiry(resident)
        self.notify()

    @staticmethod
    def _cancel_expiry(resident: Resident) -> None:
        if resident.expiry:
            resident.expiry.cancel()
            resident.expiry = None

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def _unless_it_exits(worker: Worker, work: Awaitable[_T]) -> _T:
    """Await the work. Raises WorkerDied if the worker exits first."""
    doing = asyncio.ensure_future(work)
    try:
        await asyncio.wait({doing, worker.exited}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise WorkerDied
        return doing.result()
    finally:
        doing.cancel()


def _retrieve(move: asyncio.Task[None]) -> None:
    """Mark a failure as retrieved: waiting clients, if any, were informed."""
    if not move.cancelled():
        move.exception()
