"""Decisions of the scheduler, as pure functions from facts to a decision.

DESIGN.md explains the effect of each decision. Times are seconds of one monotonic clock, sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Protocol

from vllama.durations import ZERO, Nanoseconds


class State(StrEnum):
    """The state of a resident; DESIGN.md has the transitions."""

    LOADING = "loading"
    READY = "ready"
    SLEEPING = "going to sleep"
    ASLEEP = "asleep"
    WAKING = "waking"
    STOPPING = "stopping"


class Holding(IntEnum):
    """The resources that a resident's worker holds."""

    NOTHING = 0
    ASLEEP = 1
    AWAKE = 2


@dataclass(frozen=True, slots=True)
class ResidentFacts:
    """The facts about a resident that the policy uses.

    `number` is unique, even if a predecessor of the same engine is still stopping. `is_busy` says that requests use or
    wait for it. `keep_alive` is ns, negative for forever. `host_bytes` is the host memory that it keeps, or would keep,
    while it sleeps. `idle_since` and `awake_since` are seconds.
    """

    number: int
    name: str
    state: State
    holds: Holding
    is_busy: bool = False
    is_pinned: bool = False
    can_sleep: bool = False
    keep_alive: Nanoseconds = ZERO
    idle_since: float = 0.0
    awake_since: float = 0.0
    host_bytes: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether it is awake without requests, so that it may be unloaded."""
        return self.state is State.READY and not self.is_busy

    @property
    def is_at_rest(self) -> bool:
        """Whether it is awake or asleep without requests."""
        return self.state in {State.READY, State.ASLEEP} and not self.is_busy

    @property
    def will_hold(self) -> Holding:
        """The holding after its current transition."""
        if self.state is State.STOPPING:
            return Holding.NOTHING
        return Holding.ASLEEP if self.state is State.SLEEPING else self.holds


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits: maximum number of awake residents, bytes of host memory for sleeping ones, and seconds of the clock."""

    awake: int
    sleep_budget: int = 0
    min_residency: float = 0.0
    yield_after: float = 0.0


@dataclass(frozen=True, slots=True)
class NoPlace:
    """The newcomer does not fit; `reason` has the numbers."""

    reason: str


class Room(Protocol):
    """Function that returns a newcomer's placement, or NoPlace, given the holdings of the others."""

    def __call__(self, holdings: Mapping[int, Holding]) -> Any:
        """Return the place, given the `holdings` of the others by number."""


def anywhere(holdings: Mapping[int, Holding]) -> None:
    """Return a place always: the Room of a machine whose memory is unknown."""
    del holdings


@dataclass(frozen=True, slots=True)
class Go:
    """Plan: there is room now."""

    placement: Any


