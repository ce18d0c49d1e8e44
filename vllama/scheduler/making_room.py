"""Making room for one newcomer after the other: asks the policy until it says go, and has its plans carried out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol

from vllama.errors import NoRoom
from vllama.machine.host import HostMemory
from vllama.scheduler.memory import Placement
from vllama.scheduler.policy import Evict, Go, Holding, Limits, Refuse, Room, State, Wait, anywhere, make_room
from vllama.scheduler.resident import Resident
from vllama.scheduler.room import Occupant, PlannedRoom
from vllama.settings import Settings
from vllama.store.manifest import Manifest

_LEFT_OF_HOST = 20
"""What part of the host's memory is left alone by those that go to sleep."""

_LOOK_LASTS = 1.0
"""Seconds for which a look at the machine counts, while nothing moves on it that is ours."""

FindRoom = Callable[[Manifest, Sequence[Occupant | None], Placement | None], Awaitable[Room]]
"""Looks where a model finds its place; see vllama.scheduler.residency.WorkerLauncher.room."""


class Residents(Protocol):
    """Those that may be in a newcomer's way; see vllama.scheduler.residency.Residency."""

    settings: Settings

    def everyone(self) -> Iterator[Resident]:
        """All that may hold something."""

    def carry_out(self, plan: Evict, why: str) -> None:
        """Send some to sleep and stop others."""

    def notify(self) -> None:
        """Wake those who wait for a change."""

    async def change(self, seconds: float | None = None) -> None:
        """Return when something has changed, or after so many seconds."""


class RoomMaker:
    """Makes room among the residents. Whoever needs some takes his `turn`: loads and wakes, in order of arrival.

    `host_memory` tells what those that go to sleep can have.
    """

    def __init__(self, residents: Residents, find_room: FindRoom, host_memory: Callable[[], HostMemory]) -> None:
        self.turn = asyncio.Lock()
        self._residents = residents
        self._find_room = find_room
        self._host_memory = host_memory

    async def make(self, newcomer: Resident) -> None:
        """Carry out the policy's plans until there is room, and take it. Raises NoRoom where there will be none."""
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
                    continue  # meanwhile what was seen of the machine may have become untrue
                facts, now = [other.facts() for other in others], loop.time()
                plan = make_room(facts, self.limits(room), room, now=now, waited=now - since)
                if isinstance(plan, Go):
                    newcomer.holds, newcomer.placement = Holding.AWAKE, plan.placement or asleep
                    return
                if isinstance(plan, Refuse):
                    raise NoRoom(plan.reason)
                if isinstance(plan, Evict):
                    residents.carry_out(plan, f"{newcomer.manifest.name} needs the room")
                elif isinstance(plan, Wait):
                    for other in others:
                        other.yields = other.number in plan.yielding
                    await residents.change(plan.seconds)
        finally:
            for other in residents.everyone():
                other.yields = False
            residents.notify()

    def limits(self, room: Room = anywhere) -> Limits:
        """The policy's limits, by the settings and the memory of this moment."""
        settings, ram = self._residents.settings, self._host_memory()
        stated = settings.sleep_budget
        budget = stated if isinstance(stated, int) else int(stated * ram.total)
        sleepers = (other for other in self._residents.everyone() if other.state in {State.SLEEPING, State.ASLEEP})
        asleep = sum(sleeper.host_bytes for sleeper in sleepers)
        available = asleep + max(0, ram.free - ram.total // _LEFT_OF_HOST)
        return Limits(
            awake=settings.resident_limit(room.gpus if isinstance(room, PlannedRoom) else 1),
            sleep_budget=min(budget, available),
            min_residency=settings.min_residency,
            yield_after=settings.yield_after,
        )
