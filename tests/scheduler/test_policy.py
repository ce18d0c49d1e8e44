from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.durations import FOREVER
from vllama.scheduler.policy import ResidentFacts, choose_victim


@pytest.mark.parametrize(
    ("residents", "victim"),
    [
        ([], None),
        ([("a", True, 5)], "a"),
        ([("a", False, 5)], None),
        ([("a", False, 1), ("b", True, 5)], "b"),
        ([("a", True, 9), ("b", True, 5)], "b"),
        ([("b", True, 5), ("a", True, 5)], "a"),
        ([("a", True, FOREVER), ("b", True, 5)], "b"),
        ([("a", True, FOREVER), ("b", False, 5)], "a"),
        ([("a", True, 0), ("b", True, FOREVER)], "a"),
    ],
)
def test_the_victim_is_idle_and_has_the_shortest_keep_alive_then_the_first_name(
    residents: list[tuple[str, bool, int]], victim: str | None
) -> None:
    assert choose_victim(ResidentFacts(name, name, idle, keep_alive) for name, idle, keep_alive in residents) == victim


facts = st.builds(
    ResidentFacts,
    engine=st.text(max_size=3),
    name=st.text(max_size=3),
    idle=st.booleans(),
    keep_alive=st.just(FOREVER) | st.integers(0, 9),
)


@given(st.lists(facts, unique_by=lambda resident: resident.engine))
def test_the_order_of_the_residents_does_not_matter_and_nobody_at_work_is_chosen(
    residents: list[ResidentFacts],
) -> None:
    victim = choose_victim(residents)
    assert victim == choose_victim(reversed(residents))
    assert (victim is None) == (not any(resident.idle for resident in residents))
    assert all(resident.idle for resident in residents if resident.engine == victim)
