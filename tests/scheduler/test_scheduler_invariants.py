"""Whatever clients, clocks and crashes do in whatever order: some things hold always."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from virtual_time import VirtualTimeLoop, later, now

from vllama.durations import FOREVER
from vllama.errors import EngineError, LoadFailed, Overloaded
from vllama.scheduler.scheduler import Resident, State
from vllama.settings import Settings

from .fakes import LOADING, Client, Scene, manifest

T = TypeVar("T")

SECOND = 1_000_000_000
LIMIT = 2
QUEUE = 3

names = st.sampled_from("abcd")
keep_alives = st.sampled_from([None, 0, 10 * SECOND, 100 * SECOND, FOREVER])
picks = st.integers(0, 99)


class SchedulerMachine(RuleBasedStateMachine):
    """Rules are what clients, operators and misfortune may do at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.base = Settings.from_environment({}, models=Path("/none"), max_loaded_models=LIMIT, max_queue=QUEUE)
        self.scene = self.run(self._make_scene())
        self.clients: list[Client] = []

    async def _make_scene(self) -> Scene:
        return Scene(self.base)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it, and let all happen that follows at once."""

        async def and_then() -> T:
            result = await work
            await now()
            return result

        return self.loop.run_until_complete(and_then())

    def pick(self, clients: list[Client], number: int) -> Client | None:
        return clients[number % len(clients)] if clients else None

    @rule(name=names, keep_alive=keep_alives, version=st.integers(1, 2))
    def ask(self, name: str, keep_alive: int | None, version: int) -> None:
        async def act() -> None:
            self.clients.append(self.scene.ask(name, keep_alive, version=version))

        self.run(act())

    @rule(number=picks)
    def finish(self, number: int) -> None:
        if client := self.pick([client for client in self.clients if client.is_served], number):
            self.run(client.finish())

    @rule(number=picks)
    def leave(self, number: int) -> None:
        if client := self.pick([client for client in self.clients if not client.task.done()], number):
            self.run(client.leave())

    @rule(name=names)
    def unload(self, name: str) -> None:
        async def act() -> None:
            self.scene.scheduler.unload(manifest(name))

        self.run(act())

    @rule(number=picks)
    def crash(self, number: int) -> None:
        async def act() -> None:
            ready = [worker for worker in self.scene.launcher.living if not worker.is_loading]
            if ready:
                ready[number % len(ready)].die()

        self.run(act())

    @rule(number=picks)
    def report_death(self, number: int) -> None:
        async def act(client: Client) -> None:
            resident = await client.served()
            worker: Any = resident.worker
            worker.may_stop_while_serving = True
            self.scene.scheduler.report_death(resident)

        if client := self.pick([client for client in self.clients if client.is_served], number):
            self.run(act(client))

    @rule()
    def next_load_fails(self) -> None:
        self.scene.launcher.failures.append(LoadFailed("out of memory"))

    @rule(seconds=st.sampled_from([0.5, 5, LOADING, 95]))
    def pass_time(self, seconds: float) -> None:
        self.run(later(seconds))

    @invariant()
    def nothing_forbidden_was_done(self) -> None:
        assert self.scene.launcher.violations == []

    @invariant()
    def never_more_workers_than_the_limit(self) -> None:
        assert len(self.scene.launcher.living) <= LIMIT

    @invariant()
    def leases_are_those_of_the_clients_at_work(self) -> None:
        served = [client for client in self.clients if client.is_served]
        held = [self.run(client.served()) for client in served]
        for resident in self.residents:
            assert resident.leases == held.count(resident) >= 0

    @invariant()
    def those_who_wait_are_counted(self) -> None:
        waiting = sum(client.waits and not client.task.done() for client in self.clients)
        assert self.scene.scheduler._waiting == waiting <= QUEUE + 1
        assert sum(resident.waiting for resident in self.residents) <= waiting

    @invariant()
    def keep_alive_runs_for_idle_residents_only_and_for_all_of_them(self) -> None:
        for resident in self.residents:
            runs = resident.expiry is not None and not resident.expiry.cancelled()
            assert runs == (resident.is_idle and resident.keep_alive > 0)
            assert not (resident.is_idle and resident.keep_alive == 0)

    @invariant()
    def who_is_served_was_asked_for(self) -> None:
        for client in self.clients:
            if client.is_served:
                assert self.run(client.served()).manifest.digest == client.asked.digest

    @property
    def residents(self) -> list[Resident]:
        return list(self.scene.scheduler._residents.values())

    def teardown(self) -> None:
        self.run(self._all_get_an_answer())
        self.run(self.scene.close())
        assert asyncio.all_tasks(self.loop) == set()
        self.loop.close()

    async def _all_get_an_answer(self) -> None:
        """Nobody waits for ever: when those at work finish, everybody has his turn or an error."""
        for _ in range(2 * len(self.clients) + 1):
            for client in self.clients:
                if client.is_served:
                    await client.finish()
            await later(10 * LOADING)
        for client in self.clients:
            assert client.task.done(), "it still waits"
            if not client.task.cancelled() and not client.waits:
                try:
                    resident = await client.served()
                except (EngineError, Overloaded):
                    continue
                assert resident.state is State.READY


SchedulerMachine.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=30, deadline=None)
TestScheduler = SchedulerMachine.TestCase
