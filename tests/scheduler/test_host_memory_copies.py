"""Copies of weights that awake models keep in host memory: begun while idle, kept within the budget, given up."""

from __future__ import annotations

import pytest
from virtual_time import later

from vllama.durations import FOREVER
from vllama.errors import SleepFailed

from .conftest import MakeScene
from .fakes import FALLING_ASLEEP, Scene, manifest

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000
MOMENT = 2.1
"""Seconds after which an idle model's copy has begun."""


def copies(scene: Scene) -> set[str]:
    """The models that are awake and have a copy."""
    return {worker.manifest.name.model for worker in scene.launcher.awake if worker.has_copy}


@pytest.fixture
def size() -> int:
    return manifest("a").size


async def test_the_copy_of_a_model_begins_when_it_has_been_idle_for_a_moment(make_scene: MakeScene) -> None:
    scene = make_scene(can_sleep=True)
    await scene.serve("a", FOREVER)
    await later(1.5)
    await scene.serve("a", FOREVER)
    await later(1.5)
    assert copies(scene) == set()
    await later(MOMENT)
    assert copies(scene) == {"a"}


async def test_a_model_at_work_is_left_alone(make_scene: MakeScene) -> None:
    scene = make_scene(can_sleep=True)
    client = scene.ask("a")
    await client.served()
    await later(60)
    assert copies(scene) == set()


async def test_without_a_budget_nothing_is_copied(make_scene: MakeScene) -> None:
    scene = make_scene(can_sleep=True, sleep_budget=0)
    await scene.serve("a", FOREVER)
    await later(MOMENT)
    assert copies(scene) == set()


async def test_a_worker_that_cannot_sleep_copies_nothing(make_scene: MakeScene) -> None:
    scene = make_scene()
    await scene.serve("a", FOREVER)
    await later(MOMENT)
    assert copies(scene) == set()


async def test_the_copy_outlives_a_wake_up_where_the_budget_has_room(make_scene: MakeScene, size: int) -> None:
    scene = make_scene(max_loaded_models=1, can_sleep=True, sleep_budget=2 * size)
    await scene.serve("a")
    await scene.serve("b")
    await scene.serve("a")
    assert copies(scene) == {"a"}


async def test_the_copy_goes_with_a_wake_up_where_sleeping_models_fill_the_budget(
    make_scene: MakeScene, size: int
) -> None:
    scene = make_scene(max_loaded_models=1, can_sleep=True, sleep_budget=size)
    await scene.serve("a", 1 * SECOND)
    await later(1 + FALLING_ASLEEP + 0.1)
    scene.host_memory = type(scene.host_memory)(total=20 * size, free=0)
    await scene.serve("a", FOREVER)
    assert copies(scene) == set()


async def test_a_copy_is_given_up_where_another_model_needs_the_room_to_sleep(make_scene: MakeScene, size: int) -> None:
    scene = make_scene(max_loaded_models=3, can_sleep=True, sleep_budget=size)
    await scene.serve("a", FOREVER)
    await later(MOMENT)
    assert copies(scene) == {"a"}
    await scene.serve("b", 1 * SECOND)
    await later(1 + FALLING_ASLEEP + 0.1)
    assert [worker.sleeps for worker in scene.launcher.workers] == [0, 1]
    assert copies(scene) == set()


async def test_a_copy_that_cannot_be_made_is_tried_again_after_the_next_request(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene(can_sleep=True)
    await scene.serve("a", FOREVER)
    worker = scene.launcher.workers[0]
    tries: list[str] = []

    async def fails() -> None:
        tries.append("tried")
        raise SleepFailed("no host memory")

    monkeypatch.setattr(worker, "prepare_sleep", fails)
    await later(MOMENT)
    await scene.serve("a", FOREVER)
    await later(MOMENT)
    assert tries == ["tried", "tried"]
