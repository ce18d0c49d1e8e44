"""Decisions of the scheduler, as pure functions from facts to a choice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ResidentFacts:
    """What the policy may know of a resident. `keep_alive` is ns, or negative for ever."""

    engine: str
    name: str
    idle: bool
    keep_alive: int


def choose_victim(residents: Iterable[ResidentFacts]) -> str | None:
    """The engine to evict for another model: idle ones only, the shortest keep-alive first, then by name.

    None where every resident is serving or loading: the newcomer waits (contract §6.4).
    """
    idle = [resident for resident in residents if resident.idle]
    if not idle:
        return None
    return min(
        idle, key=lambda resident: (resident.keep_alive < 0, resident.keep_alive, resident.name, resident.engine)
    ).engine
