"""What a server plans with, and what it learns of its loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_snapshot import make_manifest, write_snapshot

from vllama.installed.registry import InstalledVllm
from vllama.scheduler import engine_flags, planner
from vllama.scheduler.devices import Machine
from vllama.scheduler.memory import GIB, Claim, Device, Placement
from vllama.scheduler.planner import Planner
from vllama.scheduler.serving import Serving
from vllama.settings import Settings
from vllama.store.manifest import Manifest

pytestmark = pytest.mark.anyio

GPU = Device(0, "NVIDIA H200", 140 * GIB, 139 * GIB, id="0")


class Scene:
    """A machine with one GPU; `held` is what NVML says of the worker, None where it cannot tell."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpu = GPU
        self.held: dict[int, int] | None = None
        self.settings = Settings.from_environment({}, models=folder / "models")
        self.settings.models.mkdir()
        self.manifest: Manifest = make_manifest("a", write_snapshot(folder / "a"))
        self.planner = self.another_planner()
        self.ram = 2 * GIB
        monkeypatch.setattr(planner, "held_by", lambda _: self.held)
        monkeypatch.setattr(planner, "ram_of", lambda _: self.ram)
        monkeypatch.setattr(engine_flags, "has_gpu", lambda: True)

    def another_planner(self) -> Planner:
        return Planner(self.settings, Serving(installed=InstalledVllm()), look=self.look)

    def look(self) -> Machine:
        return Machine((self.gpu,))

    def place(self) -> Placement:
        found = self.another_planner().place(self.manifest, self.look())
        assert isinstance(found, Placement)
        return found

    def takes(self, size: int) -> None:
        self.gpu = replace(self.gpu, free=self.gpu.free - size)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


async def test_a_load_is_measured_by_its_processes(scene: Scene) -> None:
    plan = scene.place()
    scene.held = {0: plan.weights + plan.kv + 2 * GIB}
    measured = await scene.planner.learn_load(scene.manifest, plan, 1)
    assert measured.overhead.is_learned
    assert measured.claim == plan.claim - plan.overhead.fixed + 2 * GIB
    assert scene.place().overhead == measured.overhead


async def test_in_a_container_a_load_is_measured_by_what_is_free_after_it(scene: Scene) -> None:
    plan = scene.place()
    scene.takes(plan.weights + plan.kv + 3 * GIB)
    await scene.planner.learn_load(scene.manifest, plan, 1)
    scene.gpu = GPU
    assert scene.place().overhead.fixed == 3 * GIB


async def test_what_seems_to_take_nothing_teaches_nothing(scene: Scene) -> None:
    plan = scene.place()
    assert await scene.planner.learn_load(scene.manifest, plan, 1) == plan
    assert not scene.place().overhead.is_learned


@pytest.mark.parametrize("is_told", [True, False])
async def test_what_stays_in_sleep_is_learned(scene: Scene, *, is_told: bool) -> None:
    plan = scene.place()
    awake = plan.weights + plan.kv + 3 * GIB
    scene.takes(awake)
    scene.held = {0: awake} if is_told else None
    plan = await scene.planner.learn_load(scene.manifest, plan, 1)
    before = await scene.planner.before_sleep(1)
    assert before is not None
    scene.takes(GIB - awake)
    scene.held = {0: GIB} if is_told else None
    scene.ram += 5 * GIB
    asleep = await scene.planner.learn_sleep(scene.manifest, plan, 1, before)
    assert asleep.claims_asleep() == (Claim(0, GIB, GIB),)
    assert asleep.host_bytes == 5 * GIB
    assert scene.planner.knows_sleep(scene.manifest, plan)
    scene.gpu = GPU
    assert scene.place().overhead.asleep == GIB
    assert scene.place().host_bytes == 5 * GIB


async def test_a_sleep_takes_no_less_of_the_host_s_memory_than_the_weights(scene: Scene) -> None:
    plan = scene.place()
    scene.held = {0: GIB}
    before = await scene.planner.before_sleep(1)
    assert before is not None
    asleep = await scene.planner.learn_sleep(scene.manifest, plan, 1, before)
    assert asleep.host_bytes == plan.weights


async def test_before_its_first_sleep_what_it_will_take_is_estimated(scene: Scene) -> None:
    plan = scene.place()
    assert plan.host_bytes == plan.weights


async def test_gpus_that_nvml_does_not_know_are_not_planned(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cpu = Device(0, "Xeon", GIB, GIB, kind="cpu")
    blind = Planner(scene.settings, Serving(), look=lambda: Machine((cpu,), "nvidia-ml-py is not installed"))
    assert await blind.machine() is None
    assert "nvidia-ml-py is not installed" in caplog.text
    monkeypatch.setattr(engine_flags, "has_gpu", lambda: False)
    assert await blind.machine() == Machine((cpu,), "nvidia-ml-py is not installed")
