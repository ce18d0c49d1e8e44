"""Sleep before stop: models whose keep-alive has ended, or that make room, sleep and wake on demand."""

from __future__ import annotations

import asyncio

import pytest
from virtual_time import later, now

from vllama.durations import FOREVER
from vllama.errors import EngineError, LoadFailed
from vllama.machine.host import HostMemory
from vllama.scheduler.policy import State

from .conftest import MakeScene
from .fakes import FALLING_ASLEEP, LOADING, STOPPING, WAKING, Scene, manifest

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000
MINUTE = 60 * SECOND


def states(scene: Scene) -> dict[str, State]:
    return {view.manifest.name.model: view.state for view in scene.scheduler.residents()}


@pytest.fixture
async def sleepy(make_scene: MakeScene) -> Scene:
    """Room for one that is awake, and for any number that sleep."""
    return make_scene(max_loaded_models=1, can_sleep=True)


async def asleep(scene: Scene, name: str = "a") -> None:
    """Bring a model to sleep by its keep-alive."""
    await scene.serve(name, 1 * SECOND)
    await later(1 + FALLING_ASLEEP + 0.1)
    assert states(scene)[name] is State.ASLEEP


async def test_a_model_whose_keep_alive_has_ended_sleeps(sleepy: Scene) -> None:
    await asleep(sleepy)
    assert sleepy.launcher.workers[0].is_alive


async def test_a_request_wakes_it(sleepy: Scene) -> None:
    await asleep(sleepy)
    before = sleepy.loop.time()
    await sleepy.serve("a")
    assert sleepy.loop.time() == pytest.approx(before + WAKING)
    assert sleepy.loads == ["a"]


async def test_one_wake_serves_all_who_wait(sleepy: Scene) -> None:
    await asleep(sleepy)
    clients = [sleepy.ask("a") for _ in range(20)]
    for client in clients:
        await client.served()
    assert sleepy.launcher.workers[0].wakes == 1
    assert sleepy.scheduler.residents()[0].leases == 20


async def test_it_wakes_though_the_client_leaves(sleepy: Scene) -> None:
    await asleep(sleepy)
    client = sleepy.ask("a")
    await now()
    await client.leave()
    await later(WAKING)
    assert states(sleepy) == {"a": State.READY}


async def test_after_waking_the_keep_alive_is_that_of_a_new_load(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=1, can_sleep=True, keep_alive=7 * SECOND)
    await asleep(scene)
    await scene.serve("a")
    await later(6.9)
    assert states(scene) == {"a": State.READY}
    await later(0.2)
    assert states(scene) == {"a": State.SLEEPING}


async def test_a_request_s_own_keep_alive_counts_after_waking_too(sleepy: Scene) -> None:
    await asleep(sleepy)
    await sleepy.serve("a", FOREVER)
    assert sleepy.scheduler.residents()[0].expires_at is None


async def test_a_request_that_comes_while_it_falls_asleep_waits_and_wakes_it(sleepy: Scene) -> None:
    await sleepy.serve("a", 1 * SECOND)
    await later(1 + FALLING_ASLEEP / 2)
    assert states(sleepy) == {"a": State.SLEEPING}
    await sleepy.serve("a")
    assert sleepy.loads == ["a"]
    assert sleepy.launcher.workers[0].wakes == 1


async def test_a_newcomer_sends_an_idle_model_to_sleep(sleepy: Scene) -> None:
    await sleepy.serve("a")
    await sleepy.serve("b")
    assert states(sleepy) == {"a": State.ASLEEP, "b": State.READY}
    assert sleepy.loop.time() == pytest.approx(LOADING + FALLING_ASLEEP + LOADING)


async def test_two_models_in_one_place_change_without_a_load(sleepy: Scene) -> None:
    await sleepy.serve("a")
    await sleepy.serve("b")
    before = sleepy.loop.time()
    for _ in range(5):
        await sleepy.serve("a")
        await sleepy.serve("b")
    assert sleepy.loads == ["a", "b"]
    assert sleepy.loop.time() == pytest.approx(before + 10 * (FALLING_ASLEEP + WAKING))


async def test_a_model_at_work_is_not_sent_to_sleep(sleepy: Scene) -> None:
    working = sleepy.ask("a")
    await working.served()
    newcomer = sleepy.ask("b")
    await later(3600)
    assert newcomer.waits
    await working.finish()
    await newcomer.served()


