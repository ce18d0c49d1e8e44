"""A launcher whose workers are objects: they take their time, fail on demand, and notice what must never happen."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_snapshot import make_manifest

from vllama.durations import Nanoseconds
from vllama.errors import OutOfMemory
from vllama.machine.host import HostMemory
from vllama.scheduler.load_phases import LoadProgress, Phase
from vllama.scheduler.memory import Placement
from vllama.scheduler.policy import Room, anywhere
from vllama.scheduler.process import Memory
from vllama.scheduler.resident import Resident
from vllama.scheduler.scheduler import Scheduler
from vllama.settings import Settings
from vllama.store.manifest import Manifest, ManifestFile

LOADING = 30.0
"""Seconds that a worker takes to become ready."""

STOPPING = 2.0
"""Seconds that a worker takes to stop."""

FALLING_ASLEEP = 1.0
"""Seconds that a worker takes to go to sleep."""

WAKING = 0.5
"""Seconds that a worker takes to wake."""

EPOCH = 1_800_000_000.0
"""Unix seconds at the start of the loop's clock."""


def manifest(name: str, *, version: int = 1) -> Manifest:
    """Return what is served under the name; another version has another digest."""
    weights = (ManifestFile("model.safetensors", 1000, "0" * 64),)
    return replace(make_manifest(name, parameters={"seed": version}), files=weights)


def version_of(resident: Resident) -> int:
    version: int = resident.manifest.parameters["seed"]
    return version


class ScriptedWorker:
    """A worker of virtual time. `serving` counts the requests that work on it, as the test knows."""

    def __init__(self, launcher: ScriptedLauncher, served: Manifest) -> None:
        self._launcher = launcher
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.exited: asyncio.Task[int] = asyncio.create_task(self._until_exit())
        self.manifest = served
        self.failure = launcher.failures.popleft() if launcher.failures else None
        self.has_memory = len(launcher.living) < launcher.memory_for
        self.context_length = 0
        self.slots = 0
        self.adapter_rank = launcher.room_for(served)
        self.channels: tuple[Path, ...] = ()
        self.is_loading = True
        self.is_asleep = False
        self.has_copy = False
        self.can_sleep = launcher.can_sleep
        self.stops = self.sleeps = self.wakes = 0
        self.may_stop_while_serving = self.was_given_up = False
        self.serving = 0

    async def _until_exit(self) -> int:
        return await self._exit

    @property
    def key(self) -> str:
        return self.manifest.name.key

    @property
    def socket(self) -> Path:
        return Path("/worker.sock")

    @property
    def memory(self) -> Memory:
        return Memory(100, 80)

    @property
    def is_alive(self) -> bool:
        return not self._exit.done()

    def load_progress(self) -> LoadProgress:
        return LoadProgress(Phase.WEIGHTS, 40, "Loading shards: 40% Completed")

    def why_it_died(self) -> str:
        return "its worker died: SIGSEGV"

    async def become_ready(self, stall_timeout: float | None) -> None:
        try:
            await asyncio.sleep(self._launcher.loading)
            if self.failure is not None:
                raise self.failure
            if not self.has_memory:
                raise OutOfMemory("GPU memory ran out")
            self.context_length = 4096
        finally:
            self.is_loading = False
            self._launcher.when_loaded()

    async def sleep(self) -> float:
        assert self.can_sleep
        if self.serving:
            self._launcher.violations.append(f"{self.key} was sent to sleep while it served")
        await self._spend(self._launcher.falling_asleep, self._launcher.sleep_failures)
        self.is_asleep = True
        self.sleeps += 1
        return self._launcher.falling_asleep

    async def wake(self, *, keeps_copy: bool) -> float:
        assert self.is_asleep
        self.has_copy = keeps_copy
        self._launcher.check_room(self.key)
        self.is_asleep = False
        await self._spend(self._launcher.waking, self._launcher.wake_failures)
        self.wakes += 1
        return self._launcher.waking

    async def prepare_sleep(self) -> None:
        assert not self.is_asleep
        self.has_copy = True

    async def forget_copy(self) -> None:
        assert not self.is_asleep
        self.has_copy = False

    async def _spend(self, seconds: float, failures: deque[Exception]) -> None:
        await asyncio.sleep(seconds)
        if failures:
            raise failures.popleft()

    async def give_up(self) -> None:
        self.was_given_up = True
        await self.stop(0)

    async def stop(self, grace: float) -> None:
        self.stops += 1
        if self.is_alive:
            if self.serving and not self.may_stop_while_serving:
                self._launcher.violations.append(f"{self.key} was stopped while it served")
            await asyncio.sleep(self._launcher.stopping)
            self.die(0)

    def die(self, status: int = -9) -> None:
        """Exit, whoever waits for it."""
        if self.is_alive:
            self._exit.set_result(status)


