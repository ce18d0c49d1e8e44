"""The fair queue: shares, bounds and order."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.keys.fair_queue import FairQueue

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([1, 2, 4]), min_size=2)
SLOTS = st.integers(1, 8)


class Engine:
    """Runs as many requests as it has slots, and lets a random one end at a time."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.queue: FairQueue[object] = FairQueue()
        self.running: list[str] = []
        self.begun: list[str] = []

    def add(self, key: str, weight: int) -> None:
        self.queue.add(key, weight, object())
        self.fill()

    def fill(self) -> None:
        while len(self.running) < self.slots and len(self.queue):
            key, _ = self.queue.take()
            self.running.append(key)
            self.begun.append(key)

    def end(self, number: int) -> None:
        key = self.running.pop(number % len(self.running))
        self.queue.done(key)
        self.fill()


@given(WEIGHTS, SLOTS, st.lists(st.integers(0, 7), min_size=40, max_size=120))
def test_keys_that_always_wait_get_shares_by_weight(weights: dict[str, int], slots: int, ends: list[int]) -> None:
    engine = Engine(slots)
    for _ in range(len(ends) + slots + 1):
        for key, weight in weights.items():
            engine.queue.add(key, weight, object())
    engine.fill()
    for number in ends:
        engine.end(number)
    served = Counter(engine.begun)
    for one, its_weight in weights.items():
        for other, weight in weights.items():
            # The bound of start-time fair queueing for costs of 1.
            apart = abs(served[one] / its_weight - served[other] / weight)
            assert apart <= 1 / its_weight + 1 / weight + 1e-9


EVENTS = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["add", "add", "end"])), max_size=200)


@given(WEIGHTS, SLOTS, st.sampled_from([1, 2, 4]), EVENTS)
def test_before_a_key_that_comes_each_other_key_gets_one_request_at_most(
    weights: dict[str, int], slots: int, weight: int, events: list[tuple[str, str]]
) -> None:
    engine = Engine(slots)
    for number, (key, event) in enumerate(events):
        if event == "end" and engine.running:
            engine.end(number)
        elif key in weights:
            engine.add(key, weights[key])
    engine.begun.clear()
    engine.add("new", weight)
    while "new" not in engine.begun:
        engine.end(0)
    assert max(Counter(engine.begun).values()) == 1


@given(SLOTS, st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(0, 50), st.integers(1, 50))
def test_a_key_that_comes_is_next_however_much_one_other_has_queued(
    slots: int, flood_weight: int, weight: int, ended: int, queued: int
) -> None:
    engine = Engine(slots)
    for _ in range(slots + ended + queued):
        engine.add("flood", flood_weight)
    for number in range(ended):
        engine.end(number)
    engine.add("new", weight)
    engine.end(0)
    assert engine.begun[-1] == "new"


@given(SLOTS, st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "end", "leave"])), max_size=200))
def test_no_slot_is_free_while_a_request_waits_and_a_keys_requests_keep_their_order(
    slots: int, events: list[tuple[str, str]]
) -> None:
    queue: FairQueue[int] = FairQueue()
    waiting: dict[str, list[int]] = {key: [] for key in "abc"}
    running: list[str] = []
    for number, (key, event) in enumerate(events):
        if event == "add":
            queue.add(key, 1, number)
            waiting[key].append(number)
        elif event == "leave" and waiting[key]:
            queue.remove(key, waiting[key].pop())
        elif event == "end" and key in running:
            running.remove(key)
            queue.done(key)
        while len(queue) and len(running) < slots:
            taken, item = queue.take()
            assert item == waiting[taken].pop(0)
            running.append(taken)
        assert len(queue) == sum(map(len, waiting.values()))
        assert not (len(queue) and len(running) < slots)
    for key in "abc":
        while waiting[key]:
            queue.remove(key, waiting[key].pop())
    for key in running:
        queue.done(key)
    assert queue._flows == {}


def test_costs_count_against_the_key_that_has_them() -> None:
    queue: FairQueue[object] = FairQueue()
    for _ in range(40):
        queue.add("long", 1, object())
        queue.add("short", 1, object())
    costs = {"long": 4.0, "short": 1.0}
    served = Counter(queue.take(costs.__getitem__)[0] for _ in range(40))
    assert served["short"] == pytest.approx(4 * served["long"], abs=4)


def test_an_empty_queue_has_no_next() -> None:
    with pytest.raises(ValueError, match="empty"):
        FairQueue().take()
