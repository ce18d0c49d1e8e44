"""What the generator notes of a server whose delays are known. Time is virtual, so every figure is exact."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import pytest
from scripted_model import Script, serving
from virtual_time import VirtualTimeLoop

from vllama.bench.dialects import DIALECTS
from vllama.bench.generator import Generator, GeneratorReport, RequestLoad, Target, open_session
from vllama.bench.prompts import PromptSource
from vllama.bench.result import Api, Sample
from vllama.errors import ServerError

T = TypeVar("T")
MS = 1_000_000


def in_virtual_time(work: Callable[[], Awaitable[T]]) -> T:
    async def run() -> T:
        return await work()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(run())


def clock() -> int:
    return round(asyncio.get_running_loop().time() * 1e9)


def load(api: Api = "ollama", **fields: object) -> RequestLoad:
    return replace(RequestLoad(Target("", api, "m"), PromptSource(), 5, iterations=1), **fields)  # type: ignore[arg-type]


def measured(script: Script, load: RequestLoad, stop_after: float | None = None) -> GeneratorReport:
    """The report of a load on a server with this script; it is cancelled after so many seconds."""

    async def run() -> GeneratorReport:
        async with serving(script) as url:
            target = replace(load.target, url=url)
            async with open_session(target) as session:
                generator = Generator(replace(load, target=target), session, clock)
                await generator.warm_up()
                measuring = asyncio.ensure_future(generator.measure(clock()))
                if stop_after is not None:
                    await asyncio.wait((measuring,), timeout=stop_after)
                    measuring.cancel()
                return await measuring

    return in_virtual_time(run)


def ms(ns: int | None) -> float:
    assert ns is not None
    return round(ns / MS, 2)


@pytest.mark.parametrize("api", DIALECTS)
def test_the_times_of_a_stream_are_the_servers(api: Api) -> None:
    (sample,) = measured(Script(first=0.05, per_token=0.01, tokens=5), load(api)).samples

    assert sample.first is not None
    assert ms(sample.first - sample.start) == 50
    assert [ms(offset) for offset in sample.chunks] == [50, 60, 70, 80, 90]
    assert ms(sample.end - sample.start) == 90
    assert (sample.outcome, sample.tokens_in, sample.tokens_out) == ("ok", 11, 5)


@pytest.mark.parametrize("api", DIALECTS)
def test_a_whole_reply_has_an_end_and_no_first_token(api: Api) -> None:
    (sample,) = measured(Script(), load(api, stream=False)).samples

    assert (sample.outcome, sample.first, sample.chunks, sample.tokens_out) == ("ok", None, (), 5)
    assert ms(sample.end - sample.start) == 90


@pytest.mark.parametrize(
    ("fate", "outcome", "error"),
    [
        ("refuse", "error", "500: out of memory"),
        ("break", "error", "the runner died"),
        ("drop", "dropped", ""),
        ("cut", "dropped", "ended before its end"),
        ("hang", "timeout", "no end within 2 s"),
    ],
)
@pytest.mark.parametrize("api", ["ollama", "openai"])
def test_each_way_to_fail_is_told_from_the_others(api: Api, fate: str, outcome: str, error: str) -> None:
    report = measured(Script(fates=["ok", fate]), load(api, iterations=3, timeout=2))

    assert [sample.outcome for sample in report.samples] == ["ok", outcome, "ok"]
    assert error in report.samples[1].error


def test_a_closed_loop_keeps_as_many_requests_on_their_way_as_it_has_clients() -> None:
    script = Script()
    report = measured(script, load(clients=4, iterations=12))

    assert script.most_running == 4
    assert len(report.samples) == 12
    assert ms(max(s.end for s in report.samples) - min(s.start for s in report.samples)) == 3 * 90


def test_a_server_that_serialises_lets_clients_wait_for_their_turn() -> None:
    report = measured(Script(at_once=1), load(clients=3, iterations=3))

    assert [ms(sample.end - sample.start) for sample in report.samples] == [90, 180, 270]


def test_an_open_loop_never_waits_for_a_slow_server() -> None:
    report = measured(Script(first=10, at_once=1), load(rate=10.0, iterations=20))
    starts = sorted(sample.start for sample in report.samples)

    assert {ms(b - a) for a, b in pairwise(starts)} == {100}
    assert max(sample.sent - sample.start for sample in report.samples) < MS


def test_poisson_arrivals_have_the_rate_and_the_spread_that_they_should() -> None:
    samples = measured(Script(), load(rate=100.0, arrivals="poisson", iterations=600)).samples
    gaps = [(b - a) / 1e9 for a, b in pairwise(sorted(sample.start for sample in samples))]
    mean = sum(gaps) / len(gaps)

    assert mean == pytest.approx(0.01, rel=0.12)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.25)


def test_a_duration_ends_new_requests_and_lets_those_on_their_way_finish() -> None:
    report = measured(Script(), load(iterations=None, seconds=0.2))

    assert [(ms(sample.end - sample.start), sample.outcome) for sample in report.samples] == [(90, "ok")] * 3


def test_the_warm_up_is_not_among_the_samples_and_has_other_prompts() -> None:
    script = Script()
    report = measured(script, load(clients=2, warmup=3, iterations=4))

    assert (len(report.samples), len(script.bodies)) == (4, 10)
    assert len({body["messages"][0]["content"] for body in script.bodies}) == 10


def test_a_warm_up_that_fails_says_how() -> None:
    with pytest.raises(ServerError, match=r"404.*model 'm' not found"):
        measured(Script(models=("other",)), load(warmup=1))


def test_nothing_listens_there_is_an_error_and_not_the_end() -> None:
    async def run() -> Sequence[Sample]:
        target = Target("http://127.0.0.1:1", "ollama", "m")
        async with open_session(target) as session:
            return (await Generator(load(target=target, iterations=2), session, clock).measure(clock())).samples

    assert [sample.outcome for sample in in_virtual_time(run)] == ["error", "error"]


def test_what_is_on_its_way_at_an_interrupt_is_cancelled_and_the_rest_is_kept() -> None:
    report = measured(Script(), load(clients=2, iterations=100), stop_after=0.1)

    assert [sample.outcome for sample in report.samples] == ["ok", "ok", "cancelled", "cancelled"]


def test_the_text_is_kept_of_as_many_replies_as_are_wanted() -> None:
    report = measured(Script(fates=["refuse"]), load(iterations=5, keep_texts=2))

    assert [(kept.sample, kept.number, kept.text) for kept in report.kept] == [(1, 1, " word" * 5), (2, 2, " word" * 5)]


def test_processes_take_turns_with_prompts_and_arrivals() -> None:
    parts = [measured(Script(), load(rate=10.0, iterations=3, turn=turn, stride=2)).samples for turn in (0, 1)]
    offsets = [[ms(sample.start - part[0].start) for sample in part] for part in parts]

    assert offsets == [[0, 200, 400], [0, 200, 400]]
