"""A base and the models with an adapter on it share a resident; one without room for an adapter is replaced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from virtual_time import later, now

from vllama.store.manifest import Adapter, Manifest

from .fakes import LOADING, STOPPING, Scene, manifest

pytestmark = pytest.mark.anyio


@pytest.fixture
def base(scene: Scene) -> Manifest:
    """A model without an adapter, whose worker has room for none unless the launcher says so."""
    del scene
    return manifest("base")


def with_adapter(base: Manifest, rank: int) -> Manifest:
    return replace(base, adapter=Adapter(Path("/adapter"), (), rank))


async def test_a_worker_with_room_serves_the_base_and_its_adapters_at_once(scene: Scene, base: Manifest) -> None:
    scene.launcher.room_for = lambda _: 16
    clients = [scene.ask_for(asked) for asked in (base, with_adapter(base, 8), with_adapter(base, 16))]
    residents = {await client.served() for client in clients}
    assert len(residents) == 1
    assert scene.loads == ["base"]


async def test_one_without_room_is_replaced_and_the_new_one_serves_the_base_too(scene: Scene, base: Manifest) -> None:
    first = scene.ask_for(base)
    await first.served()
    await first.finish()
    second = await scene.ask_for(with_adapter(base, 8)).served()
    assert scene.loop.time() == pytest.approx(2 * LOADING + STOPPING)
    assert await scene.ask_for(base).served() is second
    assert len(scene.launcher.workers) == 2


async def test_the_replacement_waits_for_who_is_served_and_who_comes_later_waits_for_it(
    scene: Scene, base: Manifest
) -> None:
    serving = scene.ask_for(base)
    await serving.served()
    tuned = scene.ask_for(with_adapter(base, 8))
    await now()
    late = scene.ask_for(base)
    scene.launcher.room_for = lambda _: 8  # the adapter is in the store
    await later(60)
    assert (tuned.waits, late.waits, serving.is_served) == (True, True, True)
    await serving.finish()
    assert await tuned.served() is await late.served()
    assert len(scene.launcher.workers) == 2


async def test_one_that_is_still_loading_is_replaced_once_it_is_ready(scene: Scene, base: Manifest) -> None:
    loading = scene.ask_for(base)
    await later(LOADING / 2)
    tuned = scene.ask_for(with_adapter(base, 8))
    await loading.served()
    await loading.finish()
    await tuned.served()
    assert len(scene.launcher.workers) == 2


async def test_an_adapter_that_came_between_a_load_s_beginning_and_its_worker_is_served(
    scene: Scene, base: Manifest
) -> None:
    """Both wait for their turn to load; what the worker has room for shows when it starts."""
    scene.ask("other")
    loading, tuned = scene.ask_for(base), scene.ask_for(with_adapter(base, 8))
    scene.launcher.room_for = lambda _: 0
    await loading.served()
    scene.launcher.room_for = lambda asked: asked.adapter_rank
    assert tuned.waits
    await loading.finish()
    resident = await tuned.served()
    assert resident.manifest.adapter_rank == 8


async def test_a_request_for_the_base_that_brings_the_new_worker_has_room_for_who_waited(
    scene: Scene, base: Manifest
) -> None:
    serving = scene.ask_for(base)
    await serving.served()
    tuned = scene.ask_for(with_adapter(base, 8))
    await now()
    await tuned.leave()
    scene.launcher.room_for = lambda _: 8
    await serving.finish()
    await scene.ask_for(base).served()
    await scene.ask_for(with_adapter(base, 8)).served()
    assert len(scene.launcher.workers) == 2


async def test_unloading_a_model_with_an_adapter_unloads_the_worker_that_it_shares(
    scene: Scene, base: Manifest
) -> None:
    tuned = with_adapter(base, 8)
    client = scene.ask_for(tuned)
    await client.served()
    await client.finish()
    scene.scheduler.unload(tuned)
    assert scene.resident_names == []
