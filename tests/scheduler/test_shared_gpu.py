"""Models that share one GPU by the memory plan: the scheduler with scripted workers and a GPU that counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from virtual_time import later

from vllama.errors import NoRoom
from vllama.scheduler.devices import Machine
from vllama.scheduler.memory import GIB, Claim, Device, Learned, Need, Placement
from vllama.scheduler.placing import changed
from vllama.scheduler.policy import Room, State
from vllama.scheduler.room import Occupant, PlannedRoom
from vllama.store.kv_shape import KvShape
from vllama.store.manifest import Manifest

from .conftest import MakeScene
from .fakes import FALLING_ASLEEP, WAKING, Scene, ScriptedLauncher, ScriptedWorker

pytestmark = pytest.mark.anyio

GPU = Device(0, "NVIDIA H100", 80 * GIB, 79 * GIB, id="0")
SIZES = {"large": 60, "huge": 200}
"""GiB of weights by the beginning of a model's name; others have 3."""


def need_of(name: str) -> Need:
    weights = next((size for beginning, size in SIZES.items() if name.startswith(beginning)), 3)
    learned = {GPU.name: Learned(2 * GIB, GIB)}
    return Need(name, weights * GIB, KvShape(8192, kv_heads=8), 8192, learned=learned)


class GpuLauncher(ScriptedLauncher):
    """Its workers hold what they were placed with; the GPU must never hold more than it has."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.placements: dict[ScriptedWorker, Placement] = {}
        self.looks = 0

    def claims(self, worker: ScriptedWorker) -> tuple[Claim, ...]:
        placement = self.placements[worker]
        return placement.claims_asleep() if worker.is_asleep else placement.claims(is_loaded=True)

    def machine(self) -> Machine:
        held = [claim for worker in self.living if not worker.is_loading for claim in self.claims(worker)]
        if sum(claim.size for claim in held) > GPU.free:
            self.violations.append("the GPU holds more than it has")
        return Machine(changed([GPU], (), held))

    async def room(self, asked: Manifest, occupants: Sequence[Occupant | None], asleep: Placement | None) -> Room:
        self.looks += 1
        await asyncio.sleep(0.01)  # a look at the machine takes a while, and others go on meanwhile
        assert None not in occupants
        known = [occupant for occupant in occupants if occupant is not None]
        return PlannedRoom(self.machine(), known, asleep or need_of(asked.name.model))

    async def start(self, asked: Manifest, placement: Placement | None = None) -> ScriptedWorker:
        assert placement is not None
        worker = await super().start(asked)
        self.placements[worker] = placement
        return worker


@pytest.fixture
async def shared(make_scene: MakeScene) -> Scene:
    return make_scene(launch=GpuLauncher, can_sleep=True, sleep_budget=500 * GIB, min_residency=0)


def states(scene: Scene) -> dict[str, State]:
    return {view.manifest.name.model: view.state for view in scene.scheduler.residents()}


async def test_small_models_stay_awake_together(shared: Scene) -> None:
    for name in ("a", "b", "c"):
        await shared.serve(name)
    assert states(shared) == dict.fromkeys("abc", State.READY)


async def test_two_models_that_fill_the_gpu_take_turns_asleep(shared: Scene) -> None:
    await shared.serve("large1")
    await shared.serve("large2")
    assert states(shared) == {"large1": State.ASLEEP, "large2": State.READY}
    before = shared.loop.time()
    for name in ("large1", "large2", "large1"):
        await shared.serve(name)
    assert shared.loop.time() - before == pytest.approx(3 * (FALLING_ASLEEP + WAKING), abs=0.2)
    assert shared.loads == ["large1", "large2"]


async def test_a_small_model_s_room_is_made_by_the_large_one_alone(shared: Scene) -> None:
    await shared.serve("a")
    await shared.serve("large")
    assert states(shared) == {"a": State.READY, "large": State.READY}
    await shared.serve("large2")
    assert states(shared)["large"] is State.ASLEEP
    assert states(shared)["a"] is State.READY


async def test_a_model_that_never_fits_is_refused_before_anything_starts_or_goes(shared: Scene) -> None:
    await shared.serve("a")
    with pytest.raises(NoRoom, match=r"model requires more GPU memory \(20[0-9.]+ GiB\) than is available"):
        await shared.serve("huge")
    assert shared.loads == ["a"]
    assert states(shared) == {"a": State.READY}


async def test_a_newcomer_waits_for_a_busy_model_that_fills_the_gpu(shared: Scene) -> None:
    busy = shared.ask("large1")
    await busy.served()
    newcomer = shared.ask("large2")
    await later(5)
    assert newcomer.waits
    await busy.finish()
    await newcomer.served()
    assert states(shared) == {"large1": State.ASLEEP, "large2": State.READY}


async def test_what_changes_while_the_machine_is_looked_at_is_heeded(shared: Scene) -> None:
    await shared.serve("large1")
    async with asyncio.TaskGroup() as group:
        for name in ("large2", "a", "large1", "b", "large2"):
            group.create_task(shared.serve(name))
    assert sorted(set(shared.loads)) == ["a", "b", "large1", "large2"]


async def test_requests_that_come_and_go_are_no_reason_to_look_at_the_machine_again(shared: Scene) -> None:
    working = shared.ask("large1")
    await working.served()
    newcomer = shared.ask("large2")
    await later(0.5)
    launcher = shared.launcher
    assert isinstance(launcher, GpuLauncher)
    looks = launcher.looks
    for _ in range(20):
        await shared.serve("large1")
    assert launcher.looks <= looks + 1
    assert newcomer.waits


async def test_what_needs_the_memory_of_a_pinned_model_is_refused_with_the_numbers(make_scene: MakeScene) -> None:
    scene = make_scene(launch=GpuLauncher, can_sleep=True, sleep_budget=500 * GIB, pin=("large1",))
    await scene.serve("large1")
    with pytest.raises(NoRoom, match=r"^model requires more GPU memory .*; pinned \(VLLAMA_PIN\): large1:latest$"):
        await scene.ask("large2").served()
