"""A bench from beginning to end, against servers whose behaviour is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_model import Script, serving_beside
from test_bench_generator import measured
from test_bench_metrics import run

from vllama.bench import experiment
from vllama.bench.comparison import NotComparable
from vllama.bench.conclusions import conclude
from vllama.bench.design import ExperimentDesign
from vllama.bench.experiment import measure
from vllama.bench.generator import RequestLoad, Target
from vllama.bench.model_loads import measure_cold_starts, measure_switches
from vllama.bench.prompts import PromptSource
from vllama.bench.quality import Task
from vllama.bench.result import Api, ExperimentResult, LoadLevel, System, dump, load
from vllama.errors import RequestError, ServerError

QUICK = Script(first=0.01, per_token=0.002)


@pytest.fixture(autouse=True)
def short_look_at_the_idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(experiment, "SETTLE_SECONDS", 0.05)


@pytest.fixture
def said() -> list[tuple[str, float]]:
    return []


def bench(design: ExperimentDesign, said: list[tuple[str, float]] | None = None) -> ExperimentResult:
    heard = said if said is not None else []
    return measure(design, lambda what, done: heard.append((what, done)))


def design(*urls: str, apis: tuple[Api, ...] = ("ollama", "ollama", "ollama"), **fields: object) -> ExperimentDesign:
    names = ("ours", "theirs", "control")
    systems = tuple(System(name, url, api, "m") for name, url, api in zip(names, urls, apis, strict=False))
    made = ExperimentDesign(
        systems, (LoadLevel("streaming", 1), LoadLevel("streaming", 4)), PromptSource(), 5, iterations=8
    )
    return replace(made, **fields)  # type: ignore[arg-type]


@pytest.fixture
def url() -> Iterator[str]:
    with serving_beside(replace(QUICK, bodies=[])) as address:
        yield address


def test_a_server_alone_is_measured_level_by_level_and_diagnosed(url: str, said: list[tuple[str, float]]) -> None:
    result = bench(design(url), said)

    assert [(run.concurrency, run.metrics.ok) for run in result.runs] == [(1, 8), (4, 8)]
    assert [found.kind for found in result.diagnoses] == ["batches"]
    assert result.systems[0].facts.server == "0.24.0"
    assert result.summaries[1].metrics.inflation is not None
    assert result.runs[0].telemetry is not None
    # A busy machine may add that durations differ.
    assert not [warning for warning in result.warnings if "duration" not in warning]
    assert [done for _, done in said] == sorted(done for _, done in said)
    assert load(dump(result)) == result


def test_runs_of_two_systems_take_turns(url: str) -> None:
    result = bench(design(url, url, levels=(LoadLevel("streaming", 2),), repetitions=2, iterations=4))

    assert [(run.system, run.repetition) for run in result.runs] == [
        ("ours", 0),
        ("theirs", 0),
        ("ours", 1),
        ("theirs", 1),
    ]
    windows = [run.window for run in result.runs]
    assert windows == sorted(windows)


def test_a_server_that_is_much_faster_is_found_to_be() -> None:
    # In virtual time, so the ratio is that of the scripts.
    level = RequestLoad(Target("", "ollama", "m"), PromptSource(), 5, clients=2, iterations=8)
    scripts = {"ours": Script(first=0.01, per_token=0.01), "theirs": Script(first=0.05, per_token=0.05)}
    runs = [
        run(system, 2, *measured(script, level).samples, repetition=repetition)
        for repetition in range(2)
        for system, script in scripts.items()
    ]
    result = conclude(design("", ""), runs, environment={})
    found = {one.metric: one for one in result.comparisons}

    assert found["e2e_ms"].verdict == "better"
    assert found["e2e_ms"].ratio == pytest.approx(0.2, rel=1e-3)
    assert found["output_tokens_per_second"].baseline == "theirs"


def test_sides_that_differ_are_refused_unless_that_is_allowed() -> None:
    theirs = replace(QUICK, quantization="Q4_0", context=2048, prompt_tokens=31)
    with serving_beside(QUICK) as one, serving_beside(theirs) as other:
        with pytest.raises(NotComparable) as refusal:
            bench(design(one, other))
        result = bench(design(one, other, allow_different=True, levels=(LoadLevel("streaming", 1),), iterations=3))

    named = ["context", "quantization", "prompt tokens"]
    assert [difference.what for difference in refusal.value.differences] == named
    assert [difference.what for difference in result.differences] == named
    assert result.comparisons


def test_replies_of_other_lengths_are_measured_but_not_compared() -> None:
    with serving_beside(QUICK) as one, serving_beside(replace(QUICK, tokens=3)) as other:
        asked = design(one, other, levels=(LoadLevel("streaming", 1),), iterations=3)
        result = bench(asked)
        allowed = bench(replace(asked, allow_different=True))

    assert result.comparisons == ()
    assert result.warnings[0].startswith("not compared, because the replies differ: output tokens")
    assert allowed.comparisons


def test_each_side_may_speak_another_api(url: str) -> None:
    result = bench(design(url, url, apis=("ollama", "openai"), levels=(LoadLevel("streaming", 1),), iterations=3))

    assert {run.system: run.metrics.ok for run in result.runs} == {"ours": 3, "theirs": 3}


def test_whole_replies_have_no_time_to_first_token(url: str) -> None:
    result = bench(design(url, levels=(LoadLevel("sequential", 1), LoadLevel("concurrent", 4)), iterations=4))

    assert [run.metrics.ttft_ms for run in result.runs] == [None, None]
    assert result.summaries[1].metrics.inflation is not None


def test_an_open_loop_has_its_rate(url: str) -> None:
    (run,) = bench(design(url, levels=(LoadLevel("streaming", rate=50.0),), iterations=20, arrivals="poisson")).runs

    assert (run.rate, run.arrivals, run.metrics.ok) == (50.0, "poisson", 20)


def test_prompts_get_the_length_that_is_asked_for_by_the_servers_own_count() -> None:
    script = replace(QUICK, prompt_tokens=None)  # it counts: 7 tokens of template, and each word
    with serving_beside(script) as url:
        result = bench(design(url, prompt_tokens=120, levels=(LoadLevel("streaming", 2),), iterations=4))
        short = bench(design(url, prompt_tokens=5, levels=(LoadLevel("streaming", 2),), iterations=2))

    (run,) = result.runs
    assert {sample.tokens_in for sample in run.samples} == {120}
    assert any("5 cannot be had" in warning for warning in short.warnings)


def test_replies_are_judged_by_the_schema_at_every_level(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}))
    script = replace(QUICK, text='{"a": 1}', tokens=1, bodies=[])
    with serving_beside(script) as url:
        result = bench(design(url, task=Task.from_file(path), iterations=4))

    assert [summary.metrics.parse_rate for summary in result.summaries] == [1.0, 1.0]
    assert result.summaries[0].metrics.field_rates == {"a": 1.0}
    assert script.bodies[-1]["format"]["required"] == ["a"]


def test_a_server_that_counts_otherwise_than_the_tokenizer_is_warned_of(url: str) -> None:
    fine = bench(design(url, tokenizers={"m": lambda text: len(text.split())}))
    wrong = bench(design(url, tokenizers={"m": lambda text: 3 * len(text.split())}))

    # A busy machine may add that durations differ.
    assert not [warning for warning in fine.warnings if "counted" in warning]
    assert fine.runs[0].samples[0].counted_out == 5
    assert [warning for warning in wrong.warnings if "counted" in warning] == [
        "ours: it counted 80 tokens in 16 replies, the tokenizer 240 in their text"
    ]


def test_failures_are_counted_and_their_cause_is_named() -> None:
    script = replace(QUICK, fates=["ok"] * 3 + ["refuse", "refuse", "drop"])
    with serving_beside(script) as url:
        result = bench(design(url, levels=(LoadLevel("streaming", 1),)))

    assert (result.runs[0].metrics.errors, result.runs[0].metrics.dropped) == (2, 1)
    assert result.warnings[0].startswith("ours: 3 of 8 requests failed (2 error, 1 dropped), most often: 500")


def test_a_server_that_does_not_know_the_model_is_an_error_that_names_it(url: str) -> None:
    asked = design(url)
    with pytest.raises(ServerError, match="model 'x' not found"):
        bench(replace(asked, systems=(replace(asked.systems[0], model="x"),)))


def test_ctrl_c_gives_the_result_of_what_was_measured(url: str) -> None:
    interrupts = [KeyboardInterrupt]

    def interrupt(what: str, done: float) -> None:
        if done > 0.5 and interrupts:
            raise interrupts.pop()

    result = measure(
        design(url, iterations=60, levels=(LoadLevel("streaming", 4), LoadLevel("streaming", 1))), interrupt
    )

    assert result.interrupted
    assert result.runs[0].metrics.ok == 60
    assert sum(run.metrics.ok for run in result.runs) < 120


def test_a_cold_start_is_the_time_to_the_first_token_of_a_model_that_was_unloaded() -> None:
    with serving_beside(replace(QUICK, load=0.1)) as url:
        result = measure_cold_starts(design(url, iterations=3), lambda what, done: None)

    (run,) = result.runs
    assert (run.mode, run.metrics.ok) == ("coldstart", 3)
    assert run.metrics.ttft_ms
    assert run.metrics.ttft_ms.min >= 110


def test_a_switch_is_measured_in_both_directions() -> None:
    with serving_beside(replace(QUICK, models=("m", "n"))) as url:
        result = measure_switches(design(url, iterations=2), "n", lambda what, done: None)

    assert [(run.mode, run.model, run.metrics.ok) for run in result.runs] == [("switch", "m", 2), ("switch", "n", 2)]


def test_an_api_that_cannot_unload_is_refused_before_any_model_is_loaded() -> None:
    script = replace(QUICK, models=("m", "n"), bodies=[])
    with serving_beside(script) as url:
        asked = design(url, url, apis=("ollama", "openai"))
        with pytest.raises(RequestError, match="unloads models"):
            measure_cold_starts(asked, lambda what, done: None)
        with pytest.raises(RequestError, match="unloads models"):
            measure_switches(asked, "n", lambda what, done: None)

    assert script.bodies == []


def test_a_switch_needs_two_different_models(url: str) -> None:
    with pytest.raises(RequestError, match="--switch-model m is the measured model itself"):
        measure_switches(design(url), "m", lambda what, done: None)
