"""How many models are held, who has to go, and how many requests may wait (contract §6.4)."""

from __future__ import annotations

import asyncio

import pytest
from virtual_time import later, now

from vllama.durations import FOREVER
from vllama.errors import LoadFailed, Overloaded

from .conftest import MakeScene
from .fakes import LOADING, STOPPING, Scene

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000
HOUR = 3600 * SECOND


async def test_three_models_are_held_unless_the_setting_says_otherwise(scene: Scene) -> None:
    for name in "abcd":
        await scene.serve(name, HOUR)
    assert sorted(scene.resident_names) == ["b", "c", "d"]


async def test_the_idle_model_with_the_shortest_keep_alive_makes_room(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=2)
    await scene.serve("a", FOREVER)
    await scene.serve("b", HOUR)
    await scene.serve("c", HOUR)
    assert sorted(scene.resident_names) == ["a", "c"]


async def test_a_model_at_work_is_spared_whatever_its_keep_alive(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=2)
    working = scene.ask("a", 0)
    await working.served()
    await scene.serve("b", FOREVER)
    await scene.serve("c")
    assert sorted(scene.resident_names) == ["a", "c"]
    assert working.is_served


async def test_a_newcomer_waits_while_all_models_are_at_work(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=2)
    working = [scene.ask(name) for name in "ab"]
    for client in working:
        await client.served()
    newcomer = scene.ask("c")
    await later(3600)
    assert newcomer.waits
    await working[1].finish()
    await newcomer.served()
    assert sorted(scene.resident_names) == ["a", "c"]


async def test_a_newcomer_starts_when_its_predecessor_has_stopped(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=1)
    await scene.serve("a")
    await scene.serve("b")
    assert scene.loop.time() == pytest.approx(LOADING + STOPPING + LOADING, abs=1e-3)


async def test_two_newcomers_with_room_for_one_come_in_turn(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=1)
    first, second = scene.ask("a"), scene.ask("b")
    await first.served()
    assert second.waits
    await first.finish()
    await second.served()
    assert scene.loads == ["a", "b"]


async def test_models_that_take_turns_in_one_place_never_block_each_other(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=1)
    for _ in range(3):
        await asyncio.gather(*(scene.serve(name) for name in "abc"))
    assert "".join(scene.loads) == "abcabac"  # whoever is there already is served first


async def test_a_newcomer_takes_the_place_of_a_failed_load(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=1)
    scene.launcher.failures.append(LoadFailed("out of memory"))
    first, second = scene.ask("a"), scene.ask("b")
    with pytest.raises(LoadFailed):
        await first.served()
    await second.served()


async def test_a_newcomer_takes_the_place_of_a_dead_worker(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=1)
    await scene.ask("a").served()
    newcomer = scene.ask("b")
    await later(3600)
    assert newcomer.waits
    scene.launcher.workers[0].die()
    await newcomer.served()


async def test_a_newcomer_whose_client_left_still_comes(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=1)
    working = scene.ask("a")
    await working.served()
    newcomer = scene.ask("b")
    await now()
    await newcomer.leave()
    await working.finish()
    await later(STOPPING + LOADING)
    assert scene.resident_names == ["b"]


async def test_of_six_cold_requests_two_pass_with_a_queue_of_one(make_scene: MakeScene) -> None:
    """As recorded with Ollama 0.24.0 and OLLAMA_MAX_QUEUE=1."""
    scene = make_scene(max_queue=1)
    clients = [scene.ask("a") for _ in range(6)]
    await now()
    assert [client.waits for client in clients] == [True, True, False, False, False, False]
    with pytest.raises(Overloaded, match=r"^server busy, please try again.  maximum pending requests exceeded$"):
        await clients[2].served()


async def test_the_queue_counts_the_requests_for_all_models(make_scene: MakeScene) -> None:
    scene = make_scene(max_queue=1)
    clients = [scene.ask(name) for name in "aab"]
    await now()
    assert [client.waits for client in clients] == [True, True, False]
    assert scene.resident_names == ["a"]


async def test_with_no_queue_one_request_may_still_load_a_model(make_scene: MakeScene) -> None:
    scene = make_scene(max_queue=0)
    clients = [scene.ask("a") for _ in range(2)]
    await now()
    assert [client.waits for client in clients] == [True, False]


async def test_a_loaded_model_takes_more_requests_than_may_wait(make_scene: MakeScene) -> None:
    scene = make_scene(max_queue=0)
    await scene.serve("a")
    clients = [scene.ask("a") for _ in range(20)]
    for client in clients:
        await client.served()


async def test_a_full_queue_takes_requests_again_when_the_load_has_ended(make_scene: MakeScene) -> None:
    scene = make_scene(max_queue=0)
    first = scene.ask("a")
    await now()
    with pytest.raises(Overloaded):
        await scene.ask("b").served()
    await first.served()
    await scene.ask("b").served()


async def test_a_client_that_leaves_makes_room_in_the_queue(make_scene: MakeScene) -> None:
    scene = make_scene(max_queue=0)
    first = scene.ask("a")
    await later(1)
    await first.leave()
    await scene.ask("a").served()


async def test_a_failed_load_makes_room_in_the_queue(make_scene: MakeScene) -> None:
    scene = make_scene(max_queue=0)
    scene.launcher.failures.append(LoadFailed("out of memory"))
    with pytest.raises(LoadFailed):
        await scene.ask("a").served()
    await scene.ask("a").served()


async def test_who_waits_for_new_files_is_in_the_queue(make_scene: MakeScene) -> None:
    scene = make_scene(max_queue=0)
    old = scene.ask("a")
    await old.served()
    clients = [scene.ask("a", version=2) for _ in range(2)]
    await now()
    assert [client.waits for client in clients] == [True, False]
    with pytest.raises(Overloaded):
        await clients[1].served()


async def test_who_waits_for_new_files_keeps_its_place_whatever_else_changes(make_scene: MakeScene) -> None:
    scene = make_scene(max_queue=0)
    old = scene.ask("a")
    await old.served()
    new = scene.ask("a", version=2)
    await now()
    await scene.serve("a")  # the end of this lease wakes up who waits
    await now()
    assert new.waits
    await old.finish()
    await new.served()
