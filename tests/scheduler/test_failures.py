"""What fails to load again and again is tried less and less often, and says so."""

from __future__ import annotations

import pytest
from virtual_time import later, now

from vllama.errors import KeepsFailing, LoadFailed
from vllama.scheduler.failures import Failures

from .fakes import LOADING, STOPPING, Scene

pytestmark = pytest.mark.anyio

OUT_OF_MEMORY = "out of memory"


async def fail(scene: Scene, *, version: int = 1) -> None:
    scene.launcher.failures.append(LoadFailed(OUT_OF_MEMORY))
    with pytest.raises(LoadFailed, match=f"^{OUT_OF_MEMORY}$"):
        await scene.ask("a", version=version).served()


async def test_after_the_first_failure_the_next_request_tries_at_once(scene: Scene) -> None:
    await fail(scene)
    await scene.serve("a")


async def test_after_the_second_failure_a_request_is_told_when_to_come_back_and_why(scene: Scene) -> None:
    await fail(scene)
    await fail(scene)
    with pytest.raises(KeepsFailing) as caught:
        await scene.ask("a").served()
    assert caught.value.retry_after == 5
    assert str(caught.value) == (
        "a:latest failed 2 times in a row; it will not be loaded again for 5 s. Last failure: out of memory"
    )
    assert len(scene.loads) == 2


async def test_the_pauses_grow_up_to_five_minutes(scene: Scene) -> None:
    await fail(scene)
    pauses = []
    for _ in range(9):
        await fail(scene)
        with pytest.raises(KeepsFailing) as caught:
            await scene.ask("a").served()
        pauses.append(caught.value.retry_after)
        await later(pauses[-1] or 0)
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]


async def test_many_who_wait_for_one_load_make_one_failure(scene: Scene) -> None:
    scene.launcher.failures.append(LoadFailed(OUT_OF_MEMORY))
    clients = [scene.ask("a") for _ in range(20)]
    for client in clients:
        with pytest.raises(LoadFailed):
            await client.served()
    await scene.serve("a")


async def test_a_success_ends_the_count(scene: Scene) -> None:
    await fail(scene)
    await fail(scene)
    await later(5)
    await scene.serve("a", 0)
    await fail(scene)
    await scene.serve("a")


async def die(scene: Scene) -> None:
    """Have the model loaded, and its worker die before it has answered."""
    client = scene.ask("a")
    await client.served()
    worker = scene.launcher.workers[-1]
    worker.die()
    await client.leave()
    await later(STOPPING)


async def test_after_a_death_the_next_request_loads_at_once(scene: Scene) -> None:
    await die(scene)
    before = scene.loop.time()
    await scene.serve("a")
    assert scene.loop.time() == pytest.approx(before + LOADING)


async def test_a_worker_that_dies_again_before_it_has_answered_is_loaded_later_and_requests_are_told_why(
    scene: Scene,
) -> None:
    await die(scene)
    await die(scene)
    with pytest.raises(KeepsFailing) as caught:
        await scene.ask("a").served()
    assert caught.value.retry_after == 5 - STOPPING
    assert str(caught.value) == (
        "a:latest failed 2 times in a row; it will not be loaded again for 3 s. Last failure: its worker died: SIGSEGV"
    )
    await later(5 - STOPPING)
    await scene.serve("a")


async def test_deaths_and_failed_loads_are_one_row(scene: Scene) -> None:
    await fail(scene)
    await die(scene)
    with pytest.raises(KeepsFailing, match="failed 2 times in a row"):
        await scene.ask("a").served()


async def test_however_often_a_worker_dies_that_has_answered_the_next_request_loads_at_once(scene: Scene) -> None:
    for _ in range(20):
        await scene.serve("a")
        scene.launcher.workers[-1].die()
        await later(STOPPING)
    assert len(scene.loads) == 20


async def test_a_worker_that_dies_long_after_its_load_begins_a_new_row(scene: Scene) -> None:
    for _ in range(5):
        client = scene.ask("a")
        await client.served()
        await later(31)
        scene.launcher.workers[-1].die()
        await client.leave()
        await later(STOPPING)
    await scene.serve("a")


async def test_a_worker_that_is_reported_dead_and_then_exits_died_once(scene: Scene) -> None:
    for _ in range(2):
        client = scene.ask("a")
        resident = await client.served()
        scene.launcher.workers[-1].may_stop_while_serving = True
        scene.scheduler.report_death(resident)
        await client.leave()
        await later(STOPPING)
        assert scene.launcher.workers[-1].was_given_up
        if len(scene.loads) == 1:
            assert scene.resident_names == []
    with pytest.raises(KeepsFailing, match="failed 2 times in a row"):
        await scene.ask("a").served()


async def test_an_answer_that_arrives_after_the_death_proves_nothing(scene: Scene) -> None:
    for _ in range(2):
        client = scene.ask("a")
        await client.served()
        scene.launcher.workers[-1].die()
        await now()
        await client.finish()
        await later(STOPPING)
    with pytest.raises(KeepsFailing):
        await scene.ask("a").served()


async def test_what_we_stop_has_not_died(scene: Scene) -> None:
    for _ in range(5):
        client = scene.ask("a", 0)
        await client.served()
        await client.leave()
        await later(STOPPING)
    await scene.serve("a")


async def test_changed_files_are_tried_at_once(scene: Scene) -> None:
    await fail(scene)
    await fail(scene)
    await scene.serve("a", version=2)


async def test_other_models_are_not_held_back(scene: Scene) -> None:
    await fail(scene)
    await fail(scene)
    await scene.serve("b")


def test_what_failed_long_ago_is_forgotten() -> None:
    failures = Failures()
    failures.note("old", OUT_OF_MEMORY, 0.0)
    failures.note("old", OUT_OF_MEMORY, 1.0)
    failures.note("new", OUT_OF_MEMORY, 4000.0)
    failures.note("old", OUT_OF_MEMORY, 4000.0)
    failures.check("old", "old", 4000.0)