@dataclass(frozen=True, slots=True)
class Evict:
    """Plan: put these residents to sleep, and stop those."""

    sleep: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Plan: decide again after a change or these seconds; meanwhile `yielding` get no new requests."""

    seconds: float | None = None
    yielding: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Refuse:
    """Plan: there will never be room."""

    reason: str


Decision = Go | Evict | Wait | Refuse


def make_room(others: Sequence[ResidentFacts], limits: Limits, room: Room, *, now: float, waited: float) -> Decision:
    """Plan the room for a newcomer; `waited` is the seconds since it became the next in line.

    Residents that serve or load are never chosen (contract §6.4). For the order see `_by_harm`.
    """

    def place(holdings: Mapping[int, Holding]) -> Any:
        if sum(held is Holding.AWAKE for held in holdings.values()) >= limits.awake:
            return NoPlace(f"OLLAMA_MAX_LOADED_MODELS allows {limits.awake} at a time")
        return room(holdings)

    if any(other.state is State.STOPPING for other in others):
        return Wait()  # how much is free is not known before they have gone
    found = place({other.number: other.holds for other in others})
    if not isinstance(found, NoPlace):
        return Go(found)
    coming = {other.number: other.will_hold for other in others}
    if not isinstance(place(coming), NoPlace):
        return Wait()  # for those that fall asleep

    def give_up(those: Sequence[ResidentFacts]) -> Evict | None:
        return _least_harm(others, those, coming, limits.sleep_budget, place)

    awake = [other for other in others if other.will_hold is Holding.AWAKE and not other.is_pinned]
    idle = [other for other in awake if other.is_idle]
    # What was just loaded would have to be loaded again soon: it is spared for a short time, where others come to make
    # room. Not where it can sleep, and not in favour of those that stay for ever.
    loaded = [other for other in idle if not _can_sleep(other, limits.sleep_budget)]
    fresh = [other for other in loaded if now - other.awake_since < limits.min_residency]
    instead = [other for other in awake if other not in fresh and other.keep_alive >= 0]
    if plan := give_up([other for other in instead if other.is_idle]):
        return plan
    spared = min(other.awake_since + limits.min_residency - now for other in fresh) if fresh else 0.0
    if not (spared and give_up(instead)):
        if plan := give_up(idle):
            return plan
        spared = 0.0
    if not (hoped_for := give_up(awake)):
        is_moving = any(other.state is State.SLEEPING for other in others)
        return Wait() if is_moving else _refusal(others, place)
    patience = limits.yield_after - waited
    if patience > 0:
        return Wait(min(patience, spared) if spared else patience)
    busy = {other.number for other in awake if not other.is_idle}
    return Wait(spared or None, frozenset(busy.intersection((*hoped_for.sleep, *hoped_for.stop))))


def after_keep_alive(retired: ResidentFacts, others: Sequence[ResidentFacts], limits: Limits) -> Evict:
    """Plan for an idle model whose keep-alive has ended: it sleeps if possible within the budget, else stops."""
    coming = {other.number: other.will_hold for other in others}
    return _as_plan([retired, *others], coming, _retire(retired, others, coming, limits.sleep_budget))


def make_way(others: Sequence[ResidentFacts]) -> Evict:
    """Plan the second try of a load that ran out of memory: stop all idle or sleeping residents (contract §6.4).

    The plan was wrong, so the missing memory and its device are unknown. They stop instead of sleeping, because the
    missing memory may be the host's.
    """
    return Evict(stop=tuple(other.number for other in others if other.is_at_rest and not other.is_pinned))


def _by_harm(residents: Sequence[ResidentFacts]) -> list[ResidentFacts]:
    """Sort by shortest keep-alive (contract §6.4), then longest unused, then name."""
    return sorted(residents, key=lambda r: (r.keep_alive < 0, r.keep_alive, r.idle_since, r.name, r.number))


def _least_harm(
    others: Sequence[ResidentFacts],
    victims: Sequence[ResidentFacts],
    coming: Mapping[int, Holding],
    budget: int,
    place: Room,
) -> Evict | None:
    """Return the fewest awake and sleeping victims to remove; None if even all are not enough.

    First the awake go to sleep, or stop where they cannot; then the sleepers stop, the longest asleep first; those
    that were to sleep here stop at last.
    """
    after = dict(coming)
    taken: list[tuple[int, Holding]] = []
    for number, held in _sacrifices(others, victims, after, budget):
        if held >= after[number]:
            continue
        taken.append((number, after[number]))
        after[number] = held
        if not isinstance(place(after), NoPlace):
            break
    else:
        return None
    for number, held_before in taken:  # the first ones may have been in vain
        spared = {**after, number: held_before}
        is_within = _asleep_bytes(others, spared) <= max(budget, _asleep_bytes(others, coming))
        if held_before > after[number] and is_within and not isinstance(place(spared), NoPlace):
            after = spared
    return _as_plan(others, coming, after)


def _sacrifices(
    others: Sequence[ResidentFacts], victims: Sequence[ResidentFacts], after: dict[int, Holding], budget: int
) -> Iterator[tuple[int, Holding]]:
    """Yield the victims and their new holdings, least harm first; `after` is the state so far."""
    ordered = _by_harm(victims)
    for victim in ordered:
        yield from _retire(victim, others, after, budget).items()
    waking = [other for other in others if other.state is State.WAKING and not other.is_pinned]
    waiting = [other for other in waking if other.holds is Holding.ASLEEP]
    for last in (*_sleepers(others), *ordered, *_by_harm(waiting)):
        yield last.number, Holding.NOTHING


def _retire(
    victim: ResidentFacts, others: Sequence[ResidentFacts], holdings: Mapping[int, Holding], budget: int
) -> dict[int, Holding]:
    """Return the changes if this one sleeps: the longest sleepers make room in the budget."""
    if not _can_sleep(victim, budget):
        return {victim.number: Holding.NOTHING}
    changes: dict[int, Holding] = {}
    excess = _asleep_bytes(others, holdings) + victim.host_bytes - budget
    for sleeper in _sleepers(others):
        if excess <= 0:
            break
        if holdings[sleeper.number] is Holding.ASLEEP:
            changes[sleeper.number] = Holding.NOTHING
            excess -= sleeper.host_bytes
    if excess > 0:
        return {victim.number: Holding.NOTHING}
    return {**changes, victim.number: Holding.ASLEEP}


def _can_sleep(resident: ResidentFacts, budget: int) -> bool:
    return resident.can_sleep and 0 < budget >= resident.host_bytes


def _sleepers(residents: Sequence[ResidentFacts]) -> list[ResidentFacts]:
    asleep = [r for r in residents if r.state is State.ASLEEP and not r.is_pinned]
    return sorted(asleep, key=lambda r: (r.idle_since, r.name, r.number))


def _asleep_bytes(residents: Sequence[ResidentFacts], holdings: Mapping[int, Holding]) -> int:
    return sum(r.host_bytes for r in residents if holdings.get(r.number) is Holding.ASLEEP)


def _as_plan(residents: Sequence[ResidentFacts], before: Mapping[int, Holding], after: Mapping[int, Holding]) -> Evict:
    changed = [r.number for r in residents if r.number in after and after[r.number] is not before.get(r.number)]
    return Evict(
        sleep=tuple(number for number in changed if after[number] is Holding.ASLEEP),
        stop=tuple(number for number in changed if after[number] is Holding.NOTHING),
    )


def _refusal(others: Sequence[ResidentFacts], place: Room) -> Refuse:
    alone = place({})
    if isinstance(alone, NoPlace):
        return Refuse(alone.reason)
    pinned = ", ".join(sorted(other.name for other in others if other.is_pinned))
    found = place({other.number: other.will_hold for other in others if other.is_pinned})
    reason = found.reason if isinstance(found, NoPlace) else "pinned models take the memory"
    return Refuse(f"{reason}; pinned (VLLAMA_PIN): {pinned}")
