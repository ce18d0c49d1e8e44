"""Decisions of the scheduler, as pure functions from facts to a plan.

What a plan means for whom is told in DESIGN.md. Seconds are those of one monotonic clock, bytes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Protocol


class State(StrEnum):
    """Of a resident; DESIGN.md has what leads from one to another."""

    LOADING = "loading"
    READY = "ready"
    SLEEPING = "going to sleep"
    ASLEEP = "asleep"
    WAKING = "waking"
    STOPPING = "stopping"


class Holding(IntEnum):
    """How much of a machine a resident's worker holds."""

    NOTHING = 0
    ASLEEP = 1
    AWAKE = 2


@dataclass(frozen=True, slots=True)
class ResidentFacts:
    """What the policy may know of a resident.

    `number` is its own alone, also where a predecessor of the same engine is still stopping. `is_busy` says that
    requests use it or wait for it. `keep_alive` is ns, or negative for ever. `host_bytes` are those that it keeps, or
    would keep, of the host's memory while it sleeps. `idle_since` and `awake_since` are seconds.
    """

    number: int
    name: str
    state: State
    holds: Holding
    is_busy: bool = False
    is_pinned: bool = False
    can_sleep: bool = False
    keep_alive: int = 0
    idle_since: float = 0.0
    awake_since: float = 0.0
    host_bytes: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether it is awake for nobody, so that it may go."""
        return self.state is State.READY and not self.is_busy

    @property
    def is_at_rest(self) -> bool:
        """Whether it is awake or asleep for nobody."""
        return self.state in {State.READY, State.ASLEEP} and not self.is_busy

    @property
    def will_hold(self) -> Holding:
        """What it holds once the move that it is in has ended."""
        if self.state is State.STOPPING:
            return Holding.NOTHING
        return Holding.ASLEEP if self.state is State.SLEEPING else self.holds


@dataclass(frozen=True, slots=True)
class Limits:
    """`awake` is how many may be awake at once, `sleep_budget` the bytes of host memory for those asleep."""

    awake: int
    sleep_budget: int = 0
    min_residency: float = 0.0
    yield_after: float = 0.0


@dataclass(frozen=True, slots=True)
class NoPlace:
    """There is no place; `reason` has the numbers."""

    reason: str


class Room(Protocol):
    """Where a newcomer finds its place while the others hold so much: a placement, or NoPlace."""

    def __call__(self, holdings: Mapping[int, Holding]) -> Any:
        """Judge; `holdings` are those of the others, by number."""


def anywhere(holdings: Mapping[int, Holding]) -> None:
    """The Room of a machine whose memory nobody has measured: there is a place always."""
    del holdings


@dataclass(frozen=True, slots=True)
class Go:
    """There is room now."""

    placement: Any


@dataclass(frozen=True, slots=True)
class Evict:
    """Send these residents to sleep, and stop those."""

    sleep: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Decide again when something has changed, or after so many seconds; meanwhile `yielding` take no new requests."""

    seconds: float | None = None
    yielding: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Refuse:
    """There will never be room."""

    reason: str


Plan = Go | Evict | Wait | Refuse


def make_room(others: Sequence[ResidentFacts], limits: Limits, room: Room, *, now: float, waited: float) -> Plan:
    """How a newcomer gets its room among the others; `waited` are the seconds since it came to be the next.

    Whoever serves, or is loading, is never chosen (contract §6.4). The order of what is: see `_by_harm`.
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
    """What becomes of an idle model whose keep-alive has ended: it sleeps, where it can and the budget allows."""
    coming = {other.number: other.will_hold for other in others}
    return _as_plan([retired, *others], coming, _retire(retired, others, coming, limits.sleep_budget))


def make_way(others: Sequence[ResidentFacts]) -> Evict:
    """Who goes after a load ran out of memory, before its second try: all others at rest (contract §6.4).

    What was planned has proved wrong, so nobody knows how much more is needed, or on which device. They stop: asleep
    they would keep the host's memory, which may be what is missing.
    """
    return Evict(stop=tuple(other.number for other in others if other.is_at_rest and not other.is_pinned))


def _by_harm(residents: Sequence[ResidentFacts]) -> list[ResidentFacts]:
    """The shortest keep-alive first (contract §6.4), then the longest unused; names make it certain."""
    return sorted(residents, key=lambda r: (r.keep_alive < 0, r.keep_alive, r.idle_since, r.name, r.number))


def _least_harm(
    others: Sequence[ResidentFacts],
    victims: Sequence[ResidentFacts],
    coming: Mapping[int, Holding],
    budget: int,
    place: Room,
) -> Evict | None:
    """The fewest of the victims, and of those asleep, that must go; None where all of them would not do.

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
    """Who gives up what, the least harm first; `after` is what the caller has made of it so far."""
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
    """What changes where this one goes to sleep: those that have slept longest make room in the budget."""
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
    reason = found.reason if isinstance(found, NoPlace) else "they hold the room"
    return Refuse(f"{reason}; pinned (VLLAMA_PIN): {pinned}")
