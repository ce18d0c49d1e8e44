"""A result survives the way through JSON, and what is no result is refused."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from vllama.bench.dataclass_json import BadResult
from vllama.bench.result import (
    ExperimentResult,
    Metrics,
    Run,
    Sample,
    ServerFacts,
    ServerTimes,
    System,
    Telemetry,
    Workload,
    dump,
    load,
)

SAMPLE = Sample(
    1000,
    1010,
    2000,
    9000,
    "ok",
    tokens_in=5,
    tokens_out=3,
    chunks=(1000, 4000, 7000),
    server=ServerTimes(8000, 10, 900, 7000),
    valid=True,
    fields={"city": True},
)
METRICS = Metrics(1, 0, 0, 0, 0, 8e-6, 125000.0, 375000.0, 1e6, 1.0)
RESULT = ExperimentResult(
    command=("vllama", "bench"),
    created="2026-11-21T12:00:00Z",
    systems=(
        System("vllama", "http://127.0.0.1:11434", "ollama", "smollm2:135m", ServerFacts("0.24.0", 8192, "BF16")),
    ),
    workload=Workload("synthetic", 5, 3),
    runs=(
        Run(
            "vllama",
            "streaming",
            0,
            (1000, 9000),
            (SAMPLE,),
            METRICS,
            concurrency=1,
            telemetry=Telemetry((1000, 2000), {"gpu0_power_w": (100.0, None)}),
        ),
    ),
    environment={"python": "3.11", "gpus": [{"name": "H200"}]},
)


def test_a_result_is_the_same_after_json() -> None:
    assert load(dump(RESULT)) == RESULT


def test_what_has_a_default_may_be_left_out() -> None:
    value = orjson.loads(dump(RESULT))
    del value["diagnoses"], value["runs"][0]["telemetry"]

    assert load(orjson.dumps(value)) == replace(RESULT, runs=(replace(RESULT.runs[0], telemetry=None),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "version 99"),
        ({"runs": 3}, "result.runs"),
        ({"novelty": 1}, "unknown novelty"),
        ({"interrupted": "yes"}, "result.interrupted"),
        ({"systems": [{"name": "a", "url": "", "api": "soap", "model": ""}]}, r"result.systems\[0\].api"),
        ({"systems": [{"name": "a"}]}, "url, api, model missing"),
    ],
)
def test_what_is_no_result_is_refused_and_the_place_named(change: dict[str, object], message: str) -> None:
    value = {**orjson.loads(dump(RESULT)), **change}

    with pytest.raises(BadResult, match=message):
        load(orjson.dumps(value))


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"{"])
def test_a_file_that_is_something_else_is_refused(text: bytes) -> None:
    with pytest.raises(BadResult):
        load(text)
