"""Copies of weights in host memory that models keep while they are awake, so that they fall asleep at once.

They are taken from the sleep budget as long as no sleeping model needs it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from vllama.errors import SleepFailed
from vllama.scheduler.policy import Holding, State
from vllama.scheduler.resident import Resident

log = logging.getLogger(__name__)

_PREPARE_AFTER = 2.0
"""Seconds without requests after which a copy is begun."""


class HostMemoryCopies:
    """Keeper of the copies of all residents. `budget` returns the bytes of host memory for sleep."""

    def __init__(self, residents: Callable[[], Iterable[Resident]], budget: Callable[[], int]) -> None:
        self._residents = residents
        self._budget = budget
        self._preparing: set[asyncio.Task[None]] = set()
        self._watched: set[int] = set()

    def has_room_for(self, resident: Resident) -> bool:
        """Return whether it may keep a copy beside the sleeping models and the other copies."""
        return self._held_beside(resident) + resident.host_bytes <= self._budget()

    async def make_room_for(self, resident: Resident) -> None:
        """Have other models give up their copies until this one may sleep, those first that were idle longest."""
        others = (other for other in self._residents() if other is not resident)
        keepers = [other for other in others if other.keeps_copy and other.state is State.READY]
        for keeper in sorted(keepers, key=lambda keeper: keeper.idle_since):
            if self.has_room_for(resident):
                return
            await self._give_up(keeper)

    def note_idle(self, resident: Resident) -> None:
        """Begin a copy of its weights if it stays idle for a moment."""
        if resident.keeps_copy or resident.number in self._watched:
            return
        if resident.worker is not None and resident.worker.can_sleep:
            self._watched.add(resident.number)
            asyncio.get_running_loop().call_later(_PREPARE_AFTER, self._prepare_if_idle, resident, resident.idle_since)

    def _prepare_if_idle(self, resident: Resident, idle_since: float) -> None:
        self._watched.discard(resident.number)
        if not resident.is_idle:
            return  # the end of its last request begins this again
        if resident.idle_since != idle_since:
            self.note_idle(resident)
        elif not resident.keeps_copy and self.has_room_for(resident):
            resident.keeps_copy = True
            task = asyncio.create_task(self._prepare(resident))
            self._preparing.add(task)
            task.add_done_callback(self._preparing.discard)

    @staticmethod
    async def _prepare(resident: Resident) -> None:
        try:
            if resident.worker is not None:
                await resident.worker.prepare_sleep()
        except SleepFailed as error:
            resident.keeps_copy = False
            log.warning("cannot copy the weights of %s to host memory: %s", resident.manifest.name, error)

    @staticmethod
    async def _give_up(keeper: Resident) -> None:
        keeper.keeps_copy = False
        try:
            if keeper.worker is not None:
                await keeper.worker.forget_copy()
        except SleepFailed as error:
            log.warning("%s did not give up its copy in host memory: %s", keeper.manifest.name, error)

    def _held_beside(self, resident: Resident) -> int:
        others = (other for other in self._residents() if other is not resident)
        return sum(other.host_bytes for other in others if other.keeps_copy or other.holds is Holding.ASLEEP)
