"""What is said of servers that are known to serialise, to batch, to batch up to a number, and of a slow client."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scripted_model import Script
from test_bench_generator import load, measured
from test_bench_metrics import run

from vllama.bench.diagnosis import diagnose
from vllama.bench.metrics import distribution, summarize
from vllama.bench.result import Slo, Summary


def sweep(levels: list[int], **script: object) -> tuple[Summary, ...]:
    runs = []
    for clients in levels:
        report = measured(Script(**script), load(clients=clients, iterations=4 * clients))  # type: ignore[arg-type]
        runs.append(run("server", clients, *report.samples))
    return summarize(runs, Slo())


def kinds(summaries: tuple[Summary, ...]) -> list[tuple[str, int | None]]:
    return [(found.kind, found.at) for found in diagnose(summaries)]


@pytest.mark.parametrize("levels", [[1, 2, 4, 8], [1, 8], [2, 16]])
def test_a_server_that_serialises_is_called_so(levels: list[int]) -> None:
    assert kinds(sweep(levels, at_once=1)) == [("serialises", levels[-1])]


@pytest.mark.parametrize("levels", [[1, 2, 4, 8], [1, 8], [2, 16]])
def test_a_server_that_batches_is_called_so(levels: list[int]) -> None:
    assert kinds(sweep(levels)) == [("batches", levels[-1])]


def test_a_server_that_batches_four_at_once_is_saturated_there() -> None:
    assert kinds(sweep([1, 2, 4, 8, 16], at_once=4)) == [("batches", 16), ("saturated", 4)]


def test_the_words_have_the_figures() -> None:
    (found,) = diagnose(sweep([1, 4], at_once=1), utilization={"server": 0.2})

    assert found.sentence == (
        "serialises: from C = 1 to C = 4 throughput grows 1.00 × and latency 4.00 ×, with the GPU 20% in use; "
        "requests wait for each other"
    )


def test_one_level_says_nothing_of_scaling() -> None:
    assert diagnose(sweep([4])) == ()


def test_levels_at_which_nothing_was_answered_are_left_out() -> None:
    fine, failed = sweep([1, 4])
    nothing = replace(failed, metrics=replace(failed.metrics, ok=0))

    assert diagnose((fine, nothing)) == ()


def test_a_load_generator_that_uses_its_core_up_is_said_first() -> None:
    summaries = tuple(replace(one, client_cpu=0.97 if one.concurrency == 8 else 0.2) for one in sweep([1, 8]))
    found = diagnose(summaries)

    assert [one.kind for one in found] == ["client-bound", "batches"]
    assert "97% of a core" in found[0].sentence


def test_an_open_loop_that_sends_too_late_is_client_bound() -> None:
    (one,) = sweep([1])
    late = replace(one, concurrency=None, rate=5.0, metrics=replace(one.metrics, lag_ms=distribution([80.0] * 10)))
    on_time = replace(late, metrics=replace(one.metrics, lag_ms=distribution([0.5] * 10)))

    assert [found.kind for found in diagnose((late,))] == ["client-bound"]
    assert diagnose((on_time,)) == ()


def test_servers_are_told_apart() -> None:
    batching = tuple(replace(one, system="fast") for one in sweep([1, 8]))
    found = diagnose((*sweep([1, 8], at_once=1), *batching))

    assert [(one.system, one.kind) for one in found] == [("server", "serialises"), ("fast", "batches")]
