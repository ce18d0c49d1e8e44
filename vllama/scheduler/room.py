"""The policy's Room from the memory plan: whether a newcomer fits, given the holdings of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllama.scheduler.devices import Machine
from vllama.scheduler.memory import Claim, Need, Placement, Unfit, gib
from vllama.scheduler.placing import changed, has_room, place, room
from vllama.scheduler.policy import Holding, NoPlace, State


@dataclass(frozen=True, slots=True)
class Occupant:
    """Another resident: its placement, its held memory and its current transition."""

    number: int
    holds: Holding
    placement: Placement
    state: State = State.READY

    def claims(self, holding: Holding) -> tuple[Claim, ...]:
        """Return its claims with this holding, and the part that it already holds."""
        if holding is Holding.NOTHING:
            return ()
        if holding is Holding.ASLEEP:
            return self.placement.claims_asleep()
        if self.state is State.WAKING:
            return self.placement.claims_waking()
        return self.placement.claims(is_loaded=self.state is not State.LOADING)


@dataclass(frozen=True, slots=True)
class PlannedRoom:
    """A `policy.Room` for one newcomer on the machine as it is now.

    `newcomer` is the need of a model that has to be loaded, or the placement of one that sleeps: that one wakes where
    it is or not at all.
    """

    machine: Machine
    occupants: Sequence[Occupant]
    newcomer: Need | Placement

    def __call__(self, holdings: Mapping[int, Holding]) -> Placement | NoPlace:
        """Return the place; occupants missing in `holdings` hold nothing."""
        before = tuple(self._claims({other.number: other.holds for other in self.occupants}))
        after = tuple(self._claims(holdings))
        devices = changed(self.machine.devices, before, after)
        if isinstance(self.newcomer, Need):
            found = place(self.newcomer, devices, after)
            return NoPlace(found.message) if isinstance(found, Unfit) else found
        wanted = self.newcomer.claims_waking()
        if has_room(wanted, devices, after):
            return self.newcomer
        lacking = max(wanted, key=lambda claim: claim.size - claim.held)
        free = max((room(device, after) for device in devices if device.index == lacking.device), default=0)
        required = gib(lacking.size - lacking.held)
        return NoPlace(f"waking the model requires {required} of GPU memory, but only {gib(free)} is available")

    @property
    def gpus(self) -> int:
        """The number of GPUs; 1 if there is none."""
        return len(self.machine.devices)

    def _claims(self, holdings: Mapping[int, Holding]) -> Iterator[Claim]:
        for other in self.occupants:
            yield from other.claims(holdings.get(other.number, Holding.NOTHING))
