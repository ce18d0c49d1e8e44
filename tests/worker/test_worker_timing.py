"""The six figures of a final record (contract §1.2)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllama.worker import timing
from vllama.worker.timing import Stopwatch

MS = 1_000_000


@dataclass
class EngineMetrics:
    """What vLLM says of a request, in monotonic seconds."""

    queued_ts: float
    scheduled_ts: float
    first_token_ts: float
    last_token_ts: float


@dataclass
class StillClock:
    """The monotonic clock, moved by hand."""

    ns: int = 0

    def monotonic_ns(self) -> int:
        return self.ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StillClock:
    clock = StillClock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_the_figures_are_the_engines_own(clock: StillClock) -> None:
    clock.ns = 2_000 * MS
    watch = Stopwatch(received=1_000 * MS)
    figures = watch.timings(EngineMetrics(1.100, 1.150, 1.350, 1.950), prompt_tokens=15, eval_tokens=8)
    assert figures.total_duration == 1_000 * MS
    assert figures.load_duration == pytest.approx(100 * MS, abs=10)
    assert figures.prompt_eval_duration == pytest.approx(200 * MS, abs=10)
    assert figures.eval_duration == pytest.approx(600 * MS, abs=10)
    assert (figures.prompt_eval_count, figures.eval_count) == (15, 8)


def test_what_the_engine_read_from_its_cache_is_told_and_unknown_stays_unknown(clock: StillClock) -> None:
    del clock
    watch = Stopwatch(received=0)
    told = [watch.timings(None, 20, 8, cached).prompt_eval_cached_count for cached in (16, 0, None)]
    assert told == [16, 0, None]


@pytest.mark.parametrize("metrics", [None, EngineMetrics(0.0, 0.0, 0.0, 0.0)], ids=["no metrics", "all zero"])
def test_an_engine_without_timestamps_leaves_the_front_ends(clock: StillClock, metrics: EngineMetrics | None) -> None:
    watch = Stopwatch(received=1_000 * MS)
    clock.ns = 1_100 * MS
    watch.submit()
    clock.ns = 1_300 * MS
    watch.output()
    clock.ns = 1_400 * MS
    watch.output()  # only the first counts
    clock.ns = 1_900 * MS
    figures = watch.timings(metrics, 3, 4)
    assert (figures.total_duration, figures.load_duration) == (900 * MS, 100 * MS)
    assert (figures.prompt_eval_duration, figures.eval_duration) == (200 * MS, 600 * MS)


def test_a_reply_that_came_whole_without_timestamps_counts_as_prompt(clock: StillClock) -> None:
    watch = Stopwatch(received=1_000 * MS)
    clock.ns = 1_100 * MS
    watch.submit()
    clock.ns = 1_500 * MS
    figures = watch.timings(None, 3, 4)
    assert (figures.prompt_eval_duration, figures.eval_duration) == (400 * MS, 0)


_WAITS = st.integers(0, 3_600_000).map(lambda us: us * 1_000)


@given(received=st.integers(10**9, 10**15), waits=st.tuples(_WAITS, _WAITS, _WAITS, _WAITS, _WAITS))
def test_the_parts_and_the_queueing_add_up_to_the_whole(received: int, waits: tuple[int, int, int, int, int]) -> None:
    load, queueing, prompt, generation, ending = waits
    queued = received + load
    scheduled = queued + queueing
    first = scheduled + prompt
    last = first + generation
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "time", StillClock(last + ending))
        metrics = EngineMetrics(queued / 1e9, scheduled / 1e9, first / 1e9, last / 1e9)
        figures = Stopwatch(received).timings(metrics, 1, 1)
    rounding = 1_000  # the engine's timestamps are floats of seconds
    assert figures.total_duration == sum(waits)
    assert figures.load_duration == pytest.approx(load, abs=rounding)
    assert figures.prompt_eval_duration == pytest.approx(prompt, abs=rounding)
    assert figures.eval_duration == pytest.approx(generation, abs=rounding)
    parts = figures.load_duration + figures.prompt_eval_duration + figures.eval_duration
    assert parts + queueing + ending == pytest.approx(figures.total_duration, abs=3 * rounding)


def test_a_clock_that_disagrees_gives_zero_rather_than_less(clock: StillClock) -> None:
    clock.ns = 2_000 * MS
    figures = Stopwatch(received=1_500 * MS).timings(EngineMetrics(1.0, 1.4, 1.2, 1.1), 1, 1)
    assert (figures.load_duration, figures.prompt_eval_duration, figures.eval_duration) == (0, 0, 0)
