"""Whether a newcomer finds a place if the others hold so much, and the policy's plans with that."""

from __future__ import annotations

from dataclasses import replace

from vllama.durations import Nanoseconds
from vllama.scheduler.devices import Machine
from vllama.scheduler.memory import GIB, Claim, Device, Learned, Need, Placement
from vllama.scheduler.placing import changed, place
from vllama.scheduler.policy import Evict, Go, Holding, Limits, NoPlace, Refuse, ResidentFacts, State, make_room
from vllama.scheduler.room import Occupant, PlannedRoom
from vllama.store.kv_shape import KvShape

EMPTY = Device(0, "NVIDIA H100", 80 * GIB, 79 * GIB, id="0")
LEARNED = {"NVIDIA H100": Learned(2 * GIB, GIB)}
LARGE = Need("large", 60 * GIB, KvShape(65536, kv_heads=8), 8192, learned=LEARNED)
SMALL = Need("small", 3 * GIB, KvShape(8192, kv_heads=8), 8192, learned=LEARNED)
LIMITS = Limits(awake=3, sleep_budget=200 * GIB)


def placed(need: Need, *devices: Device) -> Placement:
    found = place(need, devices or (EMPTY,))
    assert isinstance(found, Placement)
    return found


def machine(*held: tuple[Claim, ...]) -> Machine:
    """The GPU while workers hold these claims."""
    return Machine(changed([EMPTY], (), [claim for claims in held for claim in claims]))


def facts(number: int, state: State) -> ResidentFacts:
    holds = Holding.ASLEEP if state is State.ASLEEP else Holding.AWAKE
    return ResidentFacts(
        number, f"model{number}", state, holds, can_sleep=True, keep_alive=Nanoseconds(1), host_bytes=60 * GIB
    )


def test_a_newcomer_finds_its_place_on_an_empty_machine() -> None:
    found = PlannedRoom(machine(), (), LARGE)({})
    assert isinstance(found, Placement)


def test_beside_one_that_fills_the_gpu_there_is_a_place_if_that_slept() -> None:
    large = placed(LARGE)
    room = PlannedRoom(machine(large.claims(is_loaded=True)), [Occupant(1, Holding.AWAKE, large)], LARGE)
    assert isinstance(room({1: Holding.AWAKE}), NoPlace)
    assert isinstance(room({1: Holding.ASLEEP}), Placement)
    assert isinstance(room({}), Placement)


def test_the_policy_sends_it_to_sleep_and_then_lets_the_newcomer_in() -> None:
    large = placed(LARGE)
    awake = PlannedRoom(machine(large.claims(is_loaded=True)), [Occupant(1, Holding.AWAKE, large)], LARGE)
    assert make_room([facts(1, State.READY)], LIMITS, awake, now=100, waited=0) == Evict(sleep=(1,))
    asleep = PlannedRoom(machine(large.claims_asleep()), [Occupant(1, Holding.ASLEEP, large)], LARGE)
    plan = make_room([facts(1, State.ASLEEP)], LIMITS, asleep, now=100, waited=0)
    assert isinstance(plan, Go)
    assert isinstance(plan.placement, Placement)


def test_small_models_are_left_awake_beside_a_newcomer() -> None:
    small = placed(SMALL)
    occupants = [Occupant(1, Holding.AWAKE, small)]
    room = PlannedRoom(machine(small.claims(is_loaded=True)), occupants, SMALL)
    assert isinstance(make_room([facts(1, State.READY)], LIMITS, room, now=100, waited=0), Go)


def test_a_sleeper_wakes_where_it_was_once_there_is_room_again() -> None:
    first = placed(LARGE)
    second = placed(LARGE, *machine(first.claims_asleep()).devices)
    now = machine(first.claims_asleep(), second.claims(is_loaded=True))
    room = PlannedRoom(now, [Occupant(2, Holding.AWAKE, second)], first)
    refusal = room({2: Holding.AWAKE})
    assert isinstance(refusal, NoPlace)
    assert refusal.reason.startswith("waking the model requires 7")
    assert room({2: Holding.ASLEEP}) is first


def test_what_a_load_under_way_was_promised_is_not_given_away() -> None:
    small = placed(SMALL)
    loading = Occupant(1, Holding.AWAKE, small, State.LOADING)
    beside = PlannedRoom(machine(), [loading], replace(SMALL, shares=False))({1: Holding.AWAKE})
    assert isinstance(beside, Placement)
    assert beside.claim + small.claim <= EMPTY.free


def test_what_a_wake_under_way_takes_is_not_given_away() -> None:
    large = placed(LARGE)
    waking = Occupant(1, Holding.AWAKE, large, State.WAKING)
    room = PlannedRoom(machine(large.claims_asleep()), [waking], SMALL)
    assert isinstance(room({1: Holding.ASLEEP}), Placement)
    beside = room({1: Holding.AWAKE})
    assert isinstance(beside, NoPlace) or beside.claim + large.claim <= EMPTY.free


def test_what_would_not_even_fit_alone_is_refused_with_the_numbers() -> None:
    huge = replace(LARGE, weights=200 * GIB)
    plan = make_room([], LIMITS, PlannedRoom(machine(), (), huge), now=0, waited=0)
    assert isinstance(plan, Refuse)
    assert plan.reason.startswith("model requires more GPU memory (202.")
