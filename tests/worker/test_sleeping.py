"""Sleep and wake over HTTP, with an engine that a test breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from vllama.protocol.paths import FORGET_COPY, PREPARE_SLEEP, SLEEP, WAKE
from vllama.worker.sleeping import SleepRoutes

pytestmark = pytest.mark.anyio


class FakeEngine:
    """Sleeps as vLLM does; `failure` is what its next step raises."""

    def __init__(self) -> None:
        self.refusal = ""
        self.unfinished = 0
        self.asleep = False
        self.calls: list[str] = []
        self.failure: Exception | None = None

    async def is_asleep(self) -> bool:
        return self.asleep

    async def prepare(self) -> None:
        self._step("prepare")

    async def sleep(self) -> None:
        self._step("sleep")
        self.asleep = True

    async def wake(self, *, keeps_copy: bool) -> None:
        self._step(f"wake, keeps copy: {keeps_copy}")
        self.asleep = False

    async def forget_copy(self) -> None:
        self._step("forget copy")

    def _step(self, name: str) -> None:
        self.calls.append(name)
        if self.failure:
            raise self.failure


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def worker(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    routes = SleepRoutes()
    routes.serve(engine)
    transport = httpx.ASGITransport(Starlette(routes=routes.routes()))
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        yield client


async def post(worker: httpx.AsyncClient, path: str, **record: Any) -> httpx.Response:
    return await worker.post(path, json=record)


async def test_each_step_is_asked_of_the_engine(worker: httpx.AsyncClient, engine: FakeEngine) -> None:
    for path, record in ((PREPARE_SLEEP, {}), (SLEEP, {}), (WAKE, {"keeps_copy": True}), (FORGET_COPY, {})):
        reply = await post(worker, path, **record)
        assert reply.status_code == 200
        assert reply.json()["seconds"] >= 0
    assert engine.calls == ["prepare", "sleep", "wake, keeps copy: True", "forget copy"]


async def test_weights_that_changed_while_it_slept_are_an_error(worker: httpx.AsyncClient, engine: FakeEngine) -> None:
    await post(worker, SLEEP)
    engine.failure = RuntimeError("2 allocations of weights changed while the model slept")
    reply = await post(worker, WAKE)
    assert reply.status_code == 500
    assert "weights changed while the model slept" in reply.json()["error"]


async def test_a_copy_that_is_all_there_is_of_a_sleeping_model_is_not_given_up(
    worker: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await post(worker, SLEEP)
    assert (await post(worker, FORGET_COPY)).status_code == 500
    assert (await post(worker, PREPARE_SLEEP)).status_code == 200  # there is nothing to do
    assert engine.calls == ["sleep"]


async def test_a_busy_engine_is_not_put_to_sleep(worker: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.unfinished = 2
    reply = await post(worker, SLEEP)
    assert (reply.status_code, reply.json()["error"]) == (500, "the engine is still processing 2 requests")
    assert engine.calls == []


@pytest.mark.parametrize("path", [SLEEP, WAKE, PREPARE_SLEEP, FORGET_COPY])
async def test_an_engine_that_cannot_sleep_says_why(worker: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    engine.refusal = "vLLM cannot sleep on a CPU"
    reply = await post(worker, path)
    assert (reply.status_code, reply.json()) == (500, {"error": "vLLM cannot sleep on a CPU"})
    assert engine.calls == []


async def test_sleep_and_wake_may_be_asked_for_twice(worker: httpx.AsyncClient, engine: FakeEngine) -> None:
    for path in (SLEEP, SLEEP, WAKE, WAKE):
        assert (await post(worker, path)).status_code == 200
    assert engine.calls == ["sleep", "wake, keeps copy: False"]


async def test_what_the_engine_raises_is_told(worker: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.failure = RuntimeError("CUDA error: out of memory")
    reply = await post(worker, SLEEP)
    assert (reply.status_code, reply.json()["error"]) == (500, "RuntimeError: CUDA error: out of memory")


async def test_before_there_is_an_engine_nothing_sleeps() -> None:
    transport = httpx.ASGITransport(Starlette(routes=SleepRoutes().routes()))
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        assert (await post(client, SLEEP)).json() == {"error": "the engine is not ready; try again"}
