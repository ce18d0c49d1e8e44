"""A load that runs out of memory is tried once more without the others at rest (contract §6.4)."""

from __future__ import annotations

import logging

import pytest
from virtual_time import later, now

from vllama.errors import KeepsFailing, LoadFailed, OutOfMemory
from vllama.scheduler.policy import State

from .conftest import MakeScene
from .fakes import LOADING, STOPPING, Scene

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000


@pytest.fixture
async def crowded(make_scene: MakeScene) -> Scene:
    """By its plan it has room for three, and really for one."""
    scene = make_scene(max_loaded_models=3)
    scene.launcher.memory_for = 1
    return scene


async def test_those_at_rest_stop_and_all_who_wait_are_served_by_the_second_try(crowded: Scene) -> None:
    await crowded.serve("a")
    before = crowded.loop.time()
    clients = [crowded.ask("b") for _ in range(3)]
    for client in clients:
        await client.served()
    assert crowded.resident_names == ["b"]
    assert crowded.loads == ["a", "b", "b"]
    failed_and_stopped = LOADING + STOPPING + STOPPING
    assert crowded.loop.time() == pytest.approx(before + failed_and_stopped + LOADING)


async def test_while_others_stop_the_model_is_shown_as_loading_and_holds_nothing(crowded: Scene) -> None:
    await crowded.serve("a")
    crowded.ask("b")
    await later(LOADING + STOPPING + 0.1)
    (resident,) = crowded.scheduler._residency
    assert (resident.state, resident.worker, resident.holds) == (State.LOADING, None, 0)


async def test_sleepers_stop_too(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=1, can_sleep=True)
    await scene.serve("a")
    scene.launcher.memory_for = 1
    await scene.serve("b")
    assert scene.resident_names == ["b"]
    assert scene.loads == ["a", "b", "b"]


async def test_they_are_stopped_and_not_sent_to_sleep(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=3, can_sleep=True)
    await scene.serve("a")
    scene.launcher.memory_for = 1
    await scene.serve("b")
    assert scene.launcher.workers[0].sleeps == 0
    assert not scene.launcher.workers[0].is_alive


async def test_where_all_others_are_busy_or_pinned_it_fails_at_once(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=3, pin=("b",))
    await scene.serve("b")
    busy = scene.ask("a")
    await busy.served()
    scene.launcher.memory_for = 2
    before = scene.loop.time()
    with pytest.raises(OutOfMemory):
        await scene.ask("c").served()
    assert scene.loop.time() == pytest.approx(before + LOADING + STOPPING)
    assert sorted(scene.resident_names) == ["a", "b"]


async def test_who_is_busy_stays_and_is_not_waited_for_where_others_can_go(crowded: Scene) -> None:
    crowded.launcher.memory_for = 2
    await crowded.serve("a")
    busy = crowded.ask("b")
    await busy.served()
    await crowded.serve("c")
    assert sorted(crowded.resident_names) == ["b", "c"]
    assert busy.is_served


async def test_alone_it_fails_at_once(crowded: Scene) -> None:
    crowded.launcher.memory_for = 0
    with pytest.raises(OutOfMemory):
        await crowded.ask("a").served()
    assert crowded.loads == ["a"]


async def test_it_is_tried_no_more_than_twice_and_that_is_one_failure(crowded: Scene) -> None:
    await crowded.serve("a")
    crowded.launcher.memory_for = 0
    with pytest.raises(OutOfMemory):
        await crowded.ask("b").served()
    assert crowded.loads == ["a", "b", "b"]
    crowded.launcher.memory_for = 1
    await crowded.serve("b")  # at once: it was the first


async def test_a_load_that_goes_well_the_second_time_has_not_failed(crowded: Scene) -> None:
    await crowded.serve("a")
    client = crowded.ask("b", 0)
    await client.served()
    await client.leave()
    crowded.launcher.memory_for = 0
    with pytest.raises(OutOfMemory):
        await crowded.ask("b").served()
    crowded.launcher.memory_for = 1
    await crowded.serve("b")  # at once: that was the first


async def test_other_failures_evict_nobody(crowded: Scene) -> None:
    crowded.launcher.memory_for = 3
    await crowded.serve("a")
    crowded.launcher.failures.append(LoadFailed("weights are missing"))
    with pytest.raises(LoadFailed):
        await crowded.ask("b").served()
    assert crowded.resident_names == ["a"]


async def test_the_log_says_what_is_done_and_why(crowded: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await crowded.serve("a")
    await crowded.serve("b")
    assert "loading b:latest again after unloading 1 other models: GPU memory ran out" in caplog.text
    assert "unloading a:latest: b:latest ran out of memory while loading" in caplog.text


async def test_it_backs_off_as_other_failures_do(crowded: Scene) -> None:
    crowded.launcher.memory_for = 0
    for _ in range(2):
        with pytest.raises(OutOfMemory):
            await crowded.ask("a").served()
    with pytest.raises(KeepsFailing, match=r"failed 2 times in a row.*GPU memory ran out"):
        await crowded.ask("a").served()


async def test_a_server_that_stops_meanwhile_tells_those_who_wait(crowded: Scene) -> None:
    await crowded.serve("a")
    client = crowded.ask("b")
    await later(LOADING + STOPPING + 0.1)
    crowded.scheduler.refuse()
    await now()
    assert not client.waits
