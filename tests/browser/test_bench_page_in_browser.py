"""The HTML report in a headless browser: whole, quiet and alone."""

from __future__ import annotations

from typing import Any

import pytest
from bench_results import bench

from browser.conftest import OpenPage
from vllama.bench.cost import costs_of
from vllama.bench.report.page import page

pytestmark = pytest.mark.browser

SCHEMES = ("light", "dark")
PLOTS = [
    *("throughput", "ttft", "tpot", "e2e", "ttft-distribution", "tpot-distribution", "e2e-distribution"),
    *("ratio", "machine"),
]


@pytest.fixture(scope="module")
def said(open_page: OpenPage, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("matplotlib")
    file = tmp_path_factory.mktemp("page") / "report.html"
    result = bench()
    file.write_text(page(result, costs_of(result, 3.0, 500)))
    schemes: dict[str, Any] = open_page(file)["schemes"]
    return schemes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_console_stays_empty(said: dict[str, Any], scheme: str) -> None:
    assert said[scheme]["console"] == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_is_loaded_but_the_file_itself(said: dict[str, Any], scheme: str) -> None:
    [request] = said[scheme]["requests"]
    assert request.startswith("file://")
    assert request.endswith("/report.html")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_plot_is_drawn_and_labelled(said: dict[str, Any], scheme: str) -> None:
    plots = said[scheme]["plots"]
    assert [plot["name"] for plot in plots] == PLOTS
    for plot in plots:
        assert plot["width"] > 600
        assert plot["height"] > 200
        assert plot["lines"] >= 5
        if plot["name"] != "ratio":
            assert {"vllama", "ollama"} <= {text.split()[0] for text in plot["texts"]}
    assert {"1", "2", "4", "8", "16", "32"} <= set(plots[0]["texts"])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_text_is_on_the_page_and_large_enough_at_800_pixels(said: dict[str, Any], scheme: str) -> None:
    assert said[scheme]["width"] == 800
    for plot in said[scheme]["plots"]:
        assert plot["unseen"] == []
        assert plot["smallest"] >= 10


def test_the_colours_are_those_of_the_scheme(said: dict[str, Any]) -> None:
    light, dark = said["light"], said["dark"]
    assert light["background"] != dark["background"]
    assert light["ink"] != dark["ink"]
    for plot, other in zip(light["plots"], dark["plots"], strict=True):
        drawn = set(plot["colors"]) - {"none"}
        assert len(drawn) >= 3  # two systems and the grid
        assert drawn.isdisjoint(other["colors"])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pointing_at_a_mark_tells_its_value(said: dict[str, Any], scheme: str) -> None:
    tips = said[scheme]["tips"]
    assert len(tips) == len(PLOTS)
    assert all(any(c.isdigit() for c in tip) for tip in tips)


def test_identifiers_are_unique(said: dict[str, Any]) -> None:
    identifiers = said["light"]["identifiers"]
    assert len(identifiers) == len(set(identifiers))
