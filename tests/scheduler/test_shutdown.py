"""`refuse` and `close`: who waits is told, workers are stopped, no task is left."""

from __future__ import annotations

import asyncio
import re

import pytest
from virtual_time import later, now

from vllama.errors import EngineError

from .conftest import MakeScene
from .fakes import LOADING, STOPPING, Scene, spawn

pytestmark = pytest.mark.anyio

STOPS = re.escape("the server is stopping")


async def test_refuse_lets_leases_go_on(scene: Scene) -> None:
    client = scene.ask("a")
    await client.served()
    scene.scheduler.refuse()
    await later(3600)
    assert client.is_served
    assert scene.launcher.workers[0].is_alive
    await client.finish()


async def test_refuse_gives_out_no_more_leases(scene: Scene) -> None:
    await scene.serve("a")
    scene.scheduler.refuse()
    for name in "ab":
        with pytest.raises(EngineError, match=STOPS):
            await scene.ask(name).served()


async def test_refuse_tells_all_who_wait_for_a_load(scene: Scene) -> None:
    clients = [scene.ask(name) for name in "aabb"]
    await later(1)
    scene.scheduler.refuse()
    before = scene.loop.time()
    for client in clients:
        with pytest.raises(EngineError, match=STOPS):
            await client.served()
    assert scene.loop.time() <= before + STOPPING
    assert scene.scheduler.residents() == []


async def test_refuse_tells_who_waits_for_a_place(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=1)
    working = scene.ask("a")
    await working.served()
    waiting = scene.ask("b")
    await now()
    scene.scheduler.refuse()
    with pytest.raises(EngineError, match=STOPS):
        await waiting.served()
    assert working.is_served


async def test_refuse_tells_who_waits_for_new_files(scene: Scene) -> None:
    working = scene.ask("a")
    await working.served()
    waiting = scene.ask("a", version=2)
    await now()
    scene.scheduler.refuse()
    with pytest.raises(EngineError, match=STOPS):
        await waiting.served()
    assert working.is_served


async def test_a_client_that_leaves_as_the_server_stops_is_not_told_that_it_stops(scene: Scene) -> None:
    client = scene.ask("a")
    await later(1)
    scene.scheduler.refuse()
    await client.leave()
    assert client.task.cancelled()


async def test_close_stops_every_worker_and_leaves_no_task(make_scene: MakeScene) -> None:
    before = asyncio.all_tasks()
    scene = make_scene(max_loaded_models=2)
    await scene.serve("a")
    serving, loading, queued = scene.ask("b"), scene.ask("c"), scene.ask("d")
    await serving.served()
    scene.launcher.workers[1].may_stop_while_serving = True
    await later(1)
    await scene.scheduler.close()
    assert scene.launcher.living == []
    assert scene.scheduler.residents() == []
    await serving.finish()
    assert loading.task.done()
    assert queued.task.done()
    assert asyncio.all_tasks() == before


async def test_close_stops_workers_at_the_same_time(scene: Scene) -> None:
    for name in "abc":
        await scene.serve(name)
    before = scene.loop.time()
    await scene.scheduler.close()
    assert scene.loop.time() == pytest.approx(before + STOPPING)


async def test_close_waits_for_workers_that_were_stopping_already(scene: Scene) -> None:
    await scene.serve("a", 0)
    await later(STOPPING / 2)
    await scene.scheduler.close()
    assert scene.launcher.living == []
    assert scene.launcher.workers[0].stops == 1


async def test_a_load_that_ends_with_the_server_does_not_keep_its_predecessor_from_stopping(
    make_scene: MakeScene,
) -> None:
    scene = make_scene(max_loaded_models=1)
    await scene.serve("a")
    newcomer = scene.ask("b")
    await later(STOPPING / 2)  # "a" is stopping, and "b" waits for that
    await scene.scheduler.close()
    assert scene.launcher.living == []
    assert scene.loads == ["a"]
    with pytest.raises(EngineError, match=STOPS):
        await newcomer.served()


async def test_close_may_be_called_again(scene: Scene) -> None:
    await scene.serve("a")
    first = spawn(scene.scheduler.close())
    await now()
    await scene.scheduler.close()
    await first
    assert scene.launcher.workers[0].stops == 1


async def test_no_keep_alive_is_left_behind(scene: Scene) -> None:
    await scene.serve("a")
    await scene.scheduler.close()
    await later(24 * 3600 + LOADING)
    assert scene.launcher.workers[0].stops == 1


@pytest.mark.parametrize("grace", [10, 0], ids=["politely", "at once"])
async def test_close_gives_up_no_healthy_worker(scene: Scene, grace: float) -> None:
    await scene.serve("a")
    await scene.scheduler.close(grace=grace)
    assert not scene.launcher.workers[0].was_given_up
