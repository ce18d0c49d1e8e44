"""When two sides may be compared, and what is claimed of them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from test_bench_intervals import simulated
from test_bench_metrics import run, sample

from vllama.bench.comparison import (
    NotComparable,
    compare,
    declared_differences,
    decompose,
    length_differences,
    prompt_difference,
)
from vllama.bench.result import Comparison, Run, ServerFacts, System


def system(name: str, **facts: object) -> System:
    return System(name, "", "ollama", "m", ServerFacts(**facts))  # type: ignore[arg-type]


def runs(name: str, factor: float, seed: int, **fields: object) -> list[Run]:
    made = simulated(random.Random(seed), factor, 3, 60, between=0.01)
    return [
        replace(one, system=name, samples=tuple(replace(s, **fields) for s in one.samples))  # type: ignore[arg-type]
        for one in made
    ]


def compared(a: list[Run], b: list[Run]) -> dict[str, Comparison]:
    names = (a[0].system, b[0].system)
    return {one.metric: one for one in compare([*a, *b], [system(name) for name in names], seed=1)}


def test_a_context_and_a_quantization_that_differ_are_named() -> None:
    sides = [system("a", context=8192, quantization="BF16"), system("b", context=4096, quantization="Q4_0")]

    assert [difference.what for difference in declared_differences(sides)] == ["context", "quantization"]
    assert str(NotComparable(declared_differences(sides))) == (
        "the sides differ: context (a: 8192, b: 4096); quantization (a: BF16, b: Q4_0). "
        "To compare them nevertheless, give --allow-different"
    )


def test_what_a_server_does_not_say_is_no_difference() -> None:
    assert (
        declared_differences([system("a", context=8192, quantization="bf16"), system("b", quantization="BF16")]) == []
    )


def test_the_same_prompt_has_to_be_as_many_tokens_on_both_sides() -> None:
    assert prompt_difference({"a": 40, "b": 40, "c": None}) == []
    assert prompt_difference({"a": 40, "b": 31})[0].values == {"a": "40", "b": "31"}


def test_replies_have_to_be_of_the_same_length_at_every_level() -> None:
    alike = [run("a", 1, sample(0, 1, tokens_out=50)), run("b", 1, sample(0, 1, tokens_out=50))]
    other = [run("a", 8, sample(0, 1, tokens_out=50)), run("b", 8, sample(0, 1, tokens_out=30))]
    (difference,) = length_differences([*alike, *other])

    assert difference.what == "output tokens, streaming, C = 8"
    assert difference.values == {"a": "50.0", "b": "30.0"}


def test_lengths_that_differ_by_chance_are_the_same() -> None:
    some_end_early = [sample(0, 1, tokens_out=tokens) for tokens in (50, 50, 23, 50, 50, 50)]
    others = [sample(0, 1, tokens_out=tokens) for tokens in (50, 23, 50, 23, 50, 50)]

    assert length_differences([run("a", 1, *some_end_early), run("b", 1, *others)]) == []
    assert len(length_differences([run("a", 1, *some_end_early * 40), run("b", 1, *others * 40)])) == 1


def test_a_clear_difference_is_claimed_in_both_directions() -> None:
    faster = compared(runs("base", 1.0, 1), runs("new", 0.5, 2))
    slower = compared(runs("base", 0.5, 1), runs("new", 1.0, 2))

    assert faster["output_tokens_per_second"].verdict == faster["e2e_ms"].verdict == "better"
    assert slower["output_tokens_per_second"].verdict == slower["e2e_ms"].verdict == "worse"
    assert faster["e2e_ms"].ratio == pytest.approx(0.5, rel=0.1)
    assert "median latency of new is 0." in faster["e2e_ms"].sentence


def test_no_difference_is_claimed_when_the_interval_holds_one() -> None:
    same = compared(runs("base", 1.0, 1), runs("new", 1.0, 2))

    for one in same.values():
        assert one.low <= 1 <= one.high
        assert one.verdict == "no difference"
        assert "no difference between new and base is shown" in one.sentence


def test_a_speed_up_with_a_worse_parse_rate_is_a_regression() -> None:
    base = runs("base", 1.0, 1, valid=True)
    new = runs("new", 0.5, 2, valid=True)
    broken = [replace(one, samples=(replace(one.samples[0], valid=False), *one.samples[1:])) for one in new]

    assert compared(base, new)["e2e_ms"].verdict == "better"
    assert compared(base, broken)["e2e_ms"].verdict == "regression"
    assert "98% of its replies parse, 100% of base's: a regression" in compared(base, broken)["e2e_ms"].sentence


def test_a_field_that_is_valid_less_often_is_a_regression_too() -> None:
    base = runs("base", 1.0, 1, valid=True, fields={"city": True})
    new = runs("new", 0.5, 2, valid=True, fields={"city": False})

    assert compared(base, new)["output_tokens_per_second"].verdict == "regression"


def test_one_run_a_side_is_compared_with_a_word_of_caution() -> None:
    one = compared(runs("base", 1.0, 1)[:1], runs("new", 0.5, 2)[:1])

    assert "from one run" in one["e2e_ms"].sentence


def test_levels_are_compared_with_their_like_only() -> None:
    a, b = runs("a", 1.0, 1), [replace(one, concurrency=8) for one in runs("b", 1.0, 2)]

    assert compare([*a, *b], [system("a"), system("b")], seed=1) == ()


def test_three_runs_part_a_difference_into_server_and_model() -> None:
    three = [*runs("ollama", 1.0, 1), *runs("vllama-same", 0.5, 2), *runs("vllama-other", 0.25, 3)]
    systems = [system(name) for name in ("ollama", "vllama-other", "vllama-same")]
    parts = decompose(compare(three, systems, seed=1), system="vllama-other", control="vllama-same", baseline="ollama")
    latency = next(part for part in parts if part.metric == "e2e_ms")

    assert latency.total == pytest.approx(latency.server * latency.model)
    assert latency.server == pytest.approx(0.5, rel=0.1)
    assert latency.model == pytest.approx(0.5, rel=0.1)
