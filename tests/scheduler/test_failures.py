"""What fails to load again and again is tried less and less often, and says so."""

from __future__ import annotations

import pytest
from virtual_time import later

from vllama.errors import KeepsFailing, LoadFailed
from vllama.scheduler.failures import Failures

from .fakes import Scene

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
        "loading a:latest failed 2 times in a row and is not tried again for 5 s; the last failure: out of memory"
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
