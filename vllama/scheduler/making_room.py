"""Making room for new models, one after the other: carries out the policy's plans until it says Go."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol

from vllama.durations import to_seconds
from vllama.errors import NoRoom
from vllama.machine.host import HostMemory
from vllama.scheduler.memory import Placement
from vllama.scheduler.policy import Evict, Go, Holding, Limits, Refuse, Room, State, Wait, anywhere, make_room
from vllama.scheduler.resident import Resident
from vllama.scheduler.room import Occupant, PlannedRoom
from vllama.settings import Settings
from vllama.store.manifest import Manifest

_LEFT_OF_HOST = 20
"""Fraction (1/n) of host memory that stays free of sleeping models."""

_LOOK_LASTS = 1.0
"""Seconds for which a reading of the machine stays valid while none of our models moves."""

FindRoom = Callable[[Manifest, Sequence[Occupant | None], Placement | None], Awaitable[Room]]
"""Function that returns the Room for a model; see vllama.scheduler.residency.WorkerLauncher.room."""


class Residents(Protocol):
    """The residents that a new model competes with; see vllama.scheduler.residency.Residency."""

    settings: Settings

    def everyone(self) -> Iterator[Resident]:
        """All that may hold something."""

    def carry_out(self, plan: Evict, why: str) -> None:
        """Put residents to sleep and stop others, as planned."""

    def notify(self) -> None:
        """Notify all waiters of a change."""

    async def change(self, seconds: float | None = None) -> None:
        """Wait for a change, or for at most this many seconds."""


class RoomMaker:
    """Makes room among the residents. Loads and wakes each wait for their `turn`, in order of arrival.

    `host_memory` returns the memory available for sleeping models.
    """

    def __init__(self, residents: Residents, find_room: FindRoom, host_memory: Callable[[], HostMemory]) -> None:
        self.turn = asyncio.Lock()
        self._residents = residents
        self._find_room = find_room
        self._host_memory = host_memory

    async def make(self, newcomer: Resident) -> None:
        """Carry out the policy's plans until there is room, and take it. Raises NoRoom if there will be none."""
        residents, loop = self._residents, asyncio.get_running_loop()
        since = loop.time()
        asleep = newcomer.placement if newcomer.holds is Holding.ASLEEP else None
        looked, seen, room = -math.inf, None, anywhere
        try:
            while True:
                others = [other for other in residents.everyone() if other is not newcomer]
                occupants = [other.occupant() for other in others if other.holds]
                if occupants != seen or loop.time() - looked > _LOOK_LASTS:
                    room = await self._find_room(newcomer.manifest, occupants, asleep)
                    looked, seen = loop.time(), occupants
                    continue  # meanwhile the reading of the machine may be outdated
                facts, now = [other.facts() for other in others], loop.time()
                plan = make_room(facts, self.limits(room), room, now=now, waited=now - since)
                if isinstance(plan, Go):
                    newcomer.holds, newcomer.placement = Holding.AWAKE, plan.placement or asleep
                    return
                if isinstance(plan, Refuse):
                    raise NoRoom(plan.reason)
                if isinstance(plan, Evict):
                    residents.carry_out(plan, f"{newcomer.manifest.name} needs its memory")
                elif isinstance(plan, Wait):
                    for other in others:
                        other.yields = other.number in plan.yielding
                    await residents.change(plan.seconds)
        finally:
            for other in residents.everyone():
                other.yields = False
            residents.notify()

    def limits(self, room: Room = anywhere) -> Limits:
        """Return the policy's limits from the settings and the current memory."""
        settings, ram = self._residents.settings, self._host_memory()
        stated = settings.sleep_budget
        budget = stated if isinstance(stated, int) else int(stated * ram.total)
        sleepers = (other for other in self._residents.everyone() if other.state in {State.SLEEPING, State.ASLEEP})
        kept = sum(other.host_bytes for other in self._residents.everyone() if other.keeps_copy)  # given up when needed
        asleep = sum(sleeper.host_bytes for sleeper in sleepers if not sleeper.keeps_copy)
        available = asleep + kept + max(0, ram.free - ram.total // _LEFT_OF_HOST)
        return Limits(
            awake=settings.resident_limit(room.gpus if isinstance(room, PlannedRoom) else 1),
            sleep_budget=min(budget, available),
            min_residency=to_seconds(settings.min_residency),
            yield_after=to_seconds(settings.yield_after),
        )
