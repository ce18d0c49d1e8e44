from __future__ import annotations

import random
from dataclasses import replace

import pytest
from bench_results import bench

from vllama.bench.metrics import e2e_ms
from vllama.bench.report import curves
from vllama.bench.report.timeline import panels, stretches
from vllama.bench.result import Run


def test_throughput_is_the_mean_of_the_repetitions_with_students_interval() -> None:
    result = bench(["vllama"], [1], repetitions=3)
    values = (100.0, 110.0, 120.0)
    runs = tuple(
        replace(run, metrics=replace(run.metrics, output_tokens_per_second=value))
        for run, value in zip(result.runs, values, strict=True)
    )
    [group] = curves.groups(replace(result, runs=runs))
    [curve] = curves.throughput(group)
    [point] = curve.points
    assert (point.value, point.n) == (110.0, 3)
    assert point.interval == pytest.approx((110 - 4.3027 * 10 / 3**0.5, 110 + 4.3027 * 10 / 3**0.5), rel=1e-5)


def test_a_single_repetition_has_no_interval() -> None:
    [group] = curves.groups(bench(["vllama"], [1], repetitions=1))
    assert curves.throughput(group)[0].points[0].interval is None


def test_the_interval_of_a_median_holds_the_true_one_in_95_of_100_draws() -> None:
    chance = random.Random(7)
    held = 0
    for _ in range(1000):
        interval = curves.order_interval(sorted(chance.expovariate(1.0) for _ in range(100)), 0.5)
        assert interval is not None
        held += interval[0] <= 0.6931 <= interval[1]
    assert 930 <= held <= 980


def test_of_too_few_values_no_interval_is_claimed() -> None:
    assert curves.order_interval(range(10), 0.95) is None
    assert curves.order_interval(range(200), 0.95) is not None


def test_quantiles_are_linear_between_ranks() -> None:
    assert curves.quantile([10.0, 20.0, 30.0], 0.25) == 15.0
    assert curves.quantile([10.0], 0.99) == 10.0


def test_failed_requests_are_in_no_curve() -> None:
    result = bench(["vllama"], [32], repetitions=1)
    [group] = curves.groups(result)
    [curve] = curves.percentile(group, e2e_ms, 0.5)
    assert curve.points[0].n == result.runs[0].metrics.ok < len(result.runs[0].samples)


def test_modes_and_kinds_of_load_are_groups_of_their_own() -> None:
    result = bench(["vllama"], [1, 2], repetitions=1)

    def at_a_rate(run: Run) -> Run:
        return replace(run, concurrency=None, rate=5.0, arrivals="poisson")

    mixed = replace(result, runs=(*result.runs, at_a_rate(result.runs[0]), replace(result.runs[1], mode="concurrent")))
    assert [(group.title, group.loads) for group in curves.groups(mixed)] == [
        ("concurrent", [2.0]),
        ("streaming", [1.0, 2.0]),
        ("streaming, fixed rate", [5.0]),
    ]


def test_two_systems_are_distributed_at_the_highest_load_that_both_had_and_one_at_all_its_loads() -> None:
    result = bench(levels=[1, 2, 4], repetitions=1)
    without = replace(result, runs=tuple(run for run in result.runs if (run.system, run.concurrency) != ("ollama", 4)))
    [group] = curves.groups(without)
    assert {(d.system, d.load) for d in curves.distributions(group, e2e_ms)} == {("vllama", 2), ("ollama", 2)}
    [alone] = curves.groups(bench(["vllama"], [1, 2], repetitions=1))
    assert [d.load for d in curves.distributions(alone, e2e_ms)] == [1, 2]


def test_the_machine_is_shown_in_the_order_of_time_from_the_first_run_on() -> None:
    result = bench(levels=[1], repetitions=2)
    windows = stretches(replace(result, runs=result.runs[::-1]))
    assert [stretch.system for stretch in windows] == ["vllama", "ollama", "vllama", "ollama"]
    assert windows[0].begin == 0
    assert windows[0].load == "C=1"
    by_title = {panel.title: panel for panel in panels(result)}
    assert list(by_title) == [
        "GPU utilisation",
        "GPU power",
        "GPU memory",
        "Processors used by the server",
        "Memory of the server",
    ]
    assert by_title["GPU power"].idle == {"vllama": 118.0, "ollama": 118.0}
    assert len(by_title["GPU power"].lines) == 4


def test_power_of_several_gpus_is_added_up_and_utilisation_averaged() -> None:
    result = bench(["vllama"], [1], repetitions=1)
    [run] = result.runs
    assert run.telemetry
    series: dict[str, tuple[float | None, ...]] = {
        "gpu0_power_w": (100.0, 100.0),
        "gpu1_power_w": (300.0, None),
        "gpu0_utilization_percent": (10.0, 10.0),
        "gpu1_utilization_percent": (30.0, 30.0),
    }
    telemetry = replace(run.telemetry, times=run.telemetry.times[:2], series=series, idle={})
    load, power = panels(replace(result, runs=(replace(run, telemetry=telemetry),)))
    assert load.lines[0].mean == 20.0
    assert power.lines[0].values == (400.0,)  # a reading of one of the two is none of both


def test_without_telemetry_nothing_is_shown_of_the_machine() -> None:
    result = bench(["vllama"], [1], repetitions=1)
    bare = replace(result, runs=tuple(replace(run, telemetry=None) for run in result.runs))
    assert panels(bare) == []
    assert stretches(bare) == []


def test_a_long_bench_is_drawn_with_means_so_that_its_page_stays_small() -> None:
    result = bench(["vllama"], [1], repetitions=1)
    [run] = result.runs
    assert run.telemetry
    count = 20_000
    times = tuple(run.window[0] + i * 50_000_000 for i in range(count))
    telemetry = replace(run.telemetry, times=times, series={"server_cpu_cores": (1.0, 3.0) * (count // 2)}, idle={})
    long = replace(run, window=(times[0], times[-1]), telemetry=telemetry)
    [panel] = panels(replace(result, runs=(long,)))
    [line] = panel.lines
    assert 1400 <= len(line.times) <= 1502
    assert line.mean == 2.0
    assert all(abs(value - 2.0) <= 0.1 for value in line.values[:-1])


def test_a_distribution_of_many_values_is_drawn_by_its_quantiles() -> None:
    xs, ys = curves.cumulated([float(i) for i in range(100_001)])
    assert len(xs) == len(ys) == 502
    assert (xs[0], xs[251], xs[-1], ys[0], ys[-1]) == (0.0, 50_000.0, 100_000.0, 0.0, 100.0)
    assert curves.cumulated([1.0, 5.0]) == ([1.0, 1.0, 5.0], [0.0, 50.0, 100.0])
