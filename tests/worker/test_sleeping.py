"""Sleep and wake over HTTP, with an engine that a test breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from vllama.worker.controls import SLEEP, WAKE
from vllama.worker.sleeping import Canary, SleepRoutes, difference

pytestmark = pytest.mark.anyio

ANSWER = Canary(((7, {7: -0.1, 9: -2.5}), (11, {11: -0.7, 12: -0.71})))
DAMAGED = Canary(((5, {5: -0.1, 6: -2.5}), (5, {5: -0.1})))


class FakeEngine:
    """Sleeps as vLLM does; `answer` is what its model says."""

    def __init__(self) -> None:
        self.answer = ANSWER
        self.refusal = ""
        self.unfinished = 0
        self.asleep = False
        self.calls: list[str] = []
        self.failure: Exception | None = None

    async def is_asleep(self) -> bool:
        return self.asleep

    async def sleep(self) -> None:
        self.calls.append("sleep")
        if self.failure:
            raise self.failure
        self.asleep = True

    async def wake(self) -> None:
        self.calls.append("wake")
        self.asleep = False

    async def canary(self) -> Canary:
        assert not self.asleep
        self.calls.append("canary")
        return self.answer


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


async def test_the_canary_is_made_before_the_first_sleep_and_compared_after_each_wake(
    worker: httpx.AsyncClient, engine: FakeEngine
) -> None:
    canary = (await post(worker, SLEEP)).json()["canary"]
    assert engine.calls == ["canary", "sleep"]
    assert (await post(worker, WAKE, canary=canary)).json()["canary"] == canary
    assert (await post(worker, SLEEP, canary=canary)).status_code == 200
    assert engine.calls == ["canary", "sleep", "wake", "canary", "sleep"]


async def test_a_model_that_answers_otherwise_after_its_sleep_is_an_error(
    worker: httpx.AsyncClient, engine: FakeEngine
) -> None:
    canary = (await post(worker, SLEEP)).json()["canary"]
    engine.answer = DAMAGED
    reply = await post(worker, WAKE, canary=canary)
    assert reply.status_code == 500
    assert reply.json() == {"error": "the model is not itself after its sleep: token 1 of its answer is 5 and was 7"}


async def test_any_process_of_the_worker_can_wake_it(worker: httpx.AsyncClient, engine: FakeEngine) -> None:
    canary = (await post(worker, SLEEP)).json()["canary"]
    other_routes = SleepRoutes()
    other_routes.serve(engine)
    transport = httpx.ASGITransport(Starlette(routes=other_routes.routes()))
    engine.answer = DAMAGED
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as other:
        assert (await post(other, WAKE, canary=canary)).status_code == 500


async def test_a_busy_engine_is_not_put_to_sleep(worker: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.unfinished = 2
    reply = await post(worker, SLEEP)
    assert (reply.status_code, reply.json()["error"]) == (500, "the engine works on 2 requests")
    assert engine.calls == []


@pytest.mark.parametrize("path", [SLEEP, WAKE])
async def test_an_engine_that_cannot_sleep_says_why(worker: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    engine.refusal = "vLLM cannot sleep on a CPU"
    reply = await post(worker, path)
    assert (reply.status_code, reply.json()) == (500, {"error": "vLLM cannot sleep on a CPU"})
    assert engine.calls == []


async def test_sleep_and_wake_may_be_asked_for_twice(worker: httpx.AsyncClient, engine: FakeEngine) -> None:
    canary = (await post(worker, SLEEP)).json()["canary"]
    assert (await post(worker, SLEEP, canary=canary)).json()["canary"] == canary
    for _ in range(2):
        assert (await post(worker, WAKE, canary=canary)).status_code == 200
    assert engine.calls == ["canary", "sleep", "wake", "canary", "canary"]


async def test_what_the_engine_raises_is_told(worker: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.failure = RuntimeError("CUDA error: out of memory")
    reply = await post(worker, SLEEP)
    assert (reply.status_code, reply.json()["error"]) == (500, "RuntimeError: CUDA error: out of memory")


async def test_before_there_is_an_engine_nothing_sleeps() -> None:
    transport = httpx.ASGITransport(Starlette(routes=SleepRoutes().routes()))
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        assert (await post(client, SLEEP)).json() == {"error": "the engine is not ready"}


CANARIES = st.builds(
    Canary,
    st.lists(
        st.dictionaries(st.integers(0, 50_000), st.floats(-20, 0), min_size=1, max_size=6).map(
            lambda row: (next(iter(row)), row)
        ),
        max_size=8,
    ).map(tuple),
    st.lists(st.floats(0.5, 2), max_size=4).map(tuple),
)


@given(CANARIES)
def test_a_canary_is_like_itself_also_after_its_journey(canary: Canary) -> None:
    assert difference(canary, canary) == ""
    assert Canary.from_record(canary.to_record()) == canary


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (Canary(((7, {7: -0.2, 9: -2.4}), (11, {11: -0.7, 12: -0.71}))), ""),
        (Canary(((7, {7: -0.1, 9: -2.5}), (12, {12: -0.69, 11: -0.72}))), ""),
        (Canary(((7, {7: -0.1}), (13, {13: -0.1, 11: -0.7}))), "token 2 of its answer is 13 and was 11"),
        (Canary(((7, {7: -3.5}), (11, {11: -0.7}))), "token 7, number 1 of its answer, has log probability -3.50"),
        (Canary(((7, {7: -0.1}),)), "its answer has another length"),
    ],
)
def test_a_tie_may_fall_either_way_and_nothing_else_may_change(after: Canary, words: str) -> None:
    found = difference(ANSWER, after)
    assert found.startswith(words)
    assert bool(found) == bool(words)


@pytest.mark.parametrize(("vector", "alike"), [((1.0, 0.01), True), ((0.0, 1.0), False), ((0.0, 0.0), False)])
def test_a_vector_may_not_turn(vector: tuple[float, ...], *, alike: bool) -> None:
    assert (difference(Canary(vector=(1.0, 0.0)), Canary(vector=vector)) == "") == alike