class ScriptedLauncher:
    """Starts ScriptedWorkers; `failures` are raised by the next loads in turn, `violations` must stay empty.

    There is memory for `memory_for` workers, awake or asleep: what comes on top fails for want of it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.loading, self.stopping, self.falling_asleep, self.waking = LOADING, STOPPING, FALLING_ASLEEP, WAKING
        self.can_sleep = False
        self.sleep_failures: deque[Exception] = deque()
        self.wake_failures: deque[Exception] = deque()
        self.when_loaded: Callable[[], object] = lambda: None
        self.failures: deque[Exception] = deque()
        self.workers: list[ScriptedWorker] = []
        self.violations: list[str] = []
        self.memory_for = 1000
        self.room_for: Callable[[Manifest], int] = lambda manifest: manifest.adapter_rank

    @property
    def living(self) -> list[ScriptedWorker]:
        return [worker for worker in self.workers if worker.is_alive]

    @property
    def awake(self) -> list[ScriptedWorker]:
        """Those that hold memory of a device."""
        return [worker for worker in self.living if not worker.is_asleep]

    def check_room(self, name: str) -> None:
        """Note where one more worker that is awake is one too many."""
        if len(self.awake) >= self._limit:
            self.violations.append(f"{name} is one worker too many")

    @staticmethod
    def engine_of(manifest: Manifest) -> str:
        return f"{manifest.name.key} {manifest.parameters['seed']}{' embeds' if manifest.embeds else ''}"

    async def room(self, manifest: Manifest, occupants: Sequence[Any], asleep: Placement | None) -> Room:
        return anywhere

    async def bring_up(
        self, worker: ScriptedWorker, manifest: Manifest, placement: Placement | None, stall_timeout: float | None
    ) -> Placement | None:
        await worker.become_ready(stall_timeout)
        return placement

    async def put_to_sleep(
        self, worker: ScriptedWorker, manifest: Manifest, placement: Placement | None
    ) -> tuple[float, Placement | None]:
        return await worker.sleep(), placement

    async def start(self, manifest: Manifest, placement: Placement | None = None) -> ScriptedWorker:
        if any(worker.is_loading for worker in self.living):
            self.violations.append(f"the load of {manifest.name} did not wait for its turn")
        self.check_room(manifest.name.display)
        if (manifest.name.key, manifest.embeds) in {(worker.key, worker.manifest.embeds) for worker in self.living}:
            self.violations.append(f"{manifest.name} was loaded twice")
        worker = ScriptedWorker(self, manifest)
        self.workers.append(worker)
        return worker


class Client:
    """One request: it waits for a lease, and holds it until `finish` or `leave`."""

    def __init__(self, scheduler: Scheduler, asked: Manifest, keep_alive: int | None) -> None:
        self.asked = asked
        self._served: asyncio.Future[Resident] = asyncio.get_running_loop().create_future()
        self._finish = asyncio.Event()
        self.task = asyncio.create_task(self._run(scheduler, keep_alive))

    async def _run(self, scheduler: Scheduler, keep_alive: int | None) -> None:
        try:
            async with (
                scheduler.lease(self.asked, Nanoseconds(keep_alive) if keep_alive is not None else None) as resident,
                self._at_work(resident),
            ):
                await self._finish.wait()
                scheduler.report_answer(resident)
        except Exception as error:  # noqa: BLE001 - whoever asks for the outcome gets it
            if not self._served.done():
                self._served.set_exception(error)
                self._served.exception()  # nobody has to ask

    @asynccontextmanager
    async def _at_work(self, resident: Resident) -> AsyncIterator[None]:
        worker: Any = resident.worker
        worker.serving += 1
        self._served.set_result(resident)
        try:
            yield
        finally:
            worker.serving -= 1

    @property
    def waits(self) -> bool:
        """Whether it has neither a lease nor an error yet."""
        return not self._served.done()

    @property
    def is_served(self) -> bool:
        return self._served.done() and self._served.exception() is None and not self.task.done()

    async def served(self) -> Resident:
        """Return the resident once it holds a lease on it; raise what the scheduler raised."""
        return await asyncio.shield(self._served)

    async def finish(self) -> None:
        """Have got the answer, and give the lease back."""
        self._finish.set()
        await self.task

    async def leave(self) -> None:
        """Go without a word, as a client that disconnects."""
        self.task.cancel()
        await asyncio.wait({self.task})


class Scene:
    """A scheduler with scripted workers, and clients that ask for models."""

    def __init__(
        self,
        settings: Settings,
        *,
        can_sleep: bool = False,
        launch: Callable[[int], ScriptedLauncher] = ScriptedLauncher,
        **changes: Any,
    ) -> None:
        settings = replace(settings, **changes)
        self.launcher = launch(settings.resident_limit())
        self.launcher.can_sleep = can_sleep
        self.loop = asyncio.get_running_loop()
        self.host_memory = HostMemory(2**40, 2**40)
        self.scheduler = Scheduler(
            settings, self.launcher, clock=lambda: EPOCH + self.loop.time(), host_memory=lambda: self.host_memory
        )
        self.clients: list[Client] = []

    def ask(self, name: str, keep_alive: int | None = None, *, version: int = 1) -> Client:
        return self.ask_for(manifest(name, version=version), keep_alive)

    def ask_for(self, asked: Manifest, keep_alive: int | None = None) -> Client:
        client = Client(self.scheduler, asked, keep_alive)
        self.clients.append(client)
        return client

    async def serve(self, name: str, keep_alive: int | None = None, *, version: int = 1) -> Resident:
        """Have one request answered."""
        client = self.ask(name, keep_alive, version=version)
        resident = await client.served()
        await client.finish()
        return resident

    @property
    def resident_names(self) -> list[str]:
        return [view.manifest.name.model for view in self.scheduler.residents()]

    @property
    def loads(self) -> list[str]:
        """The models that were loaded, in order."""
        return [worker.manifest.name.model for worker in self.launcher.workers]

    async def close(self) -> None:
        """End all, and check that nothing was done that must not be."""
        for worker in self.launcher.workers:
            worker.may_stop_while_serving = True
        for client in self.clients:
            await client.leave()
        await self.scheduler.close()
        assert not self.launcher.living
        assert self.launcher.violations == []


def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.create_task(work)
