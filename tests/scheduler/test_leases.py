"""One load however many wait; a lease keeps a model; what failures, deaths and new files do."""

from __future__ import annotations

import pytest
from virtual_time import later, now

from vllama.errors import BadEngineFlags, LoadFailed, WorkerDied
from vllama.scheduler.policy import State

from .conftest import MakeScene
from .fakes import LOADING, STOPPING, Scene, manifest, version_of

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000


async def test_one_load_serves_all_who_wait(scene: Scene) -> None:
    clients = [scene.ask("a") for _ in range(20)]
    for client in clients:
        await client.served()
    assert scene.loads == ["a"]
    assert scene.loop.time() == pytest.approx(LOADING)
    assert scene.scheduler.residents()[0].leases == 20


async def test_a_loaded_model_serves_at_once(scene: Scene) -> None:
    await scene.serve("a")
    before = scene.loop.time()
    await scene.serve("a")
    assert scene.loop.time() == before
    assert scene.loads == ["a"]


async def test_names_that_differ_in_case_are_one_model(scene: Scene) -> None:
    await scene.serve("Llama")
    await scene.serve("LLAMA:Latest")
    assert scene.loads == ["Llama"]


async def test_loads_go_one_at_a_time_in_order_of_arrival(scene: Scene) -> None:
    clients = [scene.ask(name) for name in "cab"]
    await clients[2].served()
    assert scene.loads == ["c", "a", "b"]
    assert scene.loop.time() == pytest.approx(3 * LOADING)


async def test_it_is_quiet_while_nobody_waits_and_nobody_is_served(scene: Scene) -> None:
    assert scene.scheduler.is_quiet
    client = scene.ask("a")
    await now()
    assert not scene.scheduler.is_quiet
    await client.served()
    assert not scene.scheduler.is_quiet
    await client.finish()
    assert scene.scheduler.is_quiet


async def test_a_model_serves_while_another_loads(scene: Scene) -> None:
    await scene.serve("a")
    loading = scene.ask("b")
    await later(1)
    await scene.serve("a")
    assert loading.waits


async def test_a_resident_is_shown_from_the_first_moment_of_its_load(scene: Scene) -> None:
    scene.ask("a")
    await now()
    (view,) = scene.scheduler.residents()
    assert (view.state, view.context_length, view.memory.total) == (State.LOADING, 0, 100)
    await later(LOADING)
    (view,) = scene.scheduler.residents()
    assert (view.state, view.context_length) == (State.READY, 4096)


async def test_a_resident_that_waits_for_its_turn_to_load_is_shown_with_the_size_of_its_files(scene: Scene) -> None:
    scene.ask("a")
    scene.ask("b")
    await now()
    by_name = {view.manifest.name.model: view for view in scene.scheduler.residents()}
    assert by_name["b"].memory.total == manifest("b").size
    assert by_name["b"].memory.gpu == 0


async def test_the_load_goes_on_when_the_client_leaves_and_a_retry_finds_it_advanced(scene: Scene) -> None:
    first = scene.ask("a")
    await later(LOADING / 3)
    await first.leave()
    await later(LOADING / 3)
    await scene.serve("a")
    assert scene.loads == ["a"]
    assert scene.loop.time() == pytest.approx(LOADING)


async def test_a_client_that_left_while_it_waited_holds_no_lease(scene: Scene) -> None:
    left, stays = scene.ask("a"), scene.ask("a")
    await later(1)
    await left.leave()
    await stays.served()
    assert scene.scheduler.residents()[0].leases == 1


@pytest.mark.parametrize("turns", range(5))
async def test_a_client_that_leaves_around_the_end_of_the_load_holds_no_lease(scene: Scene, turns: int) -> None:
    client = scene.ask("a")

    def leave_after(turns: int) -> None:
        if turns:
            scene.loop.call_soon(leave_after, turns - 1)
        else:
            client.task.cancel()

    scene.launcher.when_loaded = lambda: leave_after(turns)
    await later(LOADING + 1)
    (view,) = scene.scheduler.residents()
    assert (view.state, view.leases, client.task.cancelled()) == (State.READY, 0, True)
    await later(300)
    assert scene.scheduler.residents() == []  # its keep-alive has run


async def test_a_failed_load_tells_all_who_wait(scene: Scene) -> None:
    scene.launcher.failures.append(LoadFailed("out of memory"))
    clients = [scene.ask("a") for _ in range(3)]
    for client in clients:
        with pytest.raises(LoadFailed, match="out of memory"):
            await client.served()
    assert scene.scheduler.residents() == []


async def test_after_a_failed_load_the_next_request_tries_again(scene: Scene) -> None:
    scene.launcher.failures.append(LoadFailed("out of memory"))
    with pytest.raises(LoadFailed):
        await scene.ask("a").served()
    await scene.serve("a")
    assert scene.loads == ["a", "a"]


