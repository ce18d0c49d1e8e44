"""Requests for several replies take their turns; those for one reply do not wait for them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fake_worker import within

from vllama.gateway.choices import Choices, sequences

from .conftest import MODEL, RunGateway, Running

pytestmark = pytest.mark.anyio

COMPLETIONS = "/v1/chat/completions"
WORKER = Path("a.sock")


def ask(number: int) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "n": number, "temperature": 1}


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/completions"])
async def test_more_choices_than_allowed_are_refused_before_anything_is_loaded(gateway: Running, path: str) -> None:
    reply = await gateway.post(path, {**ask(16384), "prompt": "hi"})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "the request asks for 16384 replies; the maximum is 128"
    assert gateway.launcher.workers == []


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/completions"])
async def test_requests_for_several_replies_come_after_those_for_one_whatever_the_client_says(
    gateway: Running, path: str
) -> None:
    worker = await gateway.load()
    for number, priority in ((1, None), (3, 1)):
        body = {**ask(number), "prompt": "hi", "raw": True, "priority": -9}
        sent = gateway.send("POST", path, json=body)
        exchange = await worker.next_exchange()
        assert exchange.json.get("priority") == priority
        exchange.reply(b"{}")
        assert (await sent).status_code == 200


async def test_n_means_nothing_on_ollama_s_routes(gateway: Running) -> None:
    worker = await gateway.load()
    sent = gateway.send("POST", "/api/chat", json={**ask(16384), "options": {"n": 16384}})
    (await worker.next_exchange()).reply(b"{}")
    assert (await sent).status_code == 200


async def test_a_worker_generates_no_more_choices_at_once_and_single_replies_do_not_wait(
    run_gateway: RunGateway,
) -> None:
    async with run_gateway(max_choices=10) as gateway:
        worker = await gateway.load()
        first = gateway.send("POST", COMPLETIONS, json=ask(8))
        many = await worker.next_exchange()
        second = gateway.send("POST", COMPLETIONS, json=ask(5))
        single = gateway.send("POST", COMPLETIONS, json=ask(1))
        one = await worker.next_exchange()
        assert one.json["n"] == 1
        one.reply(b"{}")
        assert (await single).status_code == 200
        assert worker.exchanges.empty()
        many.reply(b"{}")
        later = await worker.next_exchange()
        assert later.json["n"] == 5
        later.reply(b"{}")
        assert [(await sent).status_code for sent in (first, second)] == [200, 200]


async def test_who_leaves_the_queue_lets_the_next_go_on() -> None:
    choices = Choices(10)
    entered: asyncio.Queue[int] = asyncio.Queue()

    async def take(number: int, end: asyncio.Event) -> None:
        async with choices.held(WORKER, number):
            entered.put_nowait(number)
            await end.wait()

    end = asyncio.Event()
    first = asyncio.create_task(take(6, end))
    assert await within(entered.get()) == 6
    large = asyncio.create_task(take(9, end))
    small = asyncio.create_task(take(4, end))
    await asyncio.sleep(0)
    large.cancel()
    assert await within(entered.get()) == 4
    end.set()
    await within(asyncio.wait({first, large, small}))
    assert large.cancelled()
    assert choices._workers == {}


@pytest.mark.parametrize(
    ("body", "number"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"n": 0}, 1),
        ({"prompt": "abc"}, 1),
        ({"prompt": ["a", "b"]}, 2),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1], [2]], "n": 4}, 8),
        ({"prompt": []}, 1),
    ],
)
def test_each_prompt_has_its_choices(body: dict[str, Any], number: int) -> None:
    assert sequences(body) == number
