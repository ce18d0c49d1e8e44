"""Student's t, against published tables and by simulated coverage."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from bench_results import bench
from sampling import count

from vllama.bench.report import curves
from vllama.bench.students_t import normal_quantile, t_quantile

# NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2: two-sided 95 % and 99 %.
PUBLISHED_95 = {
    1: 12.706,
    2: 4.303,
    5: 2.571,
    9: 2.262,
    10: 2.228,
    16: 2.120,
    17: 2.110,
    30: 2.042,
    60: 2.000,
    100: 1.984,
}
PUBLISHED_99 = {1: 63.657, 10: 3.169, 30: 2.750, 100: 2.626}


@pytest.mark.parametrize(("degrees", "value"), PUBLISHED_95.items())
def test_quantiles_are_the_published_ones(degrees: int, value: float) -> None:
    assert t_quantile(degrees) == pytest.approx(value, abs=5.1e-4)


@pytest.mark.parametrize(("degrees", "value"), PUBLISHED_99.items())
def test_quantiles_of_other_confidences_are_the_published_ones(degrees: int, value: float) -> None:
    assert t_quantile(degrees, 0.99) == pytest.approx(value, abs=5.1e-4)


def test_many_degrees_of_freedom_approach_the_normal_distribution() -> None:
    assert normal_quantile() == pytest.approx(1.959964, abs=1e-6)
    assert t_quantile(100_000) == pytest.approx(normal_quantile(), rel=1e-4)
    assert t_quantile(20) > t_quantile(21) > normal_quantile()


def test_no_degree_of_freedom_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="at least 1 degree of freedom, not 0"):
        t_quantile(0)


@pytest.mark.parametrize("repetitions", [2, 3, 10, 11, 18])
def test_the_interval_of_a_mean_contains_the_true_one_in_95_of_100_benches(repetitions: int) -> None:
    [group] = curves.groups(bench(["vllama"], [1], repetitions=1))
    [run] = group.runs
    dice = random.Random(repetitions)
    experiments = count(2000, 20_000)
    held = 0
    for _ in range(experiments):
        rates = [dice.gauss(100.0, 5.0) for _ in range(repetitions)]
        runs = tuple(replace(run, metrics=replace(run.metrics, output_tokens_per_second=rate)) for rate in rates)
        [curve] = curves.throughput(replace(group, runs=runs))
        [point] = curve.points
        assert point.interval
        held += point.interval[0] <= 100.0 <= point.interval[1]

    # Three standard deviations of a share of 0.95 among so many experiments.
    assert held / experiments == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / experiments) ** 0.5)
