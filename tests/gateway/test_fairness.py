"""Turns of keys at a busy worker, through the real protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fake_worker import FakeWorker, within

from vllama.durations import ZERO
from vllama.settings import Settings

from .conftest import MODEL, RunGateway, Running
from .test_keys import Keys, bearer, keys
from .test_serve import Serve, serve, settings, store

__all__ = ["keys", "serve", "settings", "store"]  # fixtures

pytestmark = pytest.mark.anyio

Ask = Callable[[str], asyncio.Task[httpx.Response]]


def asker(gateway: Running, secrets: dict[str, str], path: str = "/api/generate") -> Ask:
    """Return a function that sends a request of a key, whose name is the prompt."""

    def ask(name: str) -> asyncio.Task[httpx.Response]:
        body = {"model": MODEL, "prompt": name, "messages": [{"role": "user", "content": name}]}
        return gateway.send("POST", path, json=body, headers=bearer(secrets[name]))

    return ask


async def arrived(gateway: Running, number: int) -> None:
    """Return when so many requests have a lease."""

    async def look() -> None:
        while gateway.leases < number:
            await asyncio.sleep(0)

    await within(look())


async def flooded(gateway: Running, ask: Ask, *, slots: int, flood: int) -> tuple[FakeWorker, list[Any], list[Any]]:
    """A worker whose slots are taken by one key that has further requests; its requests, and the exchanges that run."""
    gateway.launcher.slots = slots
    sent = [ask("flood") for _ in range(flood)]
    worker = await gateway.worker()
    running = [await worker.next_exchange() for _ in range(slots)]
    await arrived(gateway, flood)
    return worker, sent, running


def asked_by(exchange: Any) -> str:
    body = exchange.json
    return str(
        body["messages"][0]["content"] if "messages" in body and exchange.path.startswith("/v1") else body["prompt"]
    )


@pytest.mark.parametrize("path", ["/api/generate", "/v1/chat/completions"])
async def test_a_flood_of_one_key_delays_another_by_one_reply_only(
    run_gateway: RunGateway, keys: Keys, path: str
) -> None:
    secrets = {name: keys.create(name) for name in ("flood", "quiet")}
    async with run_gateway() as gateway:
        ask = asker(gateway, secrets, path)
        worker, sent, running = await flooded(gateway, ask, slots=2, flood=12)
        quiet = ask("quiet")
        await arrived(gateway, 13)
        assert worker.exchanges.empty()  # the engine has no more than it runs
        running.pop().reply(b"{}")
        following = await worker.next_exchange()
        assert asked_by(following) == "quiet"
        following.reply(b"{}")
        assert (await quiet).status_code == 200
        for _ in range(10):
            running.append(await worker.next_exchange())
            running.pop(0).reply(b"{}")
        running.pop().reply(b"{}")
        assert {(await one).status_code for one in sent} == {200}
        assert all(gate.is_unused for gate in gateway.app._admission._gates.values())


async def test_shares_follow_the_classes(run_gateway: RunGateway, keys: Keys) -> None:
    secrets = {"flood": keys.create("flood")}
    secrets |= {name: keys.create(name, priority=name) for name in ("high", "low")}
    async with run_gateway() as gateway:
        ask = asker(gateway, secrets)
        worker, sent, running = await flooded(gateway, ask, slots=1, flood=1)
        sent += [ask(name) for _ in range(10) for name in ("high", "low")]
        await arrived(gateway, 21)
        order = []
        for _ in range(10):
            running.pop().reply(b"{}")
            running.append(await worker.next_exchange())
            order.append(asked_by(running[0]))
        assert order.count("high") in {7, 8, 9}
        for one in sent:
            one.cancel()


async def test_without_contention_and_without_a_known_number_of_slots_no_request_waits(
    run_gateway: RunGateway, keys: Keys
) -> None:
    secrets = {"flood": keys.create("flood")}
    async with run_gateway() as gateway:
        ask = asker(gateway, secrets)
        sent = [ask("flood") for _ in range(20)]
        worker = await gateway.worker()
        for _ in range(20):
            (await worker.next_exchange()).reply(b"{}")
        assert {(await one).status_code for one in sent} == {200}


async def test_a_setting_replaces_the_engines_number_of_slots(run_gateway: RunGateway, keys: Keys) -> None:
    secrets = {name: keys.create(name) for name in ("flood", "quiet")}
    async with run_gateway(key_slots=1) as gateway:
        ask = asker(gateway, secrets)
        sent = [ask("flood"), ask("flood")]
        worker = await gateway.worker()
        first = await worker.next_exchange()
        await arrived(gateway, 2)
        assert worker.exchanges.empty()
        first.reply(b"{}")
        (await worker.next_exchange()).reply(b"{}")
        assert {(await one).status_code for one in sent} == {200}


async def test_a_client_that_leaves_while_it_waits_gives_its_place_up(run_gateway: RunGateway, keys: Keys) -> None:
    secrets = {name: keys.create(name) for name in ("flood", "quiet")}
    async with run_gateway() as gateway:
        ask = asker(gateway, secrets)
        worker, sent, running = await flooded(gateway, ask, slots=1, flood=3)
        quiet = ask("quiet")
        await arrived(gateway, 4)
        quiet.cancel()
        sent[1].cancel()

        async def left() -> None:
            while gateway.leases > 2:
                await asyncio.sleep(0)

        await within(left())
        running.pop().reply(b"{}")
        exchange = await worker.next_exchange()
        assert asked_by(exchange) == "flood"
        exchange.reply(b"{}")
        assert (await sent[2]).status_code == 200
        assert all(gate.is_unused for gate in gateway.app._admission._gates.values())


async def test_requests_that_wait_when_the_worker_dies_are_told(run_gateway: RunGateway, keys: Keys) -> None:
    secrets = {"flood": keys.create("flood")}
    async with run_gateway() as gateway:
        worker, sent, _ = await flooded(gateway, asker(gateway, secrets), slots=1, flood=4)
        worker.die()
        assert {(await within(one)).status_code for one in sent} == {500}
        assert all(gate.is_unused for gate in gateway.app._admission._gates.values())


async def test_requests_that_wait_when_the_server_stops_are_told(serve: Serve, settings: Settings, keys: Keys) -> None:
    secret = keys.create("flood")

    def prepare(launcher: Any) -> None:
        launcher.slots = 1

    async with serve(MODEL, prepare=prepare, drain_timeout=ZERO) as serving:
        worker = await within(serving.launcher.started.get())
        clients = [await serving.connect() for _ in range(2)]
        for client in clients:
            body = b'{"model":"smollm2:135m","prompt":"hi"}'
            client.request("POST", "/api/generate", body, ("authorization", f"Bearer {secret}"))
        await worker.next_exchange()
        serving.signal()
        assert [(await client.head()).status for client in clients] == [503, 503]
        assert await within(serving.done) == 0
