"""The interval of a ratio holds the true one as often as it says. Samples are simulated and seeded."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from sampling import count
from test_bench_metrics import run, sample

from vllama.bench.intervals import STATISTICS, Ratio, ratio
from vllama.bench.metrics import metrics, window_of
from vllama.bench.result import Run

BY_NAME = {statistic.name: statistic for statistic in STATISTICS}
CLIENTS = 4


def simulated(dice: random.Random, factor: float, repetitions: int, requests: int, between: float = 0.03) -> list[Run]:
    """Runs of a closed loop whose requests take some 100 ms × factor; each whole run is a little faster or slower."""
    runs = []
    for repetition in range(repetitions):
        pace = factor * dice.lognormvariate(0, between)
        clocks = [0.0] * CLIENTS
        samples = []
        for number in range(requests):
            client = number % CLIENTS
            took = 100 * pace * dice.lognormvariate(0, 0.25)
            begin = clocks[client]
            clocks[client] += took
            samples.append(sample(begin, begin + took, begin + took * 0.2))
        one = run("a", CLIENTS, *samples)
        runs.append(replace(one, repetition=repetition))
    return runs


@pytest.mark.parametrize("name", ["output_tokens_per_second", "e2e_ms"])
@pytest.mark.parametrize(("repetitions", "requests"), [(3, 40), (5, 24)])
def test_the_interval_holds_the_true_ratio_in_ninety_of_a_hundred_seeded_experiments(
    name: str, repetitions: int, requests: int
) -> None:
    statistic, true = BY_NAME[name], 1 / 0.8 if name == "output_tokens_per_second" else 0.8
    covered = 0
    for seed in range(count(25, 100)):
        dice = random.Random(seed)
        a, b = (simulated(dice, factor, repetitions, requests) for factor in (0.8, 1.0))
        interval = ratio(statistic, a, b, seed)
        assert interval
        covered += interval.low <= true <= interval.high

    assert covered >= count(21, 90)


def test_a_clear_difference_is_found_and_none_is_not() -> None:
    dice = random.Random(1)
    fast, slow, same = (simulated(dice, factor, 3, 60, between=0.01) for factor in (0.5, 1.0, 1.0))
    clear, none = (ratio(BY_NAME["e2e_ms"], runs, slow) for runs in (fast, same))
    assert clear
    assert none

    assert clear.high < 0.6
    assert not clear.holds_one
    assert none.holds_one


def test_the_value_is_the_ratio_of_the_figures_themselves() -> None:
    dice = random.Random(2)
    (a,), (b,) = simulated(dice, 0.7, 1, 50), simulated(dice, 1.0, 1, 50)
    throughput, latency = (ratio(BY_NAME[name], [a], [b]) for name in ("output_tokens_per_second", "e2e_ms"))
    assert throughput
    assert latency
    assert a.metrics.e2e_ms
    assert b.metrics.e2e_ms

    assert throughput.value == pytest.approx(a.metrics.output_tokens_per_second / b.metrics.output_tokens_per_second)
    assert latency.value == pytest.approx(a.metrics.e2e_ms.p50 / b.metrics.e2e_ms.p50)


def test_the_same_seed_gives_the_same_interval() -> None:
    runs = simulated(random.Random(3), 1.0, 3, 20)
    other = simulated(random.Random(4), 1.0, 3, 20)

    assert ratio(BY_NAME["e2e_ms"], runs, other, 5) == ratio(BY_NAME["e2e_ms"], runs, other, 5)


def test_fewer_runs_are_less_sure() -> None:
    def width(repetitions: int) -> float:
        a, b = (simulated(random.Random(seed), 1.0, repetitions, 40) for seed in (1, 2))
        interval = ratio(BY_NAME["e2e_ms"], a, b)
        assert interval
        return interval.high / interval.low

    assert width(2) > width(4) > width(16)


def test_failed_requests_make_throughput_worse() -> None:
    dice = random.Random(6)
    (whole,) = simulated(dice, 1.0, 1, 40)
    samples = [replace(one, outcome="error") if i % 2 else one for i, one in enumerate(whole.samples)]
    window = window_of(samples)
    halved = replace(whole, samples=tuple(samples), metrics=metrics(samples, (window[1] - window[0]) / 1e9))
    interval = ratio(BY_NAME["output_tokens_per_second"], [halved], [whole])
    assert interval

    assert interval.value == pytest.approx(0.5)


def test_a_figure_that_one_side_lacks_has_no_ratio() -> None:
    runs = simulated(random.Random(7), 1.0, 1, 5)
    without = [replace(one, samples=tuple(replace(s, first=None) for s in one.samples)) for one in runs]

    assert ratio(BY_NAME["ttft_ms"], without, runs) is None
    assert ratio(BY_NAME["e2e_ms"], [], runs) is None


def test_an_interval_that_ends_at_one_still_holds_it() -> None:
    assert Ratio(1.1, 1.0, 1.2).holds_one
    assert not Ratio(1.1, 1.01, 1.2).holds_one
