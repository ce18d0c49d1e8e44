from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import pytest
from bench_results import bench

pytest.importorskip("matplotlib")

from PIL import Image

from vllama.bench.report.page import page
from vllama.bench.report.plots import plots_of
from vllama.bench.result import ExperimentResult, System

NAMES = [
    *("throughput", "ttft", "tpot", "e2e", "ttft-distribution", "tpot-distribution", "e2e-distribution"),
    *("ratio", "machine"),
]
ODD = '</svg><script>alert("$x$")</script>'


@pytest.fixture(scope="module")
def sweep() -> ExperimentResult:
    return bench(levels=[1, 4], repetitions=2)


@pytest.fixture(scope="module")
def html(sweep: ExperimentResult) -> str:
    return page(sweep)


class _Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "action"}]


def test_all_plots_are_in_the_page(html: str) -> None:
    assert re.findall(r'<figure id="([^"]+)"', html) == NAMES
    assert html.count("<svg ") == len(NAMES)


def test_the_page_refers_to_nothing_but_itself(html: str) -> None:
    collector = _Collector()
    collector.feed(html)
    assert all(reference.startswith("#") for reference in collector.references)
    assert {"link", "img", "iframe", "object"}.isdisjoint(collector.tags)
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_no_colour_of_a_plot_is_left_that_the_page_does_not_choose(html: str) -> None:
    drawings = "".join(re.findall(r"<svg .*?</svg>", html, re.DOTALL))
    assert "var(--series-0)" in drawings
    assert "var(--ink)" in page(bench(levels=[5], repetitions=1))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawings)) == set()


def test_names_from_a_result_are_text_and_neither_markup_nor_formulas() -> None:
    result = bench(["vllama"], [1, 2], repetitions=1)
    odd = replace(
        result,
        systems=(System(ODD, "http://h", "ollama", "m"),),
        runs=tuple(replace(run, system=ODD) for run in result.runs),
        summaries=tuple(replace(summary, system=ODD) for summary in result.summaries),
        warnings=(ODD,),
    )
    html = page(odd)
    assert ODD not in html
    assert html.count("<script>") == 1
    assert '&lt;script&gt;alert("$x$")' in html


def test_the_same_result_gives_the_same_page(sweep: ExperimentResult, html: str) -> None:
    assert page(sweep) == html


def test_pngs_are_large_enough_for_paper_and_white(sweep: ExperimentResult) -> None:
    for plot in plots_of(sweep):
        with Image.open(BytesIO(plot.png())) as picture:
            assert picture.width == 1140
            assert picture.height > 300
            assert picture.convert("RGB").getpixel((2, picture.height - 2)) == (255, 255, 255)


@pytest.mark.parametrize("level", [1, 5])
def test_a_single_level_is_drawn_as_rows_with_its_values(level: int) -> None:
    result = bench(levels=[level], repetitions=2)
    html = page(result)
    assert f"Throughput, output tokens per second at C = {level}" in html
    assert re.search(r"p50 [\d.]+ ms, p95 [\d.]+ ms", html)


def test_open_loops_are_drawn_over_the_rate() -> None:
    result = bench(["vllama"], [1, 2], repetitions=1)
    runs = tuple(replace(run, concurrency=None, rate=float(run.concurrency or 0)) for run in result.runs)
    assert "requests per second offered" in page(replace(result, runs=runs))


def test_a_result_with_nothing_to_plot_is_still_a_page() -> None:
    result = replace(bench(["vllama"], [1], repetitions=1), runs=(), summaries=(), interrupted=True)
    html = page(result)
    assert "<svg" not in html
    assert "Interrupted" in html


def test_cold_starts_are_drawn_one_by_one() -> None:
    result = bench(["vllama"], [1], repetitions=1)
    runs = tuple(replace(run, mode="coldstart", model=name) for run in result.runs for name in ("a", "b"))
    html = page(replace(result, runs=runs))
    assert re.findall(r'<figure id="([^"]+)"', html) == ["coldstart", "machine"]
    assert html.count('data-tip="vllama a: ') == len(result.runs[0].samples)
