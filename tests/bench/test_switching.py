"""Switches between two models, measured against a scripted server."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner
from scripted_nvml import FakeGpu, FakeNvml

from vllama.bench.metrics import ttft_ms
from vllama.bench.result import Sample
from vllama.bench.switching import (
    Switch,
    SwitchingClient,
    SwitchingResult,
    as_table,
    main,
    measure,
    memory_reader,
    summary,
)
from vllama.machine.host import host_memory


class Clock:
    """Time that passes when the server says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> int:
        return round(self.now * 1e9)


class FakeServer:
    """Two models that take turns: a load takes 30 s, a wake 0.5 s. `answers` may change what one of them says."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.awake = ""
        self.loaded: set[str] = set()
        self.answers: dict[str, list[str]] = {}
        self.asked: list[dict[str, Any]] = []
        self.lingering = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content or b"{}")
        if request.url.path == "/api/ps":
            self.lingering -= 1
            listed = self.loaded if self.lingering < 0 else {*self.loaded, "a"}
            return httpx.Response(200, json={"models": [{"name": f"{name}:latest"} for name in listed]})
        model = body["model"]
        if request.url.path == "/api/generate":
            assert body["keep_alive"] == 0
            self.loaded.discard(model)
            self.awake = ""
            return httpx.Response(200, json={"done": True})
        self.asked.append(body)
        waited = 0.0 if model == self.awake else 0.5 if model in self.loaded else 30.0
        self.awake = model
        self.loaded.add(model)
        self.clock.now += waited + 0.25
        text = self.answers.get(model, ["Paris"])[0]
        if len(self.answers.get(model, [])) > 1:
            self.answers[model].pop(0)
        records = [
            {"message": {"content": ""}, "done": False},
            {"message": {"content": text}, "done": False},
            {
                "message": {"content": ""},
                "done": True,
                "total_duration": int((waited + 0.25) * 1e9),
                "load_duration": int(waited * 1e9),
            },
        ]
        return httpx.Response(200, text="\n".join(map(json.dumps, records)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """Answers whatever is asked by httpx."""
    server, plain = FakeServer(clock), httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **options: plain(transport=httpx.MockTransport(server), **options))
    return server


@pytest.fixture
def run(clock: Clock, server: FakeServer) -> Callable[..., SwitchingResult]:
    def run(**counts: int) -> SwitchingResult:
        http = httpx.Client(base_url="http://server")
        client = SwitchingClient(http, 16, clock=clock, memory=lambda: {"gpu0": len(server.loaded) << 30})
        return measure(client, "http://server", ["a", "b"], **({"switches": 0, "cold": 0} | counts))

    return run


def test_loads_first_sleeps_switches_and_cold_loads_are_told_apart(run: Callable[..., SwitchingResult]) -> None:
    result = run(switches=4, cold=2)
    assert [(switch.kind, switch.model, ttft_ms(switch.sample)) for switch in result.switches] == [
        ("load", "a", 30250),
        ("load", "b", 30250),
        ("first", "a", 750),
        ("first", "b", 750),
        ("switch", "a", 750),
        ("switch", "b", 750),
        ("switch", "a", 750),
        ("switch", "b", 750),
        ("cold", "a", 30250),
        ("cold", "b", 30250),
    ]
    server = result.of("cold")[0].sample.server
    assert server
    assert server.load == 30 * 10**9
    assert result.memory_before == {"gpu0": 0}
    assert result.of("switch")[0].memory == {"gpu0": 2 << 30}


def test_answers_are_greedy_and_short(run: Callable[..., SwitchingResult], server: FakeServer) -> None:
    run()
    assert all(body["options"] == {"temperature": 0, "seed": 1, "num_predict": 16} for body in server.asked)


def test_an_answer_unlike_the_first_counts(run: Callable[..., SwitchingResult], server: FakeServer) -> None:
    server.answers["b"] = ["Paris", "Paris", "¿¿¿", "Paris"]
    told = summary(run(switches=4))
    assert told["other_answers"] == 1
    assert "answers unlike the first of their model: 1" in as_table(told)


def test_a_cold_load_waits_until_both_models_have_gone(
    run: Callable[..., SwitchingResult], server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    server.lingering = 3
    assert run(cold=1).of("cold")
    assert len(naps) == 3


def test_an_error_ends_the_measurement_in_the_server_s_words(clock: Clock) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(500, text='{"error":"model requires more GPU memory"}')

    http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(refuse))
    with pytest.raises(click.ClickException, match="a: model requires more GPU memory"):
        SwitchingClient(http, 16, clock=clock).ask("load", "a")


def test_the_summary_has_the_percentiles_of_each_kind(run: Callable[..., SwitchingResult]) -> None:
    told = summary(run(switches=10))
    assert told["kinds"]["switch"]["count"] == 10
    assert told["kinds"]["switch"]["ttft_ms"]["p99"] == 750
    assert told["memory_most"] == {"gpu0": 2 << 30}
    assert "| switch | 10 | 0.750 s | 0.750 s | 0.750 s |" in as_table(told)
    assert "| gpu0 | 0.0 GiB | 2.0 GiB |" in as_table(told)


def test_a_percentile_lies_between_two_values_as_in_all_of_the_bench() -> None:
    switches = [
        Switch("switch", "a", Sample(0, 0, ttft * 10**6, 10**7, "ok"), "Paris", True, {}) for ttft in (4, 1, 3, 2)
    ]
    figures = summary(SwitchingResult("", ["a", "b"], {}, switches))["kinds"]["switch"]["ttft_ms"]
    assert (figures["n"], figures["p50"], figures["p99"], figures["max"]) == (4, 2.5, pytest.approx(3.97), 4.0)


def test_memory_in_use_is_the_host_s_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken="no driver"))
    assert 0 < memory_reader()()["RAM"] < host_memory().total
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([FakeGpu()]))
    assert memory_reader()() == {"gpu0": 20 << 30}


def test_the_command_writes_everything_and_fails_where_an_answer_changed(server: FakeServer, tmp_path: Path) -> None:
    arguments = ["a", "b", "--switches", "2", "--json", str(tmp_path / "result.json")]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["summary"]["kinds"]["switch"]["count"] == 2
    assert len(written["switches"]) == 6
    server.answers["a"] = ["Paris", "Rome"]
    assert CliRunner().invoke(main, arguments).exit_code == 1
