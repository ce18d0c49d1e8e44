"""Nobody waits for ever, nobody is thrown out at once, and what is pinned stays."""

from __future__ import annotations

import asyncio

import pytest
from virtual_time import later, now

from vllama.durations import FOREVER
from vllama.errors import NoRoom
from vllama.scheduler.policy import State

from .conftest import MakeScene
from .fakes import LOADING, STOPPING, Client, Scene, manifest

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000
HOUR = 3600 * SECOND


async def stream(scene: Scene, name: str, until: asyncio.Event) -> None:
    """Requests for a model without a moment between them: the next begins before the last one ends."""
    current: Client = scene.ask(name)
    await current.served()
    while not until.is_set():
        following = scene.ask(name)
        await later(1)
        await current.finish()
        await following.served()
        current = following
    await current.finish()


async def test_a_stream_of_requests_for_a_resident_does_not_starve_a_newcomer(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=1, yield_after=10 * SECOND)
    over = asyncio.Event()
    streaming = asyncio.create_task(stream(scene, "a", over))
    await later(LOADING + 1)
    newcomer = scene.ask("b")
    began = scene.loop.time()
    await newcomer.served()
    assert scene.loop.time() == pytest.approx(began + 10 + STOPPING + LOADING, abs=2.1)
    over.set()
    await newcomer.finish()
    await streaming
    assert scene.loads == ["a", "b", "a"]


async def test_requests_that_yield_to_a_newcomer_are_served_after_it(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=1, yield_after=10 * SECOND)
    working = scene.ask("a")
    await working.served()
    newcomer = scene.ask("b")
    await later(9)
    await scene.serve("a")  # until the newcomer has waited for long enough
    await later(2)
    behind = scene.ask("a")
    await later(3600)
    assert behind.waits
    assert working.is_served
    await working.finish()
    await newcomer.served()
    assert behind.waits
    await newcomer.finish()
    await behind.served()


async def test_a_busy_model_serves_again_when_the_newcomer_found_another_place(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=2, yield_after=10 * SECOND)
    working = [scene.ask(name) for name in "ab"]
    for client in working:
        await client.served()
    newcomer = scene.ask("c")
    await later(11)
    behind = scene.ask("a")
    await now()
    assert behind.waits
    await working[1].finish()
    await newcomer.served()
    await behind.served()
    assert scene.loads == ["a", "b", "c"]


async def test_a_model_that_was_just_loaded_is_spared_while_another_can_go(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=2, min_residency=60 * SECOND)
    await scene.serve("b", HOUR)
    await later(60)
    await scene.serve("a", 10 * 60 * SECOND)
    await scene.serve("c")
    assert sorted(scene.resident_names) == ["a", "c"]


async def test_a_model_that_was_just_loaded_goes_before_one_that_stays_for_ever(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=2, min_residency=600 * SECOND)
    await scene.serve("a", FOREVER)
    await scene.serve("b")
    await scene.serve("c")
    assert sorted(scene.resident_names) == ["a", "c"]


async def test_a_pinned_model_goes_neither_for_another_nor_after_its_keep_alive(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=2, pin=("A:latest",))
    await scene.serve("a", 1 * SECOND)
    await scene.serve("b", HOUR)
    await scene.serve("c", HOUR)
    await later(30 * 24 * 3600)
    assert scene.resident_names == ["a"]
    assert scene.loads == ["a", "b", "c"]


async def test_a_pinned_model_can_be_unloaded_by_request(make_scene: MakeScene) -> None:
    scene = make_scene(pin=("a",))
    await scene.serve("a")
    scene.scheduler.unload(manifest("a"))
    assert scene.resident_names == []


async def test_a_newcomer_is_refused_where_pinned_models_hold_all_the_room(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=1, pin=("a",))
    await scene.serve("a")
    for _ in range(3):
        with pytest.raises(NoRoom, match=r"^OLLAMA_MAX_LOADED_MODELS allows 1 .*; pinned \(VLLAMA_PIN\): a:latest$"):
            await scene.ask("b").served()
    assert scene.resident_names == ["a"]


async def test_a_name_that_is_none_is_no_pin(make_scene: MakeScene, caplog: pytest.LogCaptureFixture) -> None:
    scene = make_scene(pin=("!!", "a"))
    assert "VLLAMA_PIN: ignored '!!', which is not a model name" in caplog.text
    await scene.serve("a", 1 * SECOND)
    await later(3600)
    assert scene.resident_names == ["a"]


async def test_a_wake_that_finds_no_room_leaves_the_model_asleep(make_scene: MakeScene) -> None:
    scene = make_scene(max_loaded_models=1, pin=("b",), can_sleep=True)
    await scene.serve("a")
    await scene.serve("b")
    for _ in range(2):
        with pytest.raises(NoRoom, match="pinned"):
            await scene.ask("a").served()
    assert {view.manifest.name.model: view.state for view in scene.scheduler.residents()} == {
        "a": State.ASLEEP, "b": State.READY,
    }  # fmt: skip