async def test_a_failed_load_that_nobody_waits_for_any_more_is_quiet(scene: Scene) -> None:
    scene.launcher.failures.append(LoadFailed("out of memory"))
    client = scene.ask("a")
    await later(1)
    await client.leave()
    await later(LOADING + STOPPING)
    assert scene.scheduler.residents() == []


async def test_refused_flags_reach_the_client_as_they_are(scene: Scene) -> None:
    scene.launcher.failures.append(BadEngineFlags("unrecognized arguments: --foo"))
    with pytest.raises(BadEngineFlags, match=r"^unrecognized arguments: --foo$"):
        await scene.ask("a").served()


async def test_an_unexpected_error_in_a_load_names_the_model(scene: Scene) -> None:
    scene.launcher.failures.append(OSError("no space left"))
    with pytest.raises(LoadFailed, match=r"loading a:latest failed: no space left"):
        await scene.ask("a").served()


async def test_a_worker_that_failed_to_load_is_gone_before_the_next_load_begins(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=1)
    scene.launcher.failures.append(LoadFailed("out of memory"))
    failed, other = scene.ask("a"), scene.ask("b")
    with pytest.raises(LoadFailed):
        await failed.served()
    await other.served()
    assert scene.loop.time() == pytest.approx(LOADING + STOPPING + LOADING)


async def test_a_dead_worker_leaves_the_table_and_the_next_request_loads_anew(scene: Scene) -> None:
    await scene.serve("a")
    scene.launcher.workers[0].die()
    await now()
    assert scene.scheduler.residents() == []
    await scene.serve("a")
    assert scene.loads == ["a", "a"]


async def test_what_a_dead_worker_left_behind_is_cleaned_up(scene: Scene) -> None:
    await scene.serve("a")
    scene.launcher.workers[0].die()
    await now()
    assert scene.launcher.workers[0].stops == 1


async def test_who_holds_a_lease_learns_that_the_worker_died(scene: Scene) -> None:
    client = scene.ask("a")
    resident = await client.served()
    assert resident.socket.name == "worker.sock"
    scene.launcher.workers[0].die()
    await now()
    for use in (lambda: resident.socket, lambda: resident.channels):
        with pytest.raises(WorkerDied):
            use()


async def test_the_end_of_a_lease_on_a_dead_worker_leaves_its_successor_alone(scene: Scene) -> None:
    orphan = scene.ask("a", 0)
    await orphan.served()
    scene.launcher.workers[0].die()
    await now()
    await scene.serve("a", 60 * SECOND)
    await orphan.finish()
    await now()
    assert scene.resident_names == ["a"]
    assert scene.launcher.workers[1].is_alive


async def test_a_worker_that_is_reported_dead_is_ended_and_replaced(scene: Scene) -> None:
    """The gateway may see that nothing can be asked of it before its process has ended."""
    client = scene.ask("a")
    resident = await client.served()
    scene.launcher.workers[0].may_stop_while_serving = True
    for _ in range(2):
        scene.scheduler.report_death(resident)
    await scene.serve("a")
    await client.finish()
    assert scene.loads == ["a", "a"]
    assert [worker.stops for worker in scene.launcher.workers] == [1, 0]


async def test_a_late_report_leaves_the_successor_alone(scene: Scene) -> None:
    resident = await scene.serve("a")
    scene.launcher.workers[0].die()
    await now()
    await scene.serve("a")
    scene.scheduler.report_death(resident)
    assert scene.resident_names == ["a"]


async def test_new_files_replace_an_idle_model(scene: Scene) -> None:
    await scene.serve("a")
    assert version_of(await scene.serve("a", version=2)) == 2
    assert scene.loads == ["a", "a"]


async def test_new_files_wait_until_the_old_ones_serve_nobody(scene: Scene) -> None:
    old = scene.ask("a")
    await old.served()
    new = scene.ask("a", version=2)
    await later(3600)
    assert new.waits
    await old.finish()
    assert version_of(await new.served()) == 2


async def test_new_files_are_not_answered_with_the_old_ones_that_just_load(scene: Scene) -> None:
    old = scene.ask("a")
    await later(1)
    new = scene.ask("a", version=2)
    assert version_of(await old.served()) == 1
    await old.finish()
    assert version_of(await new.served()) == 2


async def test_all_who_wait_for_new_files_share_one_load(scene: Scene) -> None:
    old = scene.ask("a")
    await old.served()
    clients = [scene.ask("a", version=2) for _ in range(5)]
    await now()
    await old.finish()
    for client in clients:
        assert version_of(await client.served()) == 2
    assert scene.loads == ["a", "a"]
