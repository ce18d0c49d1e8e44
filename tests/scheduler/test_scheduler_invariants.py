"""The invariants of vllama/scheduler/DESIGN.md hold, whatever clients, clocks and crashes do in whatever order."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from virtual_time import VirtualTimeLoop, later, now

from vllama.durations import FOREVER
from vllama.errors import EngineError, LoadFailed, Overloaded
from vllama.scheduler.policy import Holding, State
from vllama.scheduler.resident import Resident
from vllama.settings import Settings

from .fakes import LOADING, Client, Scene, manifest

T = TypeVar("T")

SECOND = 1_000_000_000
LIMIT = 2
QUEUE = 3
BUDGET = 2 * manifest("a").size

names = st.sampled_from("abcd")
keep_alives = st.sampled_from([None, 0, 10 * SECOND, 100 * SECOND, FOREVER])
picks = st.integers(0, 99)
memory = st.sampled_from([1000, 2, 1])
"""The number of workers for which there is memory."""


class SchedulerMachine(RuleBasedStateMachine):
    """Rules are what clients, operators and misfortune may do at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.base = Settings.from_environment(
            {}, models=Path("/none"), max_loaded_models=LIMIT, max_queue=QUEUE, sleep_budget=BUDGET
        )
        self.clients: list[Client] = []

    @initialize(
        can_sleep=st.booleans(),
        pin=st.sampled_from([(), (), ("a",)]),
        min_residency=st.sampled_from([0, 40 * SECOND]),
        memory_for=memory,
    )
    def begin(self, can_sleep: bool, pin: tuple[str, ...], min_residency: int, memory_for: int) -> None:
        async def make() -> Scene:
            return Scene(self.base, can_sleep=can_sleep, pin=pin, min_residency=min_residency)

        self.scene = self.run(make())
        self.scene.launcher.memory_for = memory_for

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

    @rule(workers=memory)
    def there_is_memory_for(self, workers: int) -> None:
        self.scene.launcher.memory_for = workers

    @rule(move=st.sampled_from(["load", "sleep", "wake"]))
    def next_move_fails(self, move: str) -> None:
        launcher = self.scene.launcher
        if move == "load":
            launcher.failures.append(LoadFailed("weights are missing"))
        elif move == "sleep":
            launcher.sleep_failures.append(EngineError("no host memory"))
        else:
            launcher.wake_failures.append(EngineError("the first words after waking are wrong"))

    @rule(name=names)
    def is_asked_and_answered(self, name: str) -> None:
        """The usual case: somebody asks, waits, and is served."""
        self.ask(name, 10 * SECOND, 1)
        self.run(later(2 * LOADING))
        for client in [client for client in self.clients if client.is_served]:
            self.run(client.finish())

    @rule(pin=st.sampled_from([(), ("b",)]), budget=st.sampled_from([0, BUDGET]), limit=st.sampled_from([1, LIMIT]))
    def adopt_settings(self, pin: tuple[str, ...], budget: int, limit: int) -> None:
        async def act() -> None:
            self.scene.scheduler.adopt(replace(self.base, pin=pin, sleep_budget=budget, max_loaded_models=limit))

        self.run(act())

    @rule(seconds=st.sampled_from([0.5, 5, LOADING, 95]))
    def pass_time(self, seconds: float) -> None:
        self.run(later(seconds))

    @invariant()
    def nothing_forbidden_was_done(self) -> None:
        """No serving worker is stopped or sent to sleep; loads go one at a time; no model is loaded twice."""
        assert self.scene.launcher.violations == []

    @invariant()
    def no_more_workers_are_awake_than_the_limit_allows(self) -> None:
        assert len(self.scene.launcher.awake) <= LIMIT

    @invariant()
    def sleeping_residents_keep_within_the_budget(self) -> None:
        asleep = [resident for resident in self.residents if resident.state in {State.ASLEEP, State.SLEEPING}]
        assert sum(resident.host_bytes for resident in asleep) <= BUDGET

    @invariant()
    def every_living_worker_belongs_to_a_resident_or_is_stopping(self) -> None:
        known = [resident.worker for resident in self.scene.scheduler._residency.everyone()]
        assert all(worker in known for worker in self.scene.launcher.living)

    @invariant()
    def residents_hold_what_their_workers_hold(self) -> None:
        for resident in self.residents:
            worker: Any = resident.worker
            if worker is None or resident.state is State.LOADING:
                continue
            assert resident.holds is (Holding.ASLEEP if worker.is_asleep else Holding.AWAKE)
            assert not (resident.state is State.READY and worker.is_asleep)

    @invariant()
    def leases_belong_to_running_requests(self) -> None:
        served = [client for client in self.clients if client.is_served]
        held = [self.run(client.served()) for client in served]
        for resident in self.residents:
            assert resident.leases == held.count(resident) >= 0

    @invariant()
    def waiting_requests_are_counted(self) -> None:
        waiting = sum(client.waits and not client.task.done() for client in self.clients)
        assert self.scene.scheduler._waiting == waiting <= QUEUE + 1
        assert sum(resident.waiting for resident in self.residents) <= waiting

    @invariant()
    def keep_alive_runs_for_all_idle_residents_that_may_be_evicted_and_for_no_other(self) -> None:
        for resident in self.residents:
            if resident.is_idle:
                assert resident.keep_alive != 0
                assert (resident.goes_at is not None) == (resident.keep_alive > 0)
            if resident.is_at_rest and resident.goes_at is not None:
                assert resident.expiry is not None
                assert not resident.expiry.cancelled()
                assert resident.expiry.when() <= resident.goes_at

    @invariant()
    def only_busy_residents_that_are_not_pinned_yield_and_only_to_a_waiting_model(self) -> None:
        yielding = [resident for resident in self.residents if resident.yields]
        assert not any(resident.is_pinned for resident in yielding)
        waits_for_room = [
            resident
            for resident in self.residents
            if resident.state in {State.LOADING, State.WAKING} and resident.holds is not Holding.AWAKE
        ]
        assert not yielding or waits_for_room

    @invariant()
    def requests_are_served_by_the_model_they_asked_for(self) -> None:
        for client in self.clients:
            if client.is_served:
                assert self.run(client.served()).manifest.digest == client.asked.digest

    @property
    def residents(self) -> list[Resident]:
        return list(self.scene.scheduler._residency)

    def teardown(self) -> None:
        self.run(self._all_requests_are_answered())
        self.run(self.scene.close())
        assert asyncio.all_tasks(self.loop) == set()
        self.loop.close()

    async def _all_requests_are_answered(self) -> None:
        """When the running requests finish, every waiting request gets its turn or an error."""
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
                assert resident.manifest.name.key == client.asked.name.key


SchedulerMachine.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=30, deadline=None)
TestScheduler = SchedulerMachine.TestCase