async def test_a_wake_does_not_wait_for_the_load_of_another(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=2, can_sleep=True)
    await asleep(scene)
    loading = scene.ask("b")
    await later(1)
    before = scene.loop.time()
    await scene.serve("a")
    assert scene.loop.time() == pytest.approx(before + WAKING)
    assert loading.waits


async def test_loads_and_wakes_that_need_the_same_room_go_in_order_of_arrival(sleepy: Scene) -> None:
    await asleep(sleepy)
    working = sleepy.ask("b")
    await working.served()
    cold, woken = sleepy.ask("c"), sleepy.ask("a")
    await now()
    await working.finish()
    await cold.served()
    assert woken.waits
    await cold.finish()
    await woken.served()


async def test_keep_alive_0_stops_and_does_not_sleep(sleepy: Scene) -> None:
    await sleepy.serve("a", 0)
    assert states(sleepy) == {}
    await later(STOPPING + 1)
    assert sleepy.launcher.living == []


async def test_an_unload_stops_a_model_that_sleeps(sleepy: Scene) -> None:
    await asleep(sleepy)
    sleepy.scheduler.unload(manifest("a"))
    await later(STOPPING + 1)
    assert sleepy.launcher.living == []


async def test_an_unload_stops_a_model_that_is_falling_asleep_once_it_sleeps(sleepy: Scene) -> None:
    await sleepy.serve("a", 1 * SECOND)
    await later(1 + FALLING_ASLEEP / 2)
    sleepy.scheduler.unload(manifest("a"))
    await later(FALLING_ASLEEP + STOPPING)
    assert sleepy.launcher.living == []


async def test_an_unload_of_a_model_that_wakes_lets_it_serve_those_who_wait(sleepy: Scene) -> None:
    await asleep(sleepy)
    client = sleepy.ask("a", FOREVER)
    await later(WAKING / 2)
    sleepy.scheduler.unload(manifest("a"))
    await client.served()
    await client.finish()
    assert states(sleepy) == {}


async def test_a_model_that_has_slept_for_long_is_stopped(make_scene: MakeScene) -> None:
    scene = make_scene(can_sleep=True, sleep_timeout=100 * SECOND)
    await asleep(scene)
    await later(99)
    assert states(scene) == {"a": State.ASLEEP}
    await later(2)
    assert states(scene) == {}


async def test_a_sleeping_model_says_when_it_will_be_stopped(make_scene: MakeScene) -> None:
    scene = make_scene(can_sleep=True, sleep_timeout=100 * SECOND)
    await asleep(scene)
    (view,) = scene.scheduler.residents()
    assert view.expires_at == pytest.approx(1_800_000_000 + scene.loop.time() + 100, abs=0.2)


async def test_without_a_timeout_a_model_sleeps_for_ever(make_scene: MakeScene) -> None:
    scene = make_scene(can_sleep=True, sleep_timeout=None)
    await asleep(scene)
    await later(365 * 24 * 3600)
    assert states(scene) == {"a": State.ASLEEP}
    assert scene.scheduler.residents()[0].expires_at is None


async def test_without_a_budget_a_model_stops(make_scene: MakeScene) -> None:
    scene = make_scene(can_sleep=True, sleep_budget=0)
    await scene.serve("a", 1 * SECOND)
    await later(1.1)
    assert states(scene) == {}


async def test_a_budget_is_no_more_than_the_memory_that_is_there(make_scene: MakeScene) -> None:
    size = manifest("a").size
    scene = make_scene(max_loaded_models=1, can_sleep=True, sleep_budget=9 * size)
    scene.host_memory = HostMemory(total=20 * size, free=2 * size)  # one is left alone
    await scene.serve("a")
    await scene.serve("b")
    assert states(scene) == {"a": State.ASLEEP, "b": State.READY}
    scene.host_memory = HostMemory(total=20 * size, free=size)
    await scene.serve("c")
    assert states(scene) == {"b": State.ASLEEP, "c": State.READY}  # it took the place of the first


async def test_a_share_is_of_all_of_the_host_s_memory(make_scene: MakeScene) -> None:
    size = manifest("a").size
    scene = make_scene(max_loaded_models=1, can_sleep=True, sleep_budget=0.1)
    scene.host_memory = HostMemory(total=15 * size, free=9 * size)
    for name in "abc":
        await scene.serve(name)
    assert states(scene) == {"b": State.ASLEEP, "c": State.READY}


