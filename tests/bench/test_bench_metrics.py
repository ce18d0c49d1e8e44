"""Every figure equals what the scripted server makes it, and the formulas are those of the page."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_model import Script
from test_bench_generator import load, measured

from vllama.bench.metrics import distribution, metrics, summarize, window_of
from vllama.bench.result import Metrics, Run, Sample, Slo

PAGE = Path(__file__).parents[2] / "docs" / "benchmarking.md"
MS = 1_000_000


def of(script: Script, slo: Slo | None = None, **options: object) -> Metrics:
    samples = measured(script, load(**options)).samples  # type: ignore[arg-type]
    start, end = window_of(samples)
    return metrics(samples, (end - start) / 1e9, slo)


def sample(start: float, end: float, first: float | None = None, **fields: object) -> Sample:
    """Times in ms."""
    at = int(start * MS)
    plain = Sample(at, at, None if first is None else int(first * MS), int(end * MS), "ok", tokens_in=10, tokens_out=5)
    return replace(plain, **fields)  # type: ignore[arg-type]


def test_every_figure_of_a_batching_server_is_its_scripts() -> None:
    # Four clients, three rounds of 50 + 4 × 10 ms, 5 tokens a reply and 11 in a prompt.
    figures = of(Script(first=0.05, per_token=0.01, tokens=5), clients=4, iterations=12)

    assert figures.ok == 12
    assert figures.seconds == pytest.approx(0.27, abs=1e-4)
    assert figures.requests_per_second == pytest.approx(12 / 0.27, rel=1e-3)
    assert figures.output_tokens_per_second == pytest.approx(60 / 0.27, rel=1e-3)
    assert figures.total_tokens_per_second == pytest.approx((60 + 132) / 0.27, rel=1e-3)
    assert figures.in_flight == pytest.approx(4, rel=1e-3)
    for name, value, n in (("ttft_ms", 50, 12), ("tpot_ms", 10, 12), ("itl_ms", 10, 48), ("e2e_ms", 90, 12)):
        spread = getattr(figures, name)
        assert spread.n == n, name
        assert [spread.min, spread.p50, spread.p99, spread.max] == pytest.approx([value] * 4, abs=0.01), name


def test_a_serialising_server_has_flat_throughput_and_latency_that_grows() -> None:
    alone, crowd = (of(Script(at_once=1), clients=clients, iterations=8) for clients in (1, 4))
    assert alone.e2e_ms
    assert crowd.e2e_ms

    assert crowd.output_tokens_per_second == pytest.approx(alone.output_tokens_per_second, rel=1e-3)
    assert crowd.e2e_ms.p50 == pytest.approx(4 * alone.e2e_ms.p50, rel=1e-3)


def test_failures_are_counted_apart_and_are_in_no_distribution() -> None:
    fates = ["refuse", "drop", "hang", "ok", "cut", "break"]
    figures = of(Script(fates=fates), iterations=8, timeout=3)

    assert (figures.ok, figures.errors, figures.dropped, figures.timeouts, figures.failed) == (3, 2, 2, 1, 5)
    assert figures.e2e_ms
    assert figures.e2e_ms.n == 3
    assert figures.e2e_ms.max == pytest.approx(90, abs=0.1)
    assert figures.requests_per_second == pytest.approx(3 / figures.seconds)


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    # TTFT 90 × (0, 1, 2, 3) + 50 ms, TPOT 10 ms.
    def goodput(**limits: float) -> tuple[float | None, float | None]:
        figures = of(Script(at_once=1), Slo(**limits), clients=4, iterations=4)
        return figures.goodput_per_second, figures.good_share

    assert goodput(ttft_ms=141)[0] == pytest.approx(2 / 0.36, rel=1e-3)
    assert goodput(ttft_ms=141)[1] == 0.5
    assert goodput(ttft_ms=1000, tpot_ms=9)[1] == 0
    assert goodput(e2e_ms=271, tpot_ms=11)[1] == 0.75
    assert goodput() == (None, None)


def test_a_failed_request_is_not_good_and_a_cancelled_one_was_not_asked() -> None:
    samples = [sample(0, 10), sample(0, 5, outcome="error"), sample(0, 5, outcome="cancelled")]

    assert metrics(samples, 1, Slo(e2e_ms=100)).good_share == 0.5


def test_a_reply_without_counts_has_no_tpot_and_adds_no_tokens() -> None:
    figures = metrics([sample(0, 10, 5, tokens_out=None, tokens_in=None), sample(0, 10, 5, tokens_out=1)], 1)

    assert (figures.tpot_ms, figures.output_tokens_per_second, figures.total_tokens_per_second) == (None, 1, 11)


def test_the_lag_is_how_much_later_than_due_a_request_was_sent() -> None:
    figures = metrics([sample(0, 10, sent=3 * MS), sample(0, 10, sent=5 * MS)], 1)

    assert figures.lag_ms
    assert (figures.lag_ms.min, figures.lag_ms.max) == (3, 5)


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=60))
def test_percentiles_interpolate_between_the_nearest_ranks(values: list[float]) -> None:
    spread = distribution(values)
    assert spread
    by_the_library = quantiles(values, n=100, method="inclusive")

    assert [spread.p50, spread.p90, spread.p95, spread.p99] == pytest.approx(
        [by_the_library[i - 1] for i in (50, 90, 95, 99)]
    )


def test_there_is_no_distribution_of_nothing() -> None:
    assert distribution([None, None]) is None
    assert metrics([], 0).requests_per_second == 0


def run(system: str, concurrency: int, *samples: Sample, repetition: int = 0, client_cpu: float = 0.0) -> Run:
    window = window_of(samples)
    figures = metrics(samples, (window[1] - window[0]) / 1e9)
    return Run(
        system, "streaming", repetition, window, samples, figures, concurrency=concurrency, client_cpu=client_cpu
    )


def test_repetitions_are_summed_up_over_their_windows() -> None:
    runs = [run("a", 1, sample(0, 10), client_cpu=0.1), run("a", 1, sample(1000, 1030), repetition=1, client_cpu=0.3)]
    (summary,) = summarize(runs, Slo())

    assert summary.metrics.seconds == pytest.approx(0.04)
    assert summary.metrics.requests_per_second == pytest.approx(50)
    assert summary.client_cpu == 0.3


def test_inflation_is_the_median_latency_over_that_of_one_client_of_the_same_system() -> None:
    runs = [run("a", 1, sample(0, 10)), run("b", 8, sample(0, 70)), run("a", 8, sample(0, 25))]

    assert [summary.metrics.inflation for summary in summarize(runs, Slo())] == [1, None, 2.5]


def test_the_share_of_valid_replies_is_of_all_that_were_asked() -> None:
    samples = [
        sample(0, 1, valid=True, fields={"city": True, "year": True}),
        sample(0, 1, valid=False, fields={"city": True, "year": False}),
        sample(0, 1, outcome="error"),
        sample(0, 1, outcome="cancelled"),
    ]
    figures = metrics(samples, 1)

    assert figures.parse_rate == pytest.approx(1 / 3)
    assert figures.field_rates == {"city": pytest.approx(2 / 3), "year": pytest.approx(1 / 3)}


@pytest.mark.parametrize("name", [field.name for field in fields(Metrics)])
def test_the_page_defines_every_figure(name: str) -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert f"`{name}`" in page or f"**{name}**" in page
