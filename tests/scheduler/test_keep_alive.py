"""How long an idle model stays (contract §2.2)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from virtual_time import later, now

from vllama.durations import FOREVER, from_seconds
from vllama.settings import Settings

from .conftest import MakeScene
from .fakes import EPOCH, LOADING, Scene, manifest

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
DAY = 24 * 60 * MINUTE


async def test_without_keep_alive_a_model_stays_as_long_as_the_setting_says(make_scene: MakeScene) -> None:
    scene = make_scene(keep_alive=7 * SECOND)
    await scene.serve("a")
    await later(6.9)
    assert scene.resident_names == ["a"]
    await later(0.2)
    assert scene.resident_names == []


async def test_a_request_s_own_keep_alive_counts_instead(scene: Scene) -> None:
    await scene.serve("a", 10 * SECOND)
    await later(9.9)
    assert scene.resident_names == ["a"]
    await later(0.2)
    assert scene.resident_names == []


async def test_a_request_without_keep_alive_keeps_that_of_the_request_before(scene: Scene) -> None:
    await scene.serve("a", 10 * SECOND)
    await scene.serve("a")
    await later(9.9)
    assert scene.resident_names == ["a"]
    await later(0.2)
    assert scene.resident_names == []


async def test_a_request_with_keep_alive_replaces_that_of_the_request_before(scene: Scene) -> None:
    await scene.serve("a", FOREVER)
    await scene.serve("a", 10 * SECOND)
    await later(10.1)
    assert scene.resident_names == []


async def test_a_sticky_keep_alive_ends_with_its_resident(make_scene: MakeScene) -> None:
    scene = make_scene(keep_alive=7 * SECOND)
    await scene.serve("a", 1 * SECOND)
    await later(2)
    await scene.serve("a")
    await later(6.9)
    assert scene.resident_names == ["a"]


async def test_a_negative_keep_alive_never_ends(scene: Scene) -> None:
    await scene.serve("a", FOREVER)
    await later(365 * 24 * 3600)
    assert scene.resident_names == ["a"]


async def test_the_longest_keep_alive_that_go_can_say_does_not_overflow(scene: Scene) -> None:
    await scene.serve("a", 2**63 - 1)
    await later(365 * 24 * 3600)
    assert scene.resident_names == ["a"]


async def test_keep_alive_0_answers_and_unloads_when_done(scene: Scene) -> None:
    client = scene.ask("a", 0)
    await client.served()
    await later(3600)
    assert client.is_served
    await client.finish()
    assert scene.resident_names == []


async def test_keep_alive_0_waits_for_the_others_too(scene: Scene) -> None:
    other = scene.ask("a", DAY)
    await other.served()
    await scene.serve("a", 0)
    await later(3600)
    assert other.is_served
    await other.finish()
    assert scene.resident_names == []


async def test_a_setting_of_0_unloads_as_soon_as_nobody_is_served(make_scene: MakeScene) -> None:
    scene = make_scene(keep_alive=0)
    await scene.serve("a")
    assert scene.resident_names == []


async def test_the_time_does_not_run_while_a_request_is_served(scene: Scene) -> None:
    client = scene.ask("a", 10 * SECOND)
    await client.served()
    await later(3600)
    await client.finish()
    await later(9.9)
    assert scene.resident_names == ["a"]
    await later(0.2)
    assert scene.resident_names == []


async def test_the_time_starts_anew_after_each_request(scene: Scene) -> None:
    for _ in range(5):
        await scene.serve("a", 10 * SECOND)
        await later(9.9)
    assert scene.loads == ["a"]
    await later(0.2)
    assert scene.resident_names == []


async def test_a_load_that_nobody_waits_for_any_more_has_its_keep_alive_too(scene: Scene) -> None:
    client = scene.ask("a", 10 * SECOND)
    await later(1)
    await client.leave()
    await later(LOADING - 1 + 9.9)
    assert scene.resident_names == ["a"]
    await later(0.2)
    assert scene.resident_names == []


async def test_an_idle_model_is_unloaded_at_once(scene: Scene) -> None:
    await scene.serve("a", FOREVER)
    scene.scheduler.unload(manifest("a"))
    assert scene.resident_names == []


async def test_a_serving_model_is_unloaded_when_it_has_served(scene: Scene) -> None:
    client = scene.ask("a", FOREVER)
    await client.served()
    scene.scheduler.unload(manifest("a"))
    await later(3600)
    assert scene.resident_names == ["a"]
    await client.finish()
    assert scene.resident_names == []


async def test_a_loading_model_serves_those_who_wait_before_it_is_unloaded(scene: Scene) -> None:
    clients = [scene.ask("a", FOREVER) for _ in range(2)]
    await later(1)
    scene.scheduler.unload(manifest("a"))
    for client in clients:
        await client.served()
    for client in clients:
        assert scene.resident_names == ["a"]
        await client.finish()
    assert scene.resident_names == []


async def test_a_loading_model_that_nobody_waits_for_any_more_is_unloaded_once_loaded(scene: Scene) -> None:
    client = scene.ask("a", FOREVER)
    await later(1)
    await client.leave()
    scene.scheduler.unload(manifest("a"))
    await later(LOADING)
    assert scene.resident_names == []


async def test_the_worker_of_a_model_s_embeddings_is_beside_the_one_that_writes_until_the_model_is_unloaded(
    scene: Scene,
) -> None:
    for asked in (manifest("a"), replace(manifest("a"), embeds=True), manifest("a")):
        client = scene.ask_for(asked)
        await client.served()
        await client.finish()
    assert len(scene.launcher.workers) == 2
    assert scene.resident_names == ["a", "a"]
    scene.scheduler.unload(manifest("a"))
    assert scene.resident_names == []


async def test_unloading_what_is_not_loaded_does_nothing(scene: Scene) -> None:
    scene.scheduler.unload(manifest("a"))
    await now()
    assert scene.loads == []


async def test_a_request_with_keep_alive_takes_an_unload_back(scene: Scene) -> None:
    client = scene.ask("a")
    await client.served()
    scene.scheduler.unload(manifest("a"))
    await scene.serve("a", MINUTE)
    await client.finish()
    assert scene.resident_names == ["a"]


async def test_an_idle_model_says_when_it_will_go(scene: Scene) -> None:
    await scene.serve("a", 5 * MINUTE)
    since = scene.loop.time()
    await later(60)
    (view,) = scene.scheduler.residents()
    assert view.expires_at == pytest.approx(EPOCH + since + 300, abs=1e-3)


async def test_a_model_at_work_would_go_one_keep_alive_from_now(scene: Scene) -> None:
    client = scene.ask("a", 5 * MINUTE)
    await client.served()
    await later(1000)
    (view,) = scene.scheduler.residents()
    assert view.expires_at == pytest.approx(EPOCH + scene.loop.time() + 300, abs=1e-3)


async def test_a_model_that_stays_for_ever_does_not_expire(scene: Scene) -> None:
    await scene.serve("a", FOREVER)
    assert scene.scheduler.residents()[0].expires_at is None


async def test_residents_are_listed_longest_to_stay_first(scene: Scene) -> None:
    await scene.serve("a", 5 * MINUTE)
    await scene.serve("b", FOREVER)
    await scene.serve("c", DAY)
    assert scene.resident_names == ["b", "c", "a"]


async def test_new_settings_do_not_begin_the_time_anew(scene: Scene, settings: Settings) -> None:
    await scene.serve("a", 10 * SECOND)
    await later(6)
    scene.scheduler.adopt(replace(settings, keep_alive=from_seconds(60)))
    await later(4.1)
    assert scene.resident_names == []


async def test_what_is_pinned_from_now_on_stays_and_what_is_not_any_more_goes_after_its_time(
    scene: Scene, settings: Settings
) -> None:
    await scene.serve("a", 10 * SECOND)
    scene.scheduler.adopt(replace(settings, pin=("a",)))
    await later(3600)
    assert scene.resident_names == ["a"]
    scene.scheduler.adopt(settings)
    await later(299)
    assert scene.resident_names == ["a"]
    await later(2)
    assert scene.resident_names == []
