"""Facts in, a plan out: who makes room for whom, and what becomes of those whose keep-alive has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.durations import FOREVER
from vllama.scheduler.policy import (
    Evict,
    Go,
    Holding,
    Limits,
    NoPlace,
    Refuse,
    ResidentFacts,
    State,
    Wait,
    after_keep_alive,
    anywhere,
    make_room,
    make_way,
)

NOW = 1000.0
ONE, TWO = Limits(awake=1), Limits(awake=2)
_HOLDS = {State.ASLEEP: Holding.ASLEEP, State.WAKING: Holding.ASLEEP}


def resident(name: str, state: State = State.READY, **facts: Any) -> ResidentFacts:
    """One that is idle and has been for long, unless it is said otherwise; its number is that of its letter."""
    known: dict[str, Any] = {"holds": _HOLDS.get(state, Holding.AWAKE), "keep_alive": 5, **facts}
    return ResidentFacts(number=ord(name[0]), name=name, state=state, **known)


def numbers(names: str) -> tuple[int, ...]:
    return tuple(map(ord, names))


def plan(*others: ResidentFacts, limits: Limits = ONE, room: Any = anywhere, waited: float = 0.0) -> Any:
    return make_room(others, limits, room, now=NOW, waited=waited)


class Device:
    """A Room of so many bytes in all: each resident takes its size awake, and less asleep."""

    def __init__(self, size: int, wanted: int, *, awake: Mapping[str, int], asleep: int = 0) -> None:
        self.size, self.wanted, self.asleep = size, wanted, asleep
        self.awake = {ord(name): size for name, size in awake.items()}

    def __call__(self, holdings: Mapping[int, Holding]) -> Any:
        taken = sum(
            self.awake[number] if held is Holding.AWAKE else self.asleep
            for number, held in holdings.items()
            if held is not Holding.NOTHING
        )
        free = self.size - taken
        return "placed" if self.wanted <= free else NoPlace(f"{self.wanted} are needed and {free} are free")


def test_a_newcomer_alone_goes_at_once() -> None:
    assert plan() == Go(None)


def test_there_is_room_up_to_the_limit_and_who_sleeps_does_not_count() -> None:
    assert plan(resident("a"), resident("b", State.ASLEEP), limits=TWO) == Go(None)


def test_what_the_room_found_is_the_placement() -> None:
    assert plan(room=Device(10, 10, awake={})) == Go("placed")


@pytest.mark.parametrize(
    ("residents", "victim"),
    [
        ([("a", False, 5)], "a"),
        ([("a", True, 1), ("b", False, 5)], "b"),
        ([("a", False, 9), ("b", False, 5)], "b"),
        ([("b", False, 5), ("a", False, 5)], "a"),
        ([("a", False, FOREVER), ("b", False, 5)], "b"),
        ([("a", False, FOREVER), ("b", True, 5)], "a"),
        ([("a", False, 0), ("b", False, FOREVER)], "a"),
    ],
)
def test_the_victim_is_idle_and_has_the_shortest_keep_alive_then_the_first_name(
    residents: list[tuple[str, bool, int]], victim: str
) -> None:
    others = [resident(name, is_busy=busy, keep_alive=keep_alive) for name, busy, keep_alive in residents]
    limits = Limits(awake=len(others))
    for order in (others, others[::-1]):
        assert plan(*order, limits=limits) == Evict(stop=numbers(victim))


def test_of_equal_keep_alives_the_longest_unused_goes() -> None:
    others = (resident("a", idle_since=9.0), resident("b", idle_since=3.0))
    assert plan(*others, limits=TWO) == Evict(stop=numbers("b"))


def test_a_newcomer_waits_where_all_are_at_work() -> None:
    assert plan(resident("a", is_busy=True), limits=replace(ONE, yield_after=10)) == Wait(10)


def test_one_that_is_loading_is_not_chosen() -> None:
    assert isinstance(plan(resident("a", State.LOADING)), Wait)


def test_one_that_waits_for_its_own_load_holds_nothing_and_is_in_nobody_s_way() -> None:
    assert plan(resident("a", State.LOADING, holds=Holding.NOTHING)) == Go(None)


def test_a_newcomer_waits_until_those_that_stop_have_stopped_for_nobody_knows_what_is_free_before() -> None:
    assert plan(resident("a", State.STOPPING), limits=TWO) == Wait()


def test_a_newcomer_waits_for_those_that_fall_asleep_and_evicts_no_more() -> None:
    assert plan(resident("a", State.SLEEPING), resident("b"), limits=TWO) == Wait()


def test_a_newcomer_that_has_waited_long_enough_has_the_busy_ones_in_its_way_yield() -> None:
    limits = Limits(awake=2, yield_after=10)
    others = (resident("a", is_busy=True, keep_alive=1), resident("b", is_busy=True))
    assert plan(*others, limits=limits, waited=9.0) == Wait(1.0)
    assert plan(*others, limits=limits, waited=10.0) == Wait(None, frozenset(numbers("a")))


def test_one_that_was_just_loaded_is_spared_while_another_can_go() -> None:
    limits = Limits(awake=2, min_residency=10)
    fresh = resident("a", keep_alive=1, awake_since=NOW - 9)
    assert plan(fresh, resident("b"), limits=limits) == Evict(stop=numbers("b"))
    old = replace(fresh, awake_since=NOW - 10)
    assert plan(old, resident("b"), limits=limits) == Evict(stop=numbers("a"))


def test_one_that_was_just_loaded_is_spared_no_longer_than_that_while_another_is_busy() -> None:
    limits = Limits(awake=2, min_residency=10, yield_after=60)
    fresh, busy = resident("a", awake_since=NOW - 8), resident("b", is_busy=True)
    assert plan(fresh, busy, limits=limits) == Wait(2.0)
    assert plan(replace(fresh, awake_since=NOW - 10), busy, limits=limits) == Evict(stop=numbers("a"))


def test_one_that_was_just_loaded_goes_where_there_is_no_other_or_only_one_that_stays_for_ever() -> None:
    limits = Limits(awake=2, min_residency=10)
    fresh = resident("a", awake_since=NOW)
    assert plan(fresh, limits=replace(limits, awake=1)) == Evict(stop=numbers("a"))
    assert plan(fresh, resident("b", keep_alive=FOREVER), limits=limits) == Evict(stop=numbers("a"))


def test_one_that_was_just_loaded_and_can_sleep_is_not_spared() -> None:
    limits = Limits(awake=2, min_residency=10, sleep_budget=100)
    fresh = resident("a", keep_alive=1, awake_since=NOW, can_sleep=True, host_bytes=40)
    assert plan(fresh, resident("b"), limits=limits) == Evict(sleep=numbers("a"))


def test_a_pinned_one_never_goes() -> None:
    pinned = resident("pinned", is_pinned=True, keep_alive=FOREVER)
    assert plan(pinned, resident("b"), limits=TWO) == Evict(stop=numbers("b"))
    found = plan(pinned)
    assert isinstance(found, Refuse)
    assert found.reason == "OLLAMA_MAX_LOADED_MODELS allows 1 at a time; pinned (VLLAMA_PIN): pinned"


def test_what_does_not_fit_alone_is_refused_with_the_numbers_and_nobody_goes_for_it() -> None:
    assert plan(resident("a"), room=Device(10, 20, awake={"a": 5})) == Refuse("20 are needed and 10 are free")


SLEEPY = replace(TWO, sleep_budget=100)


def sleeper(name: str, state: State = State.READY, **facts: Any) -> ResidentFacts:
    return resident(name, state, can_sleep=True, **{"host_bytes": 40, **facts})


def test_who_can_sleep_sleeps_instead_of_stopping() -> None:
    assert plan(sleeper("a"), resident("b"), limits=SLEEPY) == Evict(sleep=numbers("a"))


def test_without_a_budget_nobody_sleeps() -> None:
    assert plan(sleeper("a"), resident("b"), limits=TWO) == Evict(stop=numbers("a"))


def test_one_that_is_larger_than_the_budget_stops() -> None:
    assert plan(sleeper("a", host_bytes=101), resident("b"), limits=SLEEPY) == Evict(stop=numbers("a"))


def test_the_longest_asleep_stops_where_the_budget_is_full() -> None:
    asleep = [sleeper("x", State.ASLEEP, idle_since=2.0), sleeper("y", State.ASLEEP, idle_since=1.0)]
    assert plan(sleeper("a"), resident("b"), *asleep, limits=SLEEPY) == Evict(sleep=numbers("a"), stop=numbers("y"))


def test_sleepers_stop_where_what_they_keep_of_the_device_is_in_the_way() -> None:
    room = Device(10, 9, awake={"a": 6, "z": 6}, asleep=1)
    asleep = sleeper("z", State.ASLEEP)
    assert plan(sleeper("a"), asleep, limits=SLEEPY, room=room) == Evict(sleep=numbers("a"), stop=numbers("z"))
    room = Device(10, 10, awake={"a": 6, "z": 6}, asleep=1)
    assert plan(sleeper("a"), asleep, limits=SLEEPY, room=room) == Evict(stop=numbers("az"))


def test_no_more_go_than_have_to() -> None:
    room = Device(10, 5, awake={"a": 1, "b": 8})
    assert plan(sleeper("a", keep_alive=1), sleeper("b"), limits=replace(SLEEPY, awake=9), room=room) == Evict(
        sleep=numbers("b")
    )


def test_one_that_waits_to_wake_loses_its_worker_only_where_nothing_else_would_do() -> None:
    waiting = sleeper("w", State.WAKING, is_busy=True)
    room = Device(10, 8, awake={"a": 5, "w": 5}, asleep=2)
    assert plan(resident("a"), waiting, limits=SLEEPY, room=room) == Evict(stop=numbers("a"))
    room = Device(10, 9, awake={"a": 5, "w": 5}, asleep=2)
    assert plan(resident("a"), waiting, limits=SLEEPY, room=room) == Evict(stop=numbers("aw"))


def test_after_its_keep_alive_a_model_sleeps_where_it_can() -> None:
    assert after_keep_alive(sleeper("a"), [], SLEEPY) == Evict(sleep=numbers("a"))
    assert after_keep_alive(resident("a"), [], SLEEPY) == Evict(stop=numbers("a"))
    asleep = [sleeper(name, State.ASLEEP, idle_since=float(age)) for age, name in enumerate("xy")]
    assert after_keep_alive(sleeper("a"), asleep, SLEEPY) == Evict(sleep=numbers("a"), stop=numbers("x"))


def test_a_load_that_ran_out_of_memory_has_all_others_at_rest_stop_awake_or_asleep() -> None:
    assert make_way([resident("a"), sleeper("b"), sleeper("c", State.ASLEEP)]) == Evict(stop=numbers("abc"))


@pytest.mark.parametrize("state", sorted(set(State) - {State.READY, State.ASLEEP}))
def test_nobody_goes_for_it_who_moves(state: State) -> None:
    assert make_way([resident("a", state)]) == Evict()


def test_nobody_goes_for_it_who_is_busy_or_pinned() -> None:
    assert make_way([resident("a", is_busy=True), resident("b", is_pinned=True)]) == Evict()


states = st.sampled_from([State.LOADING, State.READY, State.SLEEPING, State.ASLEEP, State.WAKING, State.STOPPING])


@st.composite
def crowds(draw: st.DrawFn) -> list[ResidentFacts]:
    crowd = []
    for name in draw(st.lists(st.sampled_from("abcdef"), unique=True)):
        state = draw(states)
        can_sleep = state in {State.SLEEPING, State.ASLEEP, State.WAKING} or draw(st.booleans())
        crowd.append(
            resident(
                name,
                state,
                is_busy=draw(st.booleans()) if state is State.READY else state in {State.LOADING, State.WAKING},
                is_pinned=draw(st.integers(0, 3)) == 0,
                can_sleep=can_sleep,
                keep_alive=draw(st.sampled_from([0, 5, 9, FOREVER])),
                idle_since=float(draw(st.integers(0, 9))),
                awake_since=NOW - draw(st.integers(0, 20)),
                host_bytes=draw(st.integers(1, 50)),
            )
        )
    return crowd


limits = st.builds(
    Limits,
    awake=st.integers(1, 4),
    sleep_budget=st.sampled_from([0, 60]),
    min_residency=st.just(10.0),
    yield_after=st.just(10.0),
)


@given(crowds(), limits, st.integers(1, 12), st.sampled_from([0.0, 20.0]))
def test_whatever_the_facts_a_plan_touches_nobody_that_it_must_not_and_leads_to_an_end(
    crowd: list[ResidentFacts], limits: Limits, wanted: int, waited: float
) -> None:
    room = Device(12, wanted, awake=dict.fromkeys("abcdef", 4), asleep=1)
    found = make_room(crowd, limits, room, now=NOW, waited=waited)
    assert found == make_room(crowd[::-1], limits, room, now=NOW, waited=waited) or isinstance(found, Evict)
    known = {other.number: other for other in crowd}
    if isinstance(found, Go):
        assert found.placement == "placed"
        assert sum(other.holds is Holding.AWAKE for other in crowd) < limits.awake
    elif isinstance(found, Evict):
        assert found.sleep or found.stop
        for number in found.sleep:
            assert known[number].is_idle
            assert known[number].can_sleep
        for number in found.stop:
            other = known[number]
            waits_to_wake = other.state is State.WAKING and other.holds is Holding.ASLEEP
            assert other.is_idle or other.state is State.ASLEEP or waits_to_wake
        assert not any(known[number].is_pinned for number in (*found.sleep, *found.stop))
        asleep = sum(known[number].host_bytes for number in found.sleep)
        asleep += sum(
            other.host_bytes for other in crowd if other.number not in found.stop and other.will_hold is Holding.ASLEEP
        )
        assert not found.sleep or asleep <= limits.sleep_budget
    elif isinstance(found, Wait):
        assert found.seconds is None or found.seconds > 0
        assert all(known[number].is_busy and not known[number].is_pinned for number in found.yielding)
        will_change = any(
            other.is_busy or other.state in {State.STOPPING, State.SLEEPING, State.LOADING} for other in crowd
        )
        assert will_change or found.seconds is not None
