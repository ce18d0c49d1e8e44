"""Spare workers, with real processes in vLLM's place."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

from vllama.machine.host import HostMemory
from vllama.machine.proc import stats
from vllama.scheduler import spares as spares_module
from vllama.scheduler.process import Memory, WorkerProcess, WorkerSpec
from vllama.scheduler.spares import LEAST_FREE_BYTES, Spares, late_changes

from . import stand_in_worker

pytestmark = pytest.mark.anyio

T = TypeVar("T")
PATIENCE = 60.0
PAUSE = 0.01
USUAL = {**os.environ, "USUAL": "1"}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}  # processes take real time


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A directory for sockets: their paths have to be short."""
    with tempfile.TemporaryDirectory(prefix="vllama-") as directory:
        yield Path(directory)


def memory(free: int) -> HostMemory:
    return HostMemory(2**40, free)


class Scene:
    """Spares and the workers that they became; `output` is where spares write."""

    def __init__(self, runtime: Path, count: int) -> None:
        self._runtime = runtime
        self._workers: list[WorkerProcess] = []
        self._behaviour = "ready"
        self.output = runtime / "logs" / "spare.log"
        self.spares = Spares(count, self.command(), lambda: USUAL, self.output)

    @staticmethod
    def command(behaviour: str = "ready") -> tuple[str, ...]:
        return sys.executable, stand_in_worker.__file__, behaviour

    async def spare(self) -> int:
        """The process id of the latest spare, as soon as it waits."""
        return await within(self._printed())

    async def _printed(self) -> int:
        while True:
            text = self._printed_so_far()
            if text.endswith(" waits\n") and self.spares.available:  # it may wait before its parent knows it
                return int(text.split()[-2])
            await asyncio.sleep(0.01)

    def _printed_so_far(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    async def waiting(self, number: int) -> set[int]:
        """The process ids of so many spares, as soon as all of them wait."""

        async def look() -> set[int]:
            while len(found := re.findall(r"spare (\d+) waits\n", self._printed_so_far())) < number:
                await asyncio.sleep(0.01)
            return {int(pid) for pid in found}

        return await within(look())

    async def another_spare(self, than: int) -> int:
        """The process id of the spare that comes after one."""

        async def look() -> int:
            while (found := await self._printed()) == than:
                await asyncio.sleep(0.01)
            return found

        return await within(look())

    async def load(self, environment: Mapping[str, str] = USUAL, behaviour: str = "ready") -> WorkerProcess:
        """Start a worker; it is not ready yet."""
        number = len(self._workers)
        spec = WorkerSpec(
            arguments=["/model", "--uds", str(self._runtime / f"{number}.sock")],
            environment=environment,
            socket=self._runtime / f"{number}.sock",
            log=self._runtime / f"{number}.log",
            memory=Memory(0, 0),
            command=self.command(behaviour),
        )
        self._workers.append(await within(self.spares.start(spec)))
        return self._workers[-1]

    def told(self, worker: WorkerProcess) -> dict[str, Any]:
        """What a ready worker was told."""
        told: dict[str, Any] = json.loads(worker.socket.with_name(f"{worker.socket.name}.told").read_text())
        return told

    async def close(self) -> None:
        await within(self.spares.close())
        for worker in self._workers:
            await within(worker.stop(grace=0))


MakeScene = Callable[..., Scene]


@pytest.fixture
async def make_scene(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeScene]:
    monkeypatch.setattr(spares_module, "_PAUSE_SECONDS", PAUSE)
    monkeypatch.setattr(spares_module, "host_memory", lambda: memory(2 * LEAST_FREE_BYTES))  # whatever else runs here
    scenes: list[Scene] = []

    def make(count: int = 1) -> Scene:
        own = runtime / str(len(scenes))
        own.mkdir()
        scenes.append(Scene(own, count))
        return scenes[-1]

    yield make
    for scene in scenes:
        await scene.close()


def children() -> set[int]:
    """The processes that this one has started and not reaped."""
    return {pid for pid, stat in stats() if stat.parent == os.getpid()}


async def within(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, PATIENCE)


async def test_a_load_takes_the_spare(make_scene: MakeScene) -> None:
    scene = make_scene()
    scene.spares.open()
    spare = await scene.spare()
    worker = await scene.load()
    await within(worker.become_ready(PATIENCE))
    assert worker.pid == spare
    assert worker.context_length == 2048


async def test_a_spare_becomes_what_a_fresh_process_is(make_scene: MakeScene) -> None:
    scene = make_scene()
    fresh = await scene.load()
    await within(fresh.become_ready(PATIENCE))
    scene.spares.open()
    spare = await scene.spare()
    taken = await scene.load()
    await within(taken.become_ready(PATIENCE))
    assert taken.pid == spare != fresh.pid
    one, other = scene.told(fresh), scene.told(taken)
    assert one["arguments"] == [*other["arguments"][:2], str(fresh.socket)]
    assert one["environment"] == {**other["environment"], "VLLAMA_PARENT_PID": str(fresh.pid)}
    assert os.getpgid(taken.pid) == taken.pid
    assert taken.log.tail() == fresh.log.tail() != ""
    for descriptor in range(3):
        assert _file(taken.pid, descriptor).replace("1.log", "0.log") == _file(fresh.pid, descriptor)


def _file(pid: int, descriptor: int) -> str:
    return str(Path(f"/proc/{pid}/fd/{descriptor}").readlink())


async def test_what_is_read_late_is_told_to_the_spare(make_scene: MakeScene) -> None:
    scene = make_scene()
    scene.spares.open()
    spare = await scene.spare()
    worker = await scene.load({**USUAL, "CUDA_VISIBLE_DEVICES": "1"})
    await within(worker.become_ready(PATIENCE))
    assert worker.pid == spare
    assert scene.told(worker)["environment"]["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize("changed", [{**USUAL, "USUAL": "2"}, {**USUAL, "MORE": "1"}, dict(os.environ)])
async def test_another_environment_needs_a_fresh_process_and_leaves_the_spare(
    make_scene: MakeScene, changed: Mapping[str, str]
) -> None:
    scene = make_scene()
    scene.spares.open()
    spare = await scene.spare()
    worker = await scene.load(changed)
    await within(worker.become_ready(PATIENCE))
    assert worker.pid != spare
    assert (await scene.load()).pid == spare


async def test_the_next_spare_comes_when_the_load_has_ended(make_scene: MakeScene) -> None:
    scene = make_scene()
    scene.spares.open()
    first = await scene.spare()
    before = children()
    worker = await scene.load()
    await within(worker.become_ready(PATIENCE))  # which takes several times the pause
    assert children() == before  # no other has begun to import meanwhile
    second = await scene.another_spare(first)
    assert (await scene.load()).pid == second


async def test_a_spare_waits_until_nobody_is_served(make_scene: MakeScene) -> None:
    scene = make_scene()
    looks: list[bool] = []

    def is_quiet() -> bool:
        looks.append(scene.output.exists())
        return len(looks) > 3

    scene.spares.open(is_quiet)
    spare = await scene.spare()
    assert looks == [False] * 4
    assert (await scene.load()).pid == spare


async def test_a_server_that_is_never_quiet_gets_its_spare_all_the_same(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spares_module, "_MOST_PATIENCE_SECONDS", 0.05)
    scene = make_scene()
    scene.spares.open(lambda: False)
    spare = await scene.spare()
    assert (await scene.load()).pid == spare


async def test_a_load_that_fails_has_ended_too(make_scene: MakeScene) -> None:
    scene = make_scene()
    scene.spares.open()
    first = await scene.spare()
    worker = await scene.load()
    os.kill(worker.pid, signal.SIGKILL)
    await scene.another_spare(first)


async def test_a_spare_that_is_killed_is_replaced_and_no_load_gets_it(make_scene: MakeScene) -> None:
    scene = make_scene()
    scene.spares.open()
    first = await scene.spare()
    os.kill(first, signal.SIGKILL)
    second = await scene.another_spare(first)
    worker = await scene.load()
    await within(worker.become_ready(PATIENCE))
    assert worker.pid == second


async def test_a_load_works_though_nobody_has_noticed_yet_that_the_spare_is_dead(make_scene: MakeScene) -> None:
    scene = make_scene()
    scene.spares.open()
    spare = await scene.spare()
    os.kill(spare, signal.SIGKILL)
    os.waitid(os.P_PID, spare, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - the event loop must not see it yet
    worker = await scene.load()
    await within(worker.become_ready(PATIENCE))


async def test_a_spare_that_was_killed_and_has_not_ended_gets_no_order(make_scene: MakeScene) -> None:
    scene = make_scene()
    scene.spares.open()
    spare = await scene.spare()
    os.kill(spare, signal.SIGKILL)
    worker = await scene.load()
    await within(worker.become_ready(PATIENCE))
    assert worker.pid != spare


async def test_spares_that_die_again_and_again_come_ever_more_slowly(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene()
    pauses: list[float] = []

    def replenish_now(seconds: float) -> None:
        pauses.append(seconds)
        scene.spares._replenish()

    monkeypatch.setattr(scene.spares, "_replenish_later", replenish_now)
    scene.spares.open()
    spare = 0
    for _ in range(3):
        spare = await scene.another_spare(spare)
        os.kill(spare, signal.SIGKILL)
    await scene.another_spare(spare)
    assert pauses == [0.02, 0.04, 0.08]


async def test_none_are_kept_before_they_are_wanted_or_where_none_are(make_scene: MakeScene) -> None:
    closed, none = make_scene(), make_scene(0)
    none.spares.open()
    before = children()
    for scene in (closed, none):
        worker = await scene.load()
        await within(worker.become_ready(PATIENCE))
        before.add(worker.pid)
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(2 * PAUSE, passed.set)  # after the timer that would prepare one
    await within(passed.wait())
    assert children() == before
    assert not closed.output.exists()


async def test_none_is_prepared_where_memory_is_short(make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares_module, "host_memory", lambda: memory(LEAST_FREE_BYTES - 1))
    scene = make_scene()
    scene.spares.open()
    await within((await scene.load()).become_ready(PATIENCE))
    assert not scene.output.exists()
    monkeypatch.setattr(spares_module, "_LOOK_AGAIN_SECONDS", 0.01)
    scene.spares.open()  # which looks again, and again
    monkeypatch.setattr(spares_module, "host_memory", lambda: memory(LEAST_FREE_BYTES))
    await scene.spare()


async def test_closing_ends_them(make_scene: MakeScene) -> None:
    scene = make_scene()
    scene.spares.open()
    spare = await scene.spare()
    await within(scene.spares.close())
    with pytest.raises(ProcessLookupError):
        os.kill(spare, 0)


async def test_several_are_kept_where_several_are_wanted(make_scene: MakeScene) -> None:
    scene = make_scene(2)
    scene.spares.open()
    both = await scene.waiting(2)
    assert {(await scene.load()).pid, (await scene.load()).pid} == both


def test_a_late_variable_cannot_be_taken_away() -> None:
    assert late_changes({"CUDA_VISIBLE_DEVICES": "0"}, {}) is None
    assert late_changes({}, {"CUDA_VISIBLE_DEVICES": "0"}) == {"CUDA_VISIBLE_DEVICES": "0"}
    assert late_changes({"A": "1"}, {"A": "1"}) == {}
