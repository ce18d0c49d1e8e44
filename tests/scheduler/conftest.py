from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from virtual_time import VirtualTimeLoop

from vllama.settings import Settings

from .fakes import Scene


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def settings(tmp_path: Any) -> Settings:
    return Settings.from_environment({}, models=tmp_path / "models")


@pytest.fixture
async def scene(settings: Settings) -> AsyncIterator[Scene]:
    """A scheduler with the default settings."""
    scene = Scene(settings)
    yield scene
    await scene.close()


MakeScene = Callable[..., Scene]


@pytest.fixture
async def make_scene(settings: Settings) -> AsyncIterator[MakeScene]:
    """Return a function that makes a scene with other settings: `make_scene(max_queue=1)`."""
    scenes: list[Scene] = []

    def make(**changes: Any) -> Scene:
        scenes.append(Scene(settings, **changes))
        return scenes[-1]

    yield make
    for scene in scenes:
        await scene.close()