async def test_where_the_budget_is_full_the_longest_asleep_stops(make_scene: MakeScene) -> None:
    size = manifest("a").size
    scene = make_scene(max_loaded_models=1, can_sleep=True, sleep_budget=2 * size)
    for name in "abcd":
        await scene.serve(name)
    assert states(scene) == {"b": State.ASLEEP, "c": State.ASLEEP, "d": State.READY}


async def test_a_model_that_cannot_fall_asleep_is_stopped(sleepy: Scene) -> None:
    sleepy.launcher.sleep_failures.append(EngineError("no host memory"))
    await sleepy.serve("a")
    await sleepy.serve("b")
    assert states(sleepy) == {"b": State.READY}


async def test_a_model_whose_weights_are_wrong_after_waking_is_loaded_afresh_for_those_who_wait(sleepy: Scene) -> None:
    await asleep(sleepy)
    sleepy.launcher.wake_failures.append(EngineError("weights changed while the model slept"))
    clients = [sleepy.ask("a") for _ in range(3)]
    for client in clients:
        await client.served()
    assert sleepy.loads == ["a", "a"]
    assert [worker.is_alive for worker in sleepy.launcher.workers] == [False, True]


async def test_a_worker_that_dies_asleep_leaves_the_table(sleepy: Scene) -> None:
    await asleep(sleepy)
    sleepy.launcher.workers[0].die()
    await now()
    assert states(sleepy) == {}
    await sleepy.serve("a")
    assert sleepy.loads == ["a", "a"]


async def test_a_worker_that_dies_while_it_wakes_is_replaced_for_those_who_wait(sleepy: Scene) -> None:
    await asleep(sleepy)
    client = sleepy.ask("a")
    await later(WAKING / 2)
    sleepy.launcher.workers[0].die()
    await client.served()
    assert sleepy.loads == ["a", "a"]


async def test_a_worker_that_dies_while_it_falls_asleep_makes_room(sleepy: Scene) -> None:
    await sleepy.serve("a")
    newcomer = sleepy.ask("b")
    await later(FALLING_ASLEEP / 2)
    sleepy.launcher.workers[0].die()
    await newcomer.served()
    assert states(sleepy) == {"b": State.READY}


async def test_an_order_to_sleep_ends_with_its_worker(sleepy: Scene) -> None:
    await sleepy.serve("a")
    newcomer = sleepy.ask("b")
    await later(FALLING_ASLEEP / 2)
    sleepy.launcher.workers[0].die()
    await newcomer.served()
    await later(FALLING_ASLEEP)
    assert sleepy.launcher.workers[0].sleeps == 0


async def test_an_order_to_wake_ends_with_its_worker(sleepy: Scene) -> None:
    await asleep(sleepy)
    client = sleepy.ask("a")
    await later(WAKING / 2)
    sleepy.launcher.workers[0].die()
    await client.served()
    await later(WAKING)
    assert sleepy.launcher.workers[0].wakes == 0


async def test_a_wake_and_the_fresh_load_after_it_may_both_fail(sleepy: Scene) -> None:
    await asleep(sleepy)
    sleepy.launcher.wake_failures.append(EngineError("wrong"))
    sleepy.launcher.failures.append(LoadFailed("out of memory"))
    with pytest.raises(LoadFailed, match="out of memory"):
        await sleepy.ask("a").served()
    assert states(sleepy) == {}


async def test_new_files_stop_what_sleeps_under_the_name(sleepy: Scene) -> None:
    await asleep(sleepy)
    await sleepy.serve("a", version=2)
    assert sleepy.loads == ["a", "a"]
    assert len(sleepy.launcher.living) == 1


async def test_who_waits_for_a_wake_is_told_that_the_server_stops(sleepy: Scene) -> None:
    await asleep(sleepy)
    client = sleepy.ask("a")
    await later(WAKING / 2)
    sleepy.scheduler.refuse()
    with pytest.raises(EngineError, match="the server is stopping"):
        await client.served()


async def test_close_stops_those_that_sleep_fall_asleep_and_wake(make_scene: MakeScene) -> None:
    before = asyncio.all_tasks()
    scene = make_scene(can_sleep=True)
    await asleep(scene, "a")
    await asleep(scene, "b")
    await scene.serve("c", 1 * SECOND)
    await later(1 + FALLING_ASLEEP / 2)
    waking = scene.ask("b")
    await now()
    assert set(states(scene).values()) == {State.ASLEEP, State.WAKING, State.SLEEPING}
    await scene.scheduler.close()
    assert scene.launcher.living == []
    assert waking.task.done()
    await now()
    assert asyncio.all_tasks() == before
