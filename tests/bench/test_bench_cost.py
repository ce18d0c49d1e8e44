from __future__ import annotations

from dataclasses import replace

import pytest
from bench_results import bench

from vllama.bench.cost import costs_of
from vllama.bench.result import ExperimentResult, Slo


def result_with(speeds: dict[int, float], *, gpu: bool = True) -> ExperimentResult:
    """One system with these output tokens per second by concurrency."""
    result = bench(["vllama"], list(speeds), repetitions=1, gpu=gpu)
    summaries = tuple(
        replace(s, metrics=replace(s.metrics, output_tokens_per_second=speeds[s.concurrency or 0]))
        for s in result.summaries
    )
    return replace(result, summaries=summaries)


def test_a_million_tokens_cost_the_hour_by_the_tokens_in_it() -> None:
    [cost] = costs_of(result_with({1: 100.0, 8: 500.0}), per_hour=3.6)
    assert cost.concurrency == 8
    assert cost.per_million == pytest.approx(2.0)
    assert cost.gpus_needed is None
    assert "3.60 per GPU and hour × 1 / (500 tokens/s × 3600 s) × 1,000,000 = 2.0000" in cost.arithmetic[1]


def test_users_are_divided_by_those_served_together_and_rounded_up() -> None:
    [cost] = costs_of(result_with({1: 100.0, 8: 500.0}), per_hour=3.0, users=100)
    assert cost.gpus_needed == 13
    assert "100 concurrent users / 8 served together = 12.50, rounded up 13, × 1 GPU = 13; 39.00" in cost.arithmetic[2]


def test_several_gpus_are_paid_for() -> None:
    result = result_with({8: 500.0})
    [run] = result.runs
    assert run.telemetry
    series = {**run.telemetry.series, "gpu1_power_w": run.telemetry.series["gpu0_power_w"]}
    runs = (replace(run, telemetry=replace(run.telemetry, series=series)),)
    [cost] = costs_of(replace(result, runs=runs), per_hour=3.6, users=8)
    assert (cost.gpus, cost.gpus_needed) == (2, 2)
    assert cost.per_million == pytest.approx(4.0)


def test_without_a_gpu_it_is_the_machine_that_is_paid_for() -> None:
    [cost] = costs_of(result_with({8: 500.0}, gpu=False), per_hour=1.0)
    assert cost.gpus == 1
    assert "1 machine" in cost.arithmetic[0]


def test_with_limits_only_levels_that_keep_them_count() -> None:
    result = replace(result_with({1: 100.0, 8: 500.0}), slo=Slo(ttft_ms=100))
    shares = {1: 1.0, 8: 0.98}
    summaries = tuple(
        replace(s, metrics=replace(s.metrics, good_share=shares[s.concurrency or 0])) for s in result.summaries
    )
    [cost] = costs_of(replace(result, summaries=summaries), per_hour=3.6)
    assert cost.concurrency == 1
    none = tuple(replace(s, metrics=replace(s.metrics, good_share=0.5)) for s in result.summaries)
    assert costs_of(replace(result, summaries=none), per_hour=3.6) == []


def test_without_limits_it_says_that_none_was_kept() -> None:
    [cost] = costs_of(result_with({8: 500.0}), per_hour=1.0)
    assert "--slo-ttft" in cost.arithmetic[-1]
